"""circulant(b), toeplitz(b): W in blocks of b x b, each constant along its diagonals; sides are padded to whole blocks.

    circulant: block[i, j] = c[(i - j) mod b],  b numbers;    toeplitz: block[i, j] = c[i - j + b - 1],  2 b - 1 numbers

The product is a convolution: a Fourier transform of each block of x, one multiplication a frequency, and one transform
back; Toeplitz blocks inside circulant ones of 2 b. Source: Golub & Van Loan, sections 4.7 and 4.8; for networks, Cheng
et al., arXiv 1502.03436. A real transform of length b counts as 2.5 b log2 b operations. The blocks are transformed for
every product, once for all x (`once`): kept transforms would take more than twice the memory of the numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sprat.equations.term import Factor, Space, Term, Values, refuse_above


@dataclass(frozen=True)
class Circulant(Term):
    """See the module."""

    block: int
    name: ClassVar[str] = "circulant"
    slowness: ClassVar[float] = 12.0

    @property
    def _numbers(self) -> int:
        """Stored for a block."""
        return self.block

    @property
    def _length(self) -> int:
        """Of the transform."""
        return self.block

    @property
    def _transform(self) -> int:
        """Operations of one."""
        return math.ceil(2.5 * self._length * math.log2(self._length))

    def _grid(self, space: Space) -> tuple[int, int]:
        return -(-space.rows // self.block), -(-space.columns // self.block)

    def factors(self, space: Space, gain: float = 1.0) -> dict[str, Factor]:
        up, across = self._grid(space)
        return {"c": Factor((up * across * self._numbers,), space.copies, gain * space.columns**-0.5)}

    def flops(self, space: Space) -> int:
        up, across = self._grid(space)
        return self._transform * (up + across) + 8 * (self._length // 2 + 1) * up * across

    def once(self, space: Space) -> int:
        up, across = self._grid(space)
        return self._transform * up * across

    def dense(self, values: Values, space: Space, i: int) -> Tensor:
        (up, across), b = self._grid(space), self.block
        blocks = self._blocks(values, space, i)
        steps = torch.arange(b, device=blocks.device)
        w = blocks[:, :, self._diagonal(steps[:, None] - steps)]
        w = w.permute(0, 2, 1, 3).reshape(up * b, across * b)
        return w[: space.rows, : space.columns]

    def product(self, values: Values, space: Space, i: int, x: Tensor) -> Tensor:
        (_, across), b, length = self._grid(space), self.block, self._length
        blocks = F.pad(x, (0, across * b - space.columns)).unflatten(-1, (across, b))
        kernel = self._kernel(self._blocks(values, space, i))
        wide = torch.promote_types(x.dtype, torch.float32)
        bands = torch.fft.rfft(blocks.to(wide), length), torch.fft.rfft(kernel.to(wide), length)
        y = torch.fft.irfft(torch.einsum("...jf,ijf->...if", *bands), length)
        return y[..., :b].flatten(-2)[..., : space.rows].to(x.dtype)

    def check(self, space: Space) -> None:
        refuse_above(self, "a block of", self.block, min(space.rows, space.columns), space)

    def _blocks(self, values: Values, space: Space, i: int) -> Tensor:
        return values["c"][i].view(*self._grid(space), self._numbers)

    def _diagonal(self, offset: Tensor) -> Tensor:
        """Where the number of diagonal i - j stands."""
        return offset % self.block

    def _kernel(self, blocks: Tensor) -> Tensor:
        """What x is convolved with: (up, across, length)."""
        return blocks


@dataclass(frozen=True)
class Toeplitz(Circulant):
    """See the module."""

    name: ClassVar[str] = "toeplitz"

    @property
    def _numbers(self) -> int:
        return 2 * self.block - 1

    @property
    def _length(self) -> int:
        return 2 * self.block

    def _diagonal(self, offset: Tensor) -> Tensor:
        return offset + self.block - 1

    def _kernel(self, blocks: Tensor) -> Tensor:
        # Diagonals 0 … b - 1, a place that no product reaches, then -(b - 1) … -1.
        b = self.block
        return torch.cat([blocks[..., b - 1 :], torch.zeros_like(blocks[..., :1]), blocks[..., : b - 1]], -1)
