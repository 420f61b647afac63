"""coordinates(h), hypernetwork(h): one small network, for all layers together, gives each weight from where it stands.

    W_l[i, j] = s √(2/n) Σ v · sin(M sin(a_l + b_i + c_j)),   a_l, b_i, c_j, v of h numbers, M (h, h)

hypernetwork: a, b and c are learned tables, h (L + m + n) numbers. coordinates: they are linear in waves of the place,
sin and cos of 2^k π (i + ½) / m, so that the numbers stored hardly grow with the map. Sources: HyperNetworks (arXiv
1609.09106), Fourier features (2006.10739), sine networks (2006.09661).

No product is faster than with W: its operations are those of W, which is made once and kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sprat.equations.term import Factor, Space, Term, Values

#: Weights made at once.
STRIP = 1 << 20


@dataclass(frozen=True)
class Hypernetwork(Term):
    """See the module."""

    hidden: int
    name: ClassVar[str] = "hypernetwork"

    def _table(self, size: int) -> Factor:
        """What gives the codes of `size` places."""
        return Factor((size * self.hidden,), 1, 1.0)

    def _codes(self, stored: Tensor, size: int) -> Tensor:
        """(size, hidden)."""
        return stored.view(size, self.hidden)

    def factors(self, space: Space, gain: float = 1.0) -> dict[str, Factor]:
        h = self.hidden
        return {
            "layers": self._table(space.copies),
            "rows": self._table(space.rows),
            "columns": self._table(space.columns),
            "middle": Factor((h * h,), 1, 2 * h**-0.5),
            "last": Factor((h,), 1, h**-0.5),
            "scale": Factor((1,), space.copies, 0.0, gain),
        }

    def flops(self, space: Space) -> int:
        return 2 * space.rows * space.columns

    def dense(self, values: Values, space: Space, i: int) -> Tensor:
        return torch.cat([self._strip(values, space, i, *at) for at in self._strips(space)])

    def product(self, values: Values, space: Space, i: int, x: Tensor) -> Tensor:
        parts = [F.linear(x, self._strip(values, space, i, *at).to(x.dtype)) for at in self._strips(space)]
        return torch.cat(parts, -1)

    def _strips(self, space: Space) -> list[tuple[int, int]]:
        """(first row, row behind the last) of each."""
        rows = max(1, STRIP // (space.columns * self.hidden))
        return [(first, min(first + rows, space.rows)) for first in range(0, space.rows, rows)]

    def _strip(self, values: Values, space: Space, i: int, first: int, end: int) -> Tensor:
        h = self.hidden
        layer = self._codes(values["layers"][0], space.copies)[i]
        rows = self._codes(values["rows"][0], space.rows)[first:end]
        columns = self._codes(values["columns"][0], space.columns)
        hidden = torch.sin(layer + rows[:, None] + columns)
        hidden = torch.sin(hidden @ values["middle"][0].view(h, h))
        return (hidden @ values["last"][0]) * (values["scale"][i] * (2 / space.columns) ** 0.5)


@dataclass(frozen=True)
class Coordinates(Hypernetwork):
    """See the module."""

    name: ClassVar[str] = "coordinates"

    def _table(self, size: int) -> Factor:
        return Factor((2 * _octaves(size) * self.hidden,), 1, _octaves(size) ** -0.5)

    def _codes(self, stored: Tensor, size: int) -> Tensor:
        place = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) / size * math.pi
        angle = place * 2.0 ** torch.arange(_octaves(size), dtype=torch.float64)
        waves = torch.cat([angle.sin(), angle.cos()], 1).to(stored)
        return waves @ stored.view(-1, self.hidden)


def _octaves(size: int) -> int:
    return max(1, math.ceil(math.log2(size)))
