"""Where candidates come from: drawn at random from the grammar, changed a little, or crossed with each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

from numpy.random import Generator

from sprat.equations.network import DENSE, Equation
from sprat.equations.term import Product, Sum, Term, add, multiply
from sprat.equations.terms import TERMS
from sprat.equations.terms.lowrank import LowRank
from sprat.search.candidate import Candidate

#: What the whole numbers of a term are drawn from.
NUMBERS = {
    "rank": (1, 2, 4, 8, 12, 16, 24, 32, 48, 64),
    "block": (2, 4, 8, 16, 32),
    "blocks": (2, 4, 8, 16),
    "count": (1, 2, 4, 8),
    "groups": (1, 2, 3),
    "degree": (1, 2, 3),
    "size": (2, 3, 4),
    "hidden": (4, 8),
}
LEAVES = ("dense", "lowrank", "kron", "monarch", "circulant", "toeplitz", "seeded")
#: Leaves that take a network for each weight: too slow to be made several times over.
NETWORKS = ("coordinates", "hypernetwork")
TIES = ("shared", "scaled", "polynomial", "mixture")
LAYERS = (2, 3, 4, 6, 8, 12)
BITS = (3, 4, 5)
EMBEDDINGS = (DENSE, DENSE, LowRank(24), LowRank(32), LowRank(48), LowRank(64))
#: Terms inside each other, and characters of a formula, at most.
DEEPEST, LONGEST = 3, 60


def drawn(random: Generator) -> Candidate:
    """A random one."""
    attention = _term(random)
    ffn = attention if random.random() < 0.5 else _term(random)
    return _candidate(random, Equation(attention, ffn, _pick(random, EMBEDDINGS)))


def changed(random: Generator, parent: Candidate) -> Candidate:
    """One part of it drawn anew."""
    equation, kind = parent.equation, random.random()
    if kind < 0.15:
        return replace(parent, layers=_pick(random, LAYERS))
    if kind < 0.25:
        return replace(parent, bits=_pick(random, BITS))
    if kind < 0.35:
        return replace(parent, equation=replace(equation, embedding=_pick(random, EMBEDDINGS)))
    both = equation.attention == equation.ffn and random.random() < 0.5
    group = "attention" if random.random() < 0.5 else "ffn"
    term = _short(random, lambda: _changed(random, getattr(equation, group)))
    parts = {"attention": term, "ffn": term} if both else {group: term}
    return replace(parent, equation=replace(equation, **parts))


def crossed(random: Generator, a: Candidate, b: Candidate) -> Candidate:
    """Some parts of one, some of the other; now and then a term of b inside one of a."""

    def either(x, y):
        return x if random.random() < 0.5 else y

    e, f = a.equation, b.equation
    if random.random() < 0.5:
        equation = Equation(
            either(e.attention, f.attention), either(e.ffn, f.ffn), either(e.embedding, f.embedding)
        )
    else:
        graft = _pick(random, _parts(either(f.attention, f.ffn)))
        ffn = _short(random, lambda: _replaced(e.ffn, _pick(random, _parts(e.ffn)), graft))
        equation = replace(e, ffn=ffn, attention=ffn if e.attention == e.ffn else e.attention)
    return Candidate(equation, either(a.layers, b.layers), either(a.bits, b.bits))


def _candidate(random: Generator, equation: Equation) -> Candidate:
    return Candidate(equation, _pick(random, LAYERS), _pick(random, BITS))


def _term(random: Generator, depth: int = 1) -> Term:
    kind = random.random()
    if depth >= DEEPEST or kind < 0.5:
        return _made(random, _pick(random, LEAVES if depth > 1 else (*LEAVES, *NETWORKS)), depth)
    if kind < 0.8:
        return _made(random, _pick(random, TIES), depth)
    parts = [_term(random, depth + 1), _term(random, depth + 1)]
    return add(parts) if kind < 0.92 else multiply(parts)


def _made(random: Generator, name: str, depth: int) -> Term:
    kind = TERMS[name]
    return kind(*(_argument(random, f.name, depth) for f in fields(kind)))  # type: ignore[arg-type, call-arg]


def _argument(random: Generator, name: str, depth: int) -> int | Term:
    return _term(random, depth + 1) if name == "term" else _number(random, name)


def _number(random: Generator, name: str) -> int:
    if name == "rank" and random.random() < 0.5:
        name = "size"  # of a block tensor-train the ranks are small
    return _pick(random, NUMBERS[name])


def _changed(random: Generator, term: Term) -> Term:
    """A term near this one."""
    target = _pick(random, _parts(term))
    kind = random.random()
    numbers = [f.name for f in fields(target) if isinstance(getattr(target, f.name), int)]  # type: ignore[arg-type]
    if kind < 0.35 and numbers:
        name = _pick(random, numbers)
        new = replace(target, **{name: _number(random, name)})  # type: ignore[type-var]
    elif kind < 0.55:
        new = _wrapped(random, target)
    elif kind < 0.7 and (inner := _children(target)):
        new = _pick(random, inner)
    elif kind < 0.85:
        new = add([target, _made(random, _pick(random, LEAVES), 1)])
    else:
        new = _term(random, 2)
    return _replaced(term, target, new)


def _wrapped(random: Generator, term: Term) -> Term:
    name = _pick(random, TIES)
    kind = TERMS[name]
    given = (term if f.name == "term" else _number(random, f.name) for f in fields(kind))  # type: ignore[arg-type]
    return kind(*given)  # type: ignore[call-arg]


def _children(term: Term) -> list[Term]:
    if isinstance(term, Sum | Product):
        return list(term.terms)
    inner = getattr(term, "term", None)
    return [] if inner is None else [inner]


def _parts(term: Term) -> list[Term]:
    """The term and all terms inside it."""
    return [term, *(part for child in _children(term) for part in _parts(child))]


def _replaced(term: Term, old: Term, new: Term) -> Term:
    """The term with one part in the place of another."""
    if term is old:
        return new
    if isinstance(term, Sum | Product):
        parts = [_replaced(part, old, new) for part in term.terms]
        return add(parts) if isinstance(term, Sum) else multiply(parts)
    if not _children(term):
        return term
    return replace(term, term=_replaced(term.term, old, new))  # type: ignore[attr-defined, type-var]


def _short(random: Generator, make: Callable[[], Term]) -> Term:
    """What `make` gives, the first that is short enough."""
    for _ in range(20):
        term = make()
        if len(str(term)) <= LONGEST:
            return term
    return _made(random, _pick(random, LEAVES), DEEPEST)


def _pick(random: Generator, among):
    return among[int(random.integers(len(among)))]
