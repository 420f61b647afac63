"""Every method of the table keeps the contract; bad numbers end in an error or in zeros, never in a crash."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import correlated, recipe_of

from sprat import _core
from sprat.coding import entropy, records
from sprat.coding.tensors import OFFSET, Lattice, lattices
from sprat.errors import StatisticsError
from sprat.methods import METHODS, SETTLED
from sprat.methods.columns import removals
from sprat.methods.waterlevel import round_to_level
from sprat.recipe import Recipe

PRIOR = entropy.prior_tables()


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("trellis", [0, 4, 8])
def test_a_method_returns_what_can_be_stored(name: str, trellis: int) -> None:
    w, h, g = correlated(40, 24)
    recipe = recipe_of(name, 24, trellis=trellis)
    stored = METHODS[name](w, h, g, 1e-4, recipe, PRIOR, "some map", 2)
    assert stored.shape == (40, 24)
    if name not in SETTLED:
        assert np.abs(stored.dense() - w.numpy()).max() < 2e-3
    tables = entropy.Tables.from_counts(entropy.count(lattices(stored)))
    for lattice in lattices(stored):
        assert isinstance(lattice, Lattice) and lattice.trellis == (
            0 if name in ("ternary", "binary") else trellis
        )
        back = records.unpack_lattice(records.pack_lattice(lattice, tables), tables)
        assert (back.dense() == lattice.dense()).all()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_is_a_function_of_its_arguments(name: str) -> None:
    w, h, g = correlated(70, 90)

    def asked(w: torch.Tensor) -> torch.Tensor:  # "kept" takes what was trained as integers
        return w.sign() * w.abs().mean(1, keepdim=True) if name == "kept" else w

    before = [x.clone() for x in (w, h, g)]
    recipe = recipe_of(name, 8)
    one = METHODS[name](asked(w), h, g, 0.3, recipe, PRIOR, "some map", 1)
    noise = torch.randn(w.shape, generator=torch.Generator().manual_seed(0)) / 9
    two = METHODS[name](asked(w + noise), h, g, 0.3, recipe, PRIOR, "some map", 1)
    many = METHODS[name](asked(w), h, g, 0.3, recipe, PRIOR, "some map", 5)
    assert (one.dense() == many.dense()).all()
    assert (one.dense() != two.dense()).any()
    assert all(torch.equal(a, b) for a, b in zip((w, h, g), before, strict=True))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_zero_weights_and_dead_rows(name: str) -> None:
    w, h, g = correlated(20, 12)
    w[3] = 0
    w[:, 5] = 0
    g[7] = 0
    stored = METHODS[name](w, h, g, 0.05, recipe_of(name, 4, trellis=0), PRIOR, "some map", 1).dense()
    assert np.abs(stored[3]).max() < 1e-9 < np.abs(stored[7]).max()  # a binary row has no zeros
    nothing = METHODS[name](torch.zeros(4, 12), h, torch.zeros(4), 0.05, recipe_of(name, 4), PRIOR, "map", 1)
    assert np.abs(nothing.dense()).max() < 1e-9


def test_rows_of_zeros_cost_next_to_nothing() -> None:
    """The classes of the other rows and of the columns are what they are without them."""
    w, h, g = correlated(64, 48)
    with_zeros = torch.cat([w, torch.zeros(64, 48)])
    recipe = Recipe(row_steps=False)
    one = round_to_level(w, h, g, 0.3, recipe, PRIOR)
    two = round_to_level(with_zeros, h, torch.cat([g, g]), 0.3, recipe, PRIOR)
    assert (two.q[:64] == one.q).all() and not two.q[64:].any()
    assert (two.col_class == one.col_class).all() and (two.row_class[:64] == one.row_class).all()
    assert entropy.cost_bits(two, PRIOR) < entropy.cost_bits(one, PRIOR) + 0.02 * 64 * 48


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["w", "h", "g"])
def test_bad_numbers_are_named(where: str, bad: float) -> None:
    w, h, g = correlated(20, 12)
    {"w": w[3], "h": h[4], "g": g}[where][2] = bad
    with pytest.raises(StatisticsError, match=r"layers\.0\.q: .* NaN"):
        round_to_level(w, h, g, 0.1, Recipe(), PRIOR, "layers.0.q")


def test_a_singular_metric_is_named() -> None:
    w, _, g = correlated(20, 12)
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    with pytest.raises(StatisticsError, match=r"layers\.0\.q.*calibrate on more tokens"):
        round_to_level(w, x.T @ x - 0.1 * torch.eye(12), g, 0.1, Recipe(), PRIOR, "layers.0.q")


def block(m: int, n: int, states: int) -> dict:
    """Arguments of the native kernel for a random block."""
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(size=(m, n)).astype(np.float32),
        "feedback": np.triu(rng.normal(size=(n, n)) / 4).astype(np.float32),
        "inverse_u": np.ones(n, np.float32),
        "step": np.full(n, 0.3, np.float32),
        "row_lambda": np.full(m, 0.01, np.float32),
        "row_class": np.full(m, 76, np.uint8),
        "col_class": np.full(n, 76, np.uint8),
        "bits": PRIOR.bits(20),
        "offset": OFFSET,
        "states": states,
        "state": np.zeros(m, np.uint8),
        "q": np.empty((m, n), np.int32),
        "error": np.empty((m, n), np.float32),
        "threads": 2,
    }


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e38])
@pytest.mark.parametrize("where", ["w", "feedback", "inverse_u", "step", "row_lambda", "bits"])
@pytest.mark.parametrize("states", [1, 4, 8])
def test_the_kernel_survives_bad_numbers(states: int, where: str, bad: float) -> None:
    """Whatever stands in the operands, it ends, and in integers that the trellis can reach."""
    a = block(33, 17, states)
    a[where].reshape(-1)[:: 5 if where == "w" else 2] = bad
    _core.round_block(**a)
    second = block(33, 17, states) | {"state": a["state"]}
    _core.round_block(**second)
    q = np.hstack([a["q"], second["q"]])
    # Counting refuses integers that the trellis cannot reach, across the blocks too.
    symbols, extra = np.zeros((2, 64, 128), np.uint64), np.zeros((2, 64), np.uint64)
    col_class = np.hstack([a["col_class"], second["col_class"]])
    _core.count(q, a["row_class"], col_class, 0 if states == 1 else states, symbols, extra, 1)
    assert symbols.sum() == q.size


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("where", ["w", "feedback", "inverse_u", "inverse", "step"])
@pytest.mark.parametrize("states", [1, 4, 8])
@pytest.mark.parametrize("sets", [True, False])
def test_patterns_survive_bad_numbers(sets: bool, states: int, where: str, bad: float) -> None:
    """The pattern is kept and the trellis, which stands still at what it leaves out, can reach the rest."""
    a = block(33, 16, states) | {
        "group": 4,
        "removed": 2,
        "compact": True,
        "keep": np.zeros((33, 16), np.uint8),
    }
    if sets:
        chosen, inverse = removals(torch.from_numpy(np.eye(16, dtype=np.float32)), 4, 2)
        a |= {"sets": chosen, "inverse": inverse}
    if where in a:
        a[where].reshape(-1)[::3] = bad
    _core.round_block(**a)
    assert (a["keep"].reshape(33, 4, 4).sum(2) == 2).all() and not a["q"][a["keep"] == 0].any()
    coded = np.ascontiguousarray(a["q"][a["keep"] == 1].reshape(33, 8))
    symbols, extra = np.zeros((2, 64, 128), np.uint64), np.zeros((2, 64), np.uint64)
    _core.count(coded, a["row_class"], a["col_class"][:8], 0 if states == 1 else states, symbols, extra, 1)
    assert symbols.sum() == coded.size


@pytest.mark.parametrize(
    "change",
    [
        {"group": 5},
        {"removed": 0},
        {"removed": 4},
        {"sets": None},
        {"sets": np.array([[0, 4]], np.int32)},
        {"sets": np.array([[1, 0]], np.int32)},
        {"sets": np.array([[-1, 0]], np.int32)},
        {"inverse": np.zeros((4, 1, 2, 1), np.float32)},
        {"inverse": np.zeros((3, 1, 2, 2), np.float32)},
        {"keep": np.zeros((33, 15), np.uint8)},
        {"limit": 1},
        {"zero": False},
        {"limit": -1},
    ],
    ids=str,
)
def test_the_kernel_refuses_patterns_that_do_not_fit(change: dict) -> None:
    fine = {
        "group": 4,
        "removed": 2,
        "sets": np.array([[0, 1]], np.int32),
        "keep": np.zeros((33, 16), np.uint8),
    }
    fine["inverse"] = np.zeros((4, 1, 2, 2), np.float32)
    _core.round_block(**(block(33, 16, 4) | fine))
    with pytest.raises(ValueError, match="round_block"):
        _core.round_block(**(block(33, 16, 4) | fine | change))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("feedback", np.zeros((16, 17), np.float32)),
        ("inverse_u", np.zeros(16, np.float32)),
        ("step", np.zeros(18, np.float32)),
        ("row_lambda", np.zeros(17, np.float32)),
        ("row_class", np.zeros(32, np.uint8)),
        ("col_class", np.zeros(33, np.uint8)),
        ("bits", np.zeros((1, 64, 41), np.float32)),
        ("bits", np.zeros((2, 64, 40), np.float32)),
        ("bits", np.zeros((2, 0, 41), np.float32)),
        ("state", np.full(33, 4, np.uint8)),
        ("states", 3),
        ("q", np.zeros((33, 16), np.int32)),
        ("error", np.zeros((32, 17), np.float32)),
        ("w", np.zeros((33, 0), np.float32)),
    ],
)
def test_the_kernel_refuses_operands_that_do_not_fit(name: str, value: object) -> None:
    with pytest.raises(ValueError):
        _core.round_block(**{**block(33, 17, 4), name: value})
