"""What an equation is: one term says how the maps of one kind, one a layer, get their weights from fewer numbers.

A term is a value: it prints as a formula (grammar.py reads it back), names the factors that are stored, counts
operations, and computes from the factors' values either the dense matrix, which is the reference, or the product
y = W x, which is what is fast. Terms are in terms/; here are what they share, and their sums and products.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from sprat.errors import RecipeError


@dataclass(frozen=True)
class Space:
    """Where a term stands: `copies` matrices (rows, columns), one a layer; seed: of what is drawn and not stored."""

    rows: int
    columns: int
    copies: int = 1
    seed: int = 0

    def child(self, number: int, **changes: int) -> Space:
        """The space of part `number` of a term, which draws other numbers."""
        return replace(self, seed=(self.seed * 31 + number + 1) % 2**31, **changes)


@dataclass(frozen=True)
class Factor:
    """A stored tensor, `copies` of them: two axes where it acts as a matrix, one where it is a list of numbers.

    It begins as mean + deviation x a normal.
    """

    shape: tuple[int, ...]
    copies: int
    deviation: float
    mean: float = 0.0

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.copies


class Values:
    """The factors' tensors by name: `values["left"][i]` is copy i."""

    def __init__(self, tensors: Mapping[str, Sequence[Tensor]], prefix: str = ""):
        self._tensors, self._prefix = tensors, prefix

    def __getitem__(self, name: str) -> Sequence[Tensor]:
        return self._tensors[self._prefix + name]

    def of(self, number: int) -> Values:
        """Those of part `number`."""
        return Values(self._tensors, f"{self._prefix}{number}_")


class Term(ABC):
    """A way to make `space.copies` matrices. Frozen dataclasses whose fields are whole numbers and terms."""

    name: ClassVar[str]
    slowness: ClassVar[float] = 7.0
    """How many times longer an operation of `product` takes than one of a single large product, about (measured on a
    CPU, 1,024 inputs at once, forward and backward)."""

    @abstractmethod
    def factors(self, space: Space, gain: float = 1.0) -> dict[str, Factor]:
        """What is stored. As it begins, W x has gain² times the variance of x."""

    @abstractmethod
    def flops(self, space: Space) -> int:
        """Floating-point operations of `product` for one x, two a multiplication with an addition."""

    def once(self, space: Space) -> int:
        """Those of `product` on the factors alone, as many for many x as for one."""
        return 0

    @abstractmethod
    def dense(self, values: Values, space: Space, i: int) -> Tensor:
        """W of copy i: (rows, columns)."""

    @abstractmethod
    def product(self, values: Values, space: Space, i: int, x: Tensor) -> Tensor:
        """W x. x: (..., columns) -> (..., rows)."""

    def check(self, space: Space) -> None:  # noqa: B027  most terms fit everywhere
        """RecipeError where the term does not fit the space."""

    def parameters(self, space: Space) -> int:
        """Stored numbers, of all copies."""
        return sum(factor.size for factor in self.factors(space).values())

    def __str__(self) -> str:
        given = [getattr(self, f.name) for f in fields(self)]  # type: ignore[arg-type]
        while given and given[-1] == fields(self)[len(given) - 1].default:  # type: ignore[arg-type]
            given.pop()
        return f"{self.name}({', '.join(map(str, given))})" if given else self.name


def inside(number: int, factors: Mapping[str, Factor]) -> dict[str, Factor]:
    """The factors of part `number` under the names by which `Values.of` finds them."""
    return {f"{number}_{name}": factor for name, factor in factors.items()}


@dataclass(frozen=True)
class Sum(Term):
    """W = A + B + …"""

    terms: tuple[Term, ...]
    name: ClassVar[str] = "+"

    def __post_init__(self) -> None:
        if len(self.terms) < 2 or any(isinstance(term, Sum) for term in self.terms):
            raise ValueError("a sum has at least two terms, none a sum: see `add`")

    def factors(self, space: Space, gain: float = 1.0) -> dict[str, Factor]:
        share = gain * len(self.terms) ** -0.5
        return _merged(inside(j, t.factors(space.child(j), share)) for j, t in enumerate(self.terms))

    @property
    def slowness(self) -> float:  # type: ignore[override]  # of a class elsewhere
        return max(t.slowness for t in self.terms)

    def flops(self, space: Space) -> int:
        return sum(t.flops(space) for t in self.terms) + (len(self.terms) - 1) * space.rows

    def once(self, space: Space) -> int:
        return sum(t.once(space) for t in self.terms)

    def dense(self, values: Values, space: Space, i: int) -> Tensor:
        parts = (t.dense(values.of(j), space.child(j), i) for j, t in enumerate(self.terms))
        return _total(parts)

    def product(self, values: Values, space: Space, i: int, x: Tensor) -> Tensor:
        parts = (t.product(values.of(j), space.child(j), i, x) for j, t in enumerate(self.terms))
        return _total(parts)

    def check(self, space: Space) -> None:
        for term in self.terms:
            term.check(space)

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms))


@dataclass(frozen=True)
class Product(Term):
    """W = A B …, as wide between two of them as W's shorter side."""

    terms: tuple[Term, ...]
    name: ClassVar[str] = "@"

    def __post_init__(self) -> None:
        if len(self.terms) < 2 or any(isinstance(term, Product) for term in self.terms):
            raise ValueError("a product has at least two factors, none a product: see `multiply`")

    def factors(self, space: Space, gain: float = 1.0) -> dict[str, Factor]:
        gains = [gain] + [1.0] * (len(self.terms) - 1)
        return _merged(
            inside(j, t.factors(s, g))
            for j, (t, s, g) in enumerate(zip(self.terms, self._spaces(space), gains, strict=True))
        )

    @property
    def slowness(self) -> float:  # type: ignore[override]  # of a class elsewhere
        return max(t.slowness for t in self.terms)

    def flops(self, space: Space) -> int:
        return sum(t.flops(s) for t, s in zip(self.terms, self._spaces(space), strict=True))

    def once(self, space: Space) -> int:
        return sum(t.once(s) for t, s in zip(self.terms, self._spaces(space), strict=True))

    def dense(self, values: Values, space: Space, i: int) -> Tensor:
        out: Tensor | None = None
        for j, (term, at) in enumerate(zip(self.terms, self._spaces(space), strict=True)):
            w = term.dense(values.of(j), at, i)
            out = w if out is None else out @ w
        assert out is not None
        return out

    def product(self, values: Values, space: Space, i: int, x: Tensor) -> Tensor:
        for j, at in reversed(list(enumerate(self._spaces(space)))):
            x = self.terms[j].product(values.of(j), at, i, x)
        return x

    def check(self, space: Space) -> None:
        for term, at in zip(self.terms, self._spaces(space), strict=True):
            term.check(at)

    def _spaces(self, space: Space) -> list[Space]:
        sides = [space.rows, *[min(space.rows, space.columns)] * (len(self.terms) - 1), space.columns]
        return [space.child(j, rows=m, columns=n) for j, (m, n) in enumerate(pairwise(sides))]

    def __str__(self) -> str:
        return " @ ".join(f"({t})" if isinstance(t, Sum) else str(t) for t in self.terms)


def add(terms: Sequence[Term]) -> Term:
    """Their sum; sums among them are opened."""
    flat = [part for term in terms for part in (term.terms if isinstance(term, Sum) else (term,))]
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def multiply(terms: Sequence[Term]) -> Term:
    """Their product; products among them are opened."""
    flat = [part for term in terms for part in (term.terms if isinstance(term, Product) else (term,))]
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def refuse_above(term: Term, what: str, value: int, most: int, space: Space) -> None:
    """RecipeError where a number of `term` is larger than a map of this shape allows."""
    if value > most:
        raise RecipeError(
            f"{term}: {what} {value} does not fit a map of {space.rows} x {space.columns}; at most {most}"
        )


def _merged(parts) -> dict[str, Factor]:
    return {name: factor for part in parts for name, factor in part.items()}


def _total(parts) -> Tensor:
    first, *rest = parts
    for part in rest:
        first = first + part
    return first
