"""Terms that tie layers to each other: what they hold is stored fewer times than there are layers.

    shared(E, g)       W_l = E_j,  j = ⌊l g / L⌋: g copies for L layers, neighbours alike (g = 1: one for all)
    scaled(E)          W_l = diag(r_l) E_l diag(c_l), the scales r_l (m) and c_l (n) learned for each layer
    polynomial(d, E)   W_l = Σ_k T_k(t_l) E_k, k = 0 … d, T_k Chebyshev's polynomials, t_l evenly from -1 to 1
    mixture(k, E)      W_l = Σ_j a_lj E_j, j < k, the coefficients a_l learned for each layer

Sources: shared layers, Universal Transformers (arXiv 1807.03819) and ALBERT (1909.11942); mixtures of shared matrices,
Savarese & Maire (1902.09701) and hypernetworks (1609.09106). With `scaled(shared(E))` layers differ by their scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from torch import Tensor

from sprat.equations.term import Factor, Space, Term, Values, inside
from sprat.errors import RecipeError


@dataclass(frozen=True)
class Shared(Term):
    """See the module."""

    term: Term
    groups: int = 1
    name: ClassVar[str] = "shared"

    @property
    def slowness(self) -> float:  # type: ignore[override]  # of a class elsewhere
        return self.term.slowness

    def factors(self, space: Space, gain: float = 1.0) -> dict[str, Factor]:
        return inside(0, self.term.factors(self._space(space), gain))

    def flops(self, space: Space) -> int:
        return self.term.flops(self._space(space))

    def once(self, space: Space) -> int:
        return self.term.once(self._space(space))

    def dense(self, values: Values, space: Space, i: int) -> Tensor:
        return self.term.dense(values.of(0), self._space(space), i * self.groups // space.copies)

    def product(self, values: Values, space: Space, i: int, x: Tensor) -> Tensor:
        return self.term.product(values.of(0), self._space(space), i * self.groups // space.copies, x)

    def check(self, space: Space) -> None:
        if self.groups > space.copies:
            raise RecipeError(f"{self}: {self.groups} groups for {space.copies} layers; at most one a layer")
        self.term.check(self._space(space))

    def _space(self, space: Space) -> Space:
        return space.child(0, copies=self.groups)


@dataclass(frozen=True)
class Scaled(Term):
    """See the module."""

    term: Term
    name: ClassVar[str] = "scaled"

    @property
    def slowness(self) -> float:  # type: ignore[override]  # of a class elsewhere
        return self.term.slowness

    def factors(self, space: Space, gain: float = 1.0) -> dict[str, Factor]:
        return {
            "rows": Factor((space.rows,), space.copies, 0.0, 1.0),
            "columns": Factor((space.columns,), space.copies, 0.0, 1.0),
            **inside(0, self.term.factors(space.child(0), gain)),
        }

    def flops(self, space: Space) -> int:
        return self.term.flops(space.child(0)) + space.rows + space.columns

    def once(self, space: Space) -> int:
        return self.term.once(space.child(0))

    def dense(self, values: Values, space: Space, i: int) -> Tensor:
        w = self.term.dense(values.of(0), space.child(0), i)
        return values["rows"][i][:, None] * w * values["columns"][i]

    def product(self, values: Values, space: Space, i: int, x: Tensor) -> Tensor:
        rows, columns = values["rows"][i].to(x.dtype), values["columns"][i].to(x.dtype)
        return rows * self.term.product(values.of(0), space.child(0), i, columns * x)

    def check(self, space: Space) -> None:
        self.term.check(space.child(0))


class _Combined(Term):
    """W_l = Σ_j a_lj E_j."""

    term: Term

    @property
    def slowness(self) -> float:  # type: ignore[override]  # of a class elsewhere
        return self.term.slowness

    @property
    def count(self) -> int:
        """How many E there are."""
        raise NotImplementedError

    def coefficients(self, values: Values, space: Space, i: int) -> Tensor | np.ndarray:
        """a_i: (count,)."""
        raise NotImplementedError

    def flops(self, space: Space) -> int:
        return self.count * (self.term.flops(self._space(space)) + 2 * space.rows)

    def once(self, space: Space) -> int:
        return self.count * self.term.once(self._space(space))

    def dense(self, values: Values, space: Space, i: int) -> Tensor:
        return self._sum(values, space, i, lambda j: self.term.dense(values.of(0), self._space(space), j))

    def product(self, values: Values, space: Space, i: int, x: Tensor) -> Tensor:
        return self._sum(
            values, space, i, lambda j: self.term.product(values.of(0), self._space(space), j, x)
        )

    def check(self, space: Space) -> None:
        self.term.check(self._space(space))

    def _space(self, space: Space) -> Space:
        return space.child(0, copies=self.count)

    def _sum(self, values: Values, space: Space, i: int, part) -> Tensor:
        total, shares = None, self.coefficients(values, space, i)
        for j in range(self.count):
            value = part(j)
            share = shares[j].to(value.dtype) if isinstance(shares, Tensor) else float(shares[j])
            total = share * value if total is None else total + share * value
        assert total is not None
        return total


@dataclass(frozen=True)
class Polynomial(_Combined):
    """See the module."""

    degree: int
    term: Term
    name: ClassVar[str] = "polynomial"

    @property
    def count(self) -> int:
        return self.degree + 1

    def factors(self, space: Space, gain: float = 1.0) -> dict[str, Factor]:
        power = np.square(_chebyshev(space.copies, self.count)).sum(1).mean()  # of a layer, on average
        return inside(0, self.term.factors(self._space(space), gain * float(power) ** -0.5))

    def coefficients(self, values: Values, space: Space, i: int) -> np.ndarray:
        return _chebyshev(space.copies, self.count)[i]

    def check(self, space: Space) -> None:
        if self.count > space.copies:
            raise RecipeError(
                f"{self}: degree {self.degree} needs {self.count} coefficients for {space.copies} layers; at most "
                f"degree {space.copies - 1}"
            )
        super().check(space)


@dataclass(frozen=True)
class Mixture(_Combined):
    """See the module."""

    size: int
    term: Term
    name: ClassVar[str] = "mixture"

    @property
    def count(self) -> int:
        return self.size

    def factors(self, space: Space, gain: float = 1.0) -> dict[str, Factor]:
        mix = Factor((self.size,), space.copies, self.size**-0.5)
        return {"mix": mix, **inside(0, self.term.factors(self._space(space), gain))}

    def coefficients(self, values: Values, space: Space, i: int) -> Tensor:
        return values["mix"][i]


@lru_cache(256)
def _chebyshev(layers: int, count: int) -> np.ndarray:
    """(layers, count): T_k(t_l)."""
    t = np.linspace(-1.0, 1.0, layers) if layers > 1 else np.zeros(1)
    return np.polynomial.chebyshev.chebvander(t, count - 1)
