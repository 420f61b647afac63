"""dense: W is stored as it is. lowrank(r): W = A B, A (m, r), B (r, n)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from sprat.equations.term import Factor, Space, Term, Values, refuse_above


@dataclass(frozen=True)
class Dense(Term):
    """See the module."""

    name: ClassVar[str] = "dense"
    slowness: ClassVar[float] = 1.0

    def factors(self, space: Space, gain: float = 1.0) -> dict[str, Factor]:
        shape = (space.rows, space.columns)
        return {"w": Factor(shape, space.copies, gain * space.columns**-0.5)}

    def flops(self, space: Space) -> int:
        return 2 * space.rows * space.columns

    def dense(self, values: Values, space: Space, i: int) -> Tensor:
        return values["w"][i]

    def product(self, values: Values, space: Space, i: int, x: Tensor) -> Tensor:
        return F.linear(x, values["w"][i])


@dataclass(frozen=True)
class LowRank(Term):
    """See the module."""

    rank: int
    name: ClassVar[str] = "lowrank"
    slowness: ClassVar[float] = 2.0

    def factors(self, space: Space, gain: float = 1.0) -> dict[str, Factor]:
        m, n, r = space.rows, space.columns, self.rank
        return {
            "left": Factor((m, r), space.copies, gain * r**-0.5),
            "right": Factor((r, n), space.copies, n**-0.5),
        }

    def flops(self, space: Space) -> int:
        return 2 * self.rank * (space.rows + space.columns)

    def dense(self, values: Values, space: Space, i: int) -> Tensor:
        return values["left"][i] @ values["right"][i]

    def product(self, values: Values, space: Space, i: int, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, values["right"][i]), values["left"][i])

    def check(self, space: Space) -> None:
        refuse_above(self, "rank", self.rank, min(space.rows, space.columns), space)
