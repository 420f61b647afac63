"""Every term against its dense matrix, its counts, its gradients, and formulas there and back."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sprat.equations.grammar import parse
from sprat.equations.maps import Maps
from sprat.equations.term import Factor, Space, Term, Values, add, multiply
from sprat.equations.terms import TERMS, seeded
from sprat.errors import RecipeError

FORMULAS = [
    "dense",
    "lowrank(3)",
    "kron(1, 4)",
    "kron(3, 5)",
    "monarch(3)",
    "monarch(4, 2)",
    "circulant(4)",
    "circulant(5)",
    "toeplitz(1)",
    "toeplitz(4)",
    "seeded",
    "coordinates(6)",
    "hypernetwork(4)",
    "shared(dense)",
    "shared(lowrank(2), 2)",
    "scaled(shared(toeplitz(3)))",
    "polynomial(2, monarch(2))",
    "mixture(3, seeded)",
    "mixture(2, kron(2, 3))",
    "scaled(seeded) + lowrank(2)",
    "lowrank(2) @ circulant(4)",
    "(dense + shared(dense)) @ monarch(2) @ toeplitz(3)",
]
#: (rows, columns, layers): square, wide and tall, and ones that no block divides.
SHAPES = [(12, 12, 3), (13, 7, 4), (7, 13, 4), (31, 16, 3)]


def begun(term: Term, space: Space, gain: float = 1.0, seed: int = 0) -> Maps:
    maps = Maps(term, space, gain)
    maps.begin(torch.Generator().manual_seed(seed))
    return maps


def values(term: Term, space: Space, seed: int = 0, dtype: torch.dtype = torch.float64) -> Values:
    """Random factors as they begin."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(f: Factor) -> list[torch.Tensor]:
        made = [torch.randn(f.shape, generator=generator, dtype=dtype) for _ in range(f.copies)]
        return [w * f.deviation + f.mean for w in made]

    return Values({name: drawn(f) for name, f in term.factors(space).items()})


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_fast_product_is_the_dense_one(formula, shape):
    term, space = parse(formula), Space(*shape, seed=5)
    term.check(space)
    held = values(term, space)
    for i in range(space.copies):
        w = term.dense(held, space, i)
        assert w.shape == (space.rows, space.columns) and w.std() > 0
        for leading in [(), (1,), (2, 3)]:
            x = torch.randn(*leading, space.columns, dtype=torch.float64)
            torch.testing.assert_close(term.product(held, space, i, x), x @ w.T)


def slow(formula: str, held: Values, m: int, n: int) -> torch.Tensor:
    """W by its definition, an element at a time (copy 0)."""
    name, *arguments = formula.replace("(", " ").replace(")", "").replace(",", "").split()
    numbers = [int(a) for a in arguments]
    w = torch.zeros(m, n, dtype=torch.float64)
    for i in range(m):
        for j in range(n):
            if name == "kron":
                k, b = numbers
                up = -(-m // b)
                for t in range(k):
                    outer = held["outer"][0][t * up + i // b, j // b]
                    w[i, j] += outer * held["inner"][0][t * b + i % b, j % b]
            elif name == "monarch":
                b, s = numbers
                up, across = -(-m // b), -(-n // b)
                # Rows lie as (i, q), q the block's number, the columns as (p, j).
                row, q, p, column = i // b, i % b, j // across, j % across
                for t in range(s):
                    left = held["left"][0][q * up + row, p * s + t]
                    w[i, j] += left * held["right"][0][(p * b + q) * s + t, column]
            else:
                (b,) = numbers
                block = i // b * -(-n // b) + j // b
                step = i % b - j % b
                place = block * b + step % b if name == "circulant" else block * (2 * b - 1) + step + b - 1
                w[i, j] = held["c"][0][place]
    return w


@pytest.mark.parametrize("formula", ["kron(3, 5)", "monarch(3, 2)", "circulant(4)", "toeplitz(5)"])
@pytest.mark.parametrize("shape", SHAPES)
def test_structured_matrices_are_what_their_formula_says(formula, shape):
    term, space = parse(formula), Space(*shape)
    held = values(term, space)
    torch.testing.assert_close(term.dense(held, space, 0), slow(formula, held, *shape[:2]))


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_counts_are_those_of_the_modules(formula, shape):
    term, space = parse(formula), Space(*shape)
    maps = begun(term, space)
    assert sum(p.numel() for p in maps.parameters()) == term.parameters(space)
    assert all(p.ndim in (1, 2) for p in maps.parameters())
    twin = copy.deepcopy(maps)
    twin.load_state_dict(maps.state_dict())
    x = torch.randn(2, space.columns)
    assert torch.equal(twin(1, x), maps(1, x))
    torch.testing.assert_close(maps(1, x), x @ maps.dense(1).T, atol=1e-4, rtol=1e-4)
    many = torch.randn(99, space.columns)
    torch.testing.assert_close(maps(1, many), many @ maps.dense(1).T, atol=1e-4, rtol=1e-4)


def operations(formula: str, m: int, n: int, layers: int) -> int:
    """By hand: two for each multiplication and addition of a product's factors."""
    return {
        "dense": 2 * m * n,
        "lowrank(3)": 2 * 3 * n + 2 * m * 3,
        "kron(2, 4)": 2 * 2 * (n // 4 * 4 * 4 + m // 4 * (n // 4) * 4),
        "monarch(4, 2)": 4 * 2 * (8 * (n // 4)) + 4 * 2 * (m // 4 * 8),
        "polynomial(1, dense)": 2 * (2 * m * n + 2 * m),
        "scaled(dense)": 2 * m * n + m + n,
        "lowrank(3) + dense": 6 * (m + n) + 2 * m * n + m,
        "lowrank(3) @ dense": 2 * 3 * (m + min(m, n)) + 2 * min(m, n) * n,
        "circulant(4)": 20 * (m // 4 + n // 4) + 8 * 3 * (m // 4) * (n // 4),
    }[formula]


@pytest.mark.parametrize(
    "formula",
    ["dense", "lowrank(3)", "kron(2, 4)", "monarch(4, 2)", "polynomial(1, dense)", "scaled(dense)",
     "lowrank(3) + dense", "lowrank(3) @ dense", "circulant(4)"],
)  # fmt: skip
def test_operations_are_counted(formula):
    for m, n in [(16, 8), (24, 16)]:
        assert parse(formula).flops(Space(m, n, 2)) == operations(formula, m, n, 2)


@pytest.mark.parametrize("formula", FORMULAS)
def test_gradients_agree_with_finite_differences(formula):
    term, space = parse(formula.replace("monarch(4, 2)", "monarch(3, 2)")), Space(5, 7, 3, seed=2)
    factors = term.factors(space)
    held = values(term, space)
    names = [(name, i) for name, f in factors.items() for i in range(f.copies)]
    given = [held[name][i].clone().requires_grad_() for name, i in names]
    x = torch.randn(2, 7, dtype=torch.float64)

    def out(way: str):
        def run(*tensors: torch.Tensor) -> torch.Tensor:
            split: dict[str, list[torch.Tensor]] = {name: [] for name in factors}
            for (name, _), tensor in zip(names, tensors, strict=True):
                split[name].append(tensor)
            if way == "dense":
                return term.dense(Values(split), space, 1)
            return term.product(Values(split), space, 1, x)

        return run

    for way in ("dense", "product"):
        assert torch.autograd.gradcheck(out(way), given, fast_mode=True)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("gain", [1.0, 0.1])
def test_the_variance_of_the_input_is_kept(formula, gain):
    space = Space(60, 90, 4)
    x = torch.randn(200, 90, generator=torch.Generator().manual_seed(1))
    found = []
    for seed in range(12):
        maps = begun(parse(formula), space, gain, seed)
        with torch.no_grad():
            found += [maps(i, x).square().mean().item() for i in range(space.copies)]
    mean = sum(found) / len(found)
    assert 0.7 < math.sqrt(mean) / gain < 1.3


# Formulas: any term, there and back; anything else refused.

NUMBER = st.integers(1, 65536)


def calls(names: str, *arguments: st.SearchStrategy) -> st.SearchStrategy[Term]:
    """Terms of these names with these arguments."""
    made = (st.tuples(*arguments).map(lambda given, kind=TERMS[name]: kind(*given)) for name in names.split())
    return st.one_of(*made)


LEAVES = st.one_of(
    calls("dense seeded"),
    calls("lowrank monarch circulant toeplitz coordinates hypernetwork", NUMBER),
    calls("kron monarch", NUMBER, NUMBER),
)
ANY = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        calls("scaled shared", inner),
        calls("shared", inner, NUMBER),
        calls("polynomial mixture", NUMBER, inner),
        st.lists(inner, min_size=2, max_size=3).map(add),
        st.lists(inner, min_size=2, max_size=3).map(multiply),
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(ANY)
def test_a_formula_reads_back_as_what_it_was(term):
    assert parse(str(term)) == term
    assert str(parse(str(term))) == str(term)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text("()+@,;: 0123456789abdelnrkows", max_size=40))
def test_hostile_formulas_end_in_a_message(text):
    try:
        term = parse(text)
    except RecipeError:
        return
    assert parse(str(term)) == term


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("", "formula ends"),
        ("lowrnk(4)", "did you mean 'lowrank'"),
        ("lowrank", "lowrank takes 1 arguments, not 0: lowrank(rank)"),
        ("lowrank(0)", "numbers are 1 to 65536"),
        ("lowrank(99999999999999999999)", "numbers are 1 to 65536"),
        ("lowrank(dense)", "rank of lowrank(rank) is a whole number"),
        ("shared(4)", "term of shared(term, groups) is a term"),
        ("dense + ", "formula ends"),
        ("dense dense", "'dense' where the formula should end"),
        ("kron(2, 4", "')' is missing at the end"),
        ("dense * 2", "'*' has no meaning here"),
        ("(" * 40 + "dense" + ")" * 40, "parentheses"),
        ("dense+" * 1000, "too long"),
    ],
)
def test_what_is_wrong_is_named(formula, says):
    with pytest.raises(RecipeError, match=says.replace("(", r"\(").replace(")", r"\)").replace("*", r"\*")):
        parse(formula)


@pytest.mark.parametrize(
    "formula",
    ["lowrank(8)", "kron(1, 8)", "monarch(8)", "circulant(8)", "shared(dense, 4)", "polynomial(3, dense)"],
)
def test_a_term_that_does_not_fit_says_what_would(formula):
    with pytest.raises(RecipeError, match="at most"):
        parse(formula).check(Space(7, 30, 3))


def test_seeded_matrices_are_the_same_everywhere():
    space = Space(5, 300, 2, seed=9)
    held = values(parse("seeded"), space)
    w = parse("seeded").dense(held, space, 1)
    assert (w.abs() * math.sqrt(300) - 1).abs().max() < 1e-12
    first = "".join("+" if v > 0 else "-" for v in w[2, :24])
    assert first == "+-+--++--+++--+---+-+--+"  # what a file's seed stands for must never change


def test_large_seeded_matrices_are_drawn_in_strips(monkeypatch):
    space, term = Space(11, 300, 2, seed=3), parse("seeded")
    held, x = values(term, space), torch.randn(2, 300, dtype=torch.float64)
    w = term.dense(held, space, 1)
    monkeypatch.setattr(seeded, "KEPT", 700)  # two rows a strip
    torch.testing.assert_close(term.product(held, space, 1, x), x @ w.T)
