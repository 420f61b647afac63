"""monarch(b, s): two block-diagonal matrices with the transposition of a b x b grid between them, s times as wide.

    W[(i, q), (p, j)] = Σ_t L[q, i, p, t] R[p, q, t, j],   p, q < b,  t < s,  i < ⌈m/b⌉,  j < ⌈n/b⌉

that is, W's blocks (q, p), rows and columns taken in that order, have rank s: s b (m + n) numbers, as many as a low
rank of s b, and a rank of up to s b². s = 1 is Monarch (Dao et al., arXiv 2204.00595), larger s the block tensor-train
(Qiu et al., 2406.06248). Sides that b does not divide are padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sprat.equations.term import Factor, Space, Term, Values, refuse_above


@dataclass(frozen=True)
class Monarch(Term):
    """See the module."""

    blocks: int
    rank: int = 1
    name: ClassVar[str] = "monarch"

    def _inner(self, space: Space) -> tuple[int, int]:
        return -(-space.rows // self.blocks), -(-space.columns // self.blocks)

    def factors(self, space: Space, gain: float = 1.0) -> dict[str, Factor]:
        (up, across), b, s = self._inner(space), self.blocks, self.rank
        return {
            "left": Factor((b * up, b * s), space.copies, gain * (b * s) ** -0.5),
            "right": Factor((b * b * s, across), space.copies, (b / space.columns) ** 0.5),
        }

    def flops(self, space: Space) -> int:
        up, across = self._inner(space)
        return 2 * self.blocks**2 * self.rank * (up + across)

    def dense(self, values: Values, space: Space, i: int) -> Tensor:
        (up, across), b = self._inner(space), self.blocks
        left, right = self._parts(values, space, i)
        w = torch.einsum("qipt,pqtj->iqpj", left, right).reshape(up * b, b * across)
        return w[: space.rows, : space.columns]

    def product(self, values: Values, space: Space, i: int, x: Tensor) -> Tensor:
        (up, across), b, s = self._inner(space), self.blocks, self.rank
        left, right = values["left"][i].view(b, up, b * s), values["right"][i].view(b, b * s, across)
        blocks = F.pad(x, (0, b * across - space.columns)).reshape(-1, b, across)
        middle = torch.bmm(blocks.transpose(0, 1), right.mT)  # (p, tokens, q t)
        middle = middle.view(b, -1, b, s).permute(2, 1, 0, 3).reshape(b, -1, b * s)  # (q, tokens, p t)
        y = torch.bmm(middle, left.mT).permute(1, 2, 0)  # (tokens, i, q)
        return y.reshape(*x.shape[:-1], up * b)[..., : space.rows]

    def check(self, space: Space) -> None:
        shorter = min(space.rows, space.columns)
        refuse_above(self, "a grid of", self.blocks, shorter, space)
        refuse_above(self, "a rank of", self.rank, -(-shorter // self.blocks), space)

    def _parts(self, values: Values, space: Space, i: int) -> tuple[Tensor, Tensor]:
        (up, across), b, s = self._inner(space), self.blocks, self.rank
        return values["left"][i].view(b, up, b, s), values["right"][i].view(b, b, s, across)
