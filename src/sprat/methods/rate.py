"""The bits of a lattice as a function that has a slope: what a move of each integer would cost the entropy coder.

With b_c(k) the bits of symbol k in the context c of an element (coding/entropy.py), the slope at k is the central
difference  b_c'(k) = (b_c(k + 1) − b_c(k − 1)) / 2:  the derivative of the quadratic through the three, about 0 at
k = 0, and of k's sign elsewhere. What a pattern leaves out is not coded, and costs nothing (coding/patterns.py).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sprat.coding import entropy
from sprat.coding.tensors import BUCKETS, OFFSET, Lattice

#: Symbols with a price of their own; those beyond cost what the last one does.
MAX_SYMBOL = 255


class Rate:
    """The bits of plain lattices (trellis 0) under probability tables."""

    def __init__(self, tables: entropy.Tables):
        bits = torch.from_numpy(tables.bits(MAX_SYMBOL + 1)[0])  # (BUCKETS, 2 · MAX_SYMBOL + 3)
        self._bits = bits[:, 1:-1].reshape(-1)
        self._slopes = ((bits[:, 2:] - bits[:, :-2]) / 2).reshape(-1)

    def slopes(self, lattice: Lattice, q: Tensor) -> Tensor:
        """(m, n) float32: bits a unit at the integers q: (m, n) float32, in the contexts of `lattice`."""
        return self._slopes.to(q.device)[_places(lattice, q)]

    def bits(self, lattice: Lattice, q: Tensor) -> Tensor:
        """(m, n) float32: bits of each of the integers q."""
        bits = self._bits.to(q.device)[_places(lattice, q)]
        return bits if lattice.pattern is None else bits * torch.from_numpy(lattice.pattern.mask).to(q.device)


def _places(lattice: Lattice, q: Tensor) -> Tensor:
    """(m, n) int32: where in the flat tables an element's context and symbol are."""
    col_class, pattern = lattice.col_class, lattice.pattern
    if pattern is not None:  # the columns of a group share the class of those that are coded
        col_class = np.repeat(pattern.classes(col_class)[:: pattern.kept], pattern.group)
    classes = (lattice.row_class, col_class)
    rows, columns = (torch.from_numpy(c.astype(np.int32)).to(q.device) for c in classes)
    out = rows[:, None] + (columns - OFFSET)
    out.clamp_(0, BUCKETS - 1).mul_(2 * MAX_SYMBOL + 1).add_(MAX_SYMBOL)
    return out.add_(q.to(torch.int32).clamp_(-MAX_SYMBOL, MAX_SYMBOL))
