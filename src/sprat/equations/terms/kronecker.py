"""kron(k, b): W = A_1 ⊗ B_1 + … + A_k ⊗ B_k, A_i (⌈m/b⌉, ⌈n/b⌉), B_i (b, b), cropped to (m, n).

    W[(i, p), (j, q)] = Σ A[i, j] B[p, q],   W x = Σ A X Bᵀ,  X (⌈n/b⌉, b) the padded x

Source: Van Loan & Pitsianis 1993; for networks, Zhou et al., arXiv 1507.05775.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sprat.equations.term import Factor, Space, Term, Values, refuse_above


@dataclass(frozen=True)
class Kronecker(Term):
    """See the module."""

    count: int
    block: int
    name: ClassVar[str] = "kron"

    def _outer(self, space: Space) -> tuple[int, int]:
        return -(-space.rows // self.block), -(-space.columns // self.block)

    def factors(self, space: Space, gain: float = 1.0) -> dict[str, Factor]:
        (up, across), b, k = self._outer(space), self.block, self.count
        return {
            "outer": Factor((k * up, across), space.copies, gain * (b / (k * space.columns)) ** 0.5),
            "inner": Factor((k * b, b), space.copies, b**-0.5),
        }

    def flops(self, space: Space) -> int:
        (up, across), b = self._outer(space), self.block
        return 2 * self.count * b * (up * across + b * min(up, across))

    def dense(self, values: Values, space: Space, i: int) -> Tensor:
        (up, across), b = self._outer(space), self.block
        outer, inner = self._parts(values, space, i)
        w = torch.einsum("kij,kpq->ipjq", outer, inner).reshape(up * b, across * b)
        return w[: space.rows, : space.columns]

    def product(self, values: Values, space: Space, i: int, x: Tensor) -> Tensor:
        (up, across), b = self._outer(space), self.block
        outer, inner = self._parts(values, space, i)
        blocks = F.pad(x, (0, across * b - space.columns)).unflatten(-1, (across, b))
        if across <= up:
            y = torch.einsum("kij,...kjp->...ip", outer, torch.einsum("...jq,kpq->...kjp", blocks, inner))
        else:
            y = torch.einsum("...kiq,kpq->...ip", torch.einsum("kij,...jq->...kiq", outer, blocks), inner)
        return y.flatten(-2)[..., : space.rows]

    def check(self, space: Space) -> None:
        refuse_above(self, "a block of", self.block, min(space.rows, space.columns), space)
        refuse_above(self, "a sum of", self.count, self.block**2, space)

    def _parts(self, values: Values, space: Space, i: int) -> tuple[Tensor, Tensor]:
        (up, across), k = self._outer(space), self.count
        return values["outer"][i].view(k, up, across), values["inner"][i].view(k, self.block, self.block)
