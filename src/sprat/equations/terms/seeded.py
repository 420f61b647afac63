"""seeded: a random matrix of signs that a seed stands for, times one learned scale: W = s R / √n.

The signs are the bits of NumPy's Philox generator, whose stream is part of what NumPy promises to keep. Alone it learns
nothing; `scaled(seeded)` has learned scales for rows and columns, `mixture(k, seeded)` learned sums of k such
matrices (PRANC, arXiv 2206.08464; MCNC, 2406.19301), and `+ lowrank(r)` adds a learned part.
Drawing the signs is not counted among the operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sprat.equations.term import Factor, Space, Term, Values

#: Matrices of at most so many signs are kept; larger ones are drawn again for each product, a strip at a time.
KEPT = 1 << 22


@dataclass(frozen=True)
class Seeded(Term):
    """See the module."""

    name: ClassVar[str] = "seeded"
    slowness: ClassVar[float] = 1.0

    def factors(self, space: Space, gain: float = 1.0) -> dict[str, Factor]:
        return {"scale": Factor((1,), space.copies, 0.0, gain)}

    def flops(self, space: Space) -> int:
        return 2 * space.rows * space.columns + 2 * space.rows

    def dense(self, values: Values, space: Space, i: int) -> Tensor:
        scale = values["scale"][i]
        return scale * (_signs(space, i, 0, space.rows).to(scale) * space.columns**-0.5)

    def product(self, values: Values, space: Space, i: int, x: Tensor) -> Tensor:
        strip = max(1, KEPT // space.columns)
        parts = [
            F.linear(x, _signs(space, i, first, min(strip, space.rows - first)).to(x))
            for first in range(0, space.rows, strip)
        ]
        return torch.cat(parts, -1) * (values["scale"][i].to(x.dtype) * space.columns**-0.5)


def _signs(space: Space, i: int, first: int, count: int) -> Tensor:
    """Rows first … first + count - 1 of copy i: (count, columns) of ±1."""
    draw = _kept if space.rows * space.columns <= KEPT else _drawn
    return draw(space.seed, i, first, count, space.columns)


def _drawn(seed: int, i: int, first: int, count: int, columns: int) -> Tensor:
    steps = -(-columns // 256)  # a step of the generator is 256 bits; a row begins one
    generator = np.random.Philox(key=np.array([seed, i], np.uint64), counter=first * steps)
    raw = generator.random_raw(count * steps * 4).astype("<u8").view(np.uint8)
    bits = np.unpackbits(raw.reshape(count, steps * 32), axis=1, count=columns)
    return torch.from_numpy(bits.astype(np.int8) * 2 - 1)


_kept = lru_cache(1024)(_drawn)
