"""A product of low rank beside a lattice, trained in healing: what scales alone cannot say.

    y = W x + B (A x),     A (r, n) drawn small, B (m, r) from nothing, both by Adam with the scales (methods/heal.py)

A few numbers for thousands of weights: they learn from little text, where the weights themselves would learn it by
heart. All maps that are stacked in one entry share A, as they share their input. Stored as two thin lattices whose
steps are a share of each component's size, so that rounding them loses next to nothing of what they say.
Source: LoRA (Hu et al., arXiv 2106.09685); beside a quantized matrix QLoRA (2305.14314) and LQ-LoRA (2311.12023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sprat.coding.tensors import OFFSET, ZERO, Entry, Lattice, LogScale, LowRank

#: Steps of the stored factors, in units of a component's root mean square, the finest first: they add about 0.8, 2
#: and 5 % of their own energy as error, and take 3.8, 3 and 2.4 bits a number.
FINENESS = (0.3, 0.5, 0.8)
#: What a fit leaves room for: bits that a number takes at most, and bytes that a product takes beside its numbers.
BITS, BESIDE = 4.0, 96
#: Of Adam, beside the rate of the scales: these are no logarithms.
RATE = 0.5


@dataclass(frozen=True)
class Adapter:
    """right: A, (r, n); left: B, (m, r), the rows of all maps of an entry."""

    left: Tensor
    right: Tensor

    def added(self, x: Tensor, out: Tensor, first: int) -> Tensor:
        """`out` of the map whose rows begin at `first`, with the product of its input x."""
        left = self.left[first : first + out.shape[-1]]
        return out + (x @ self.right.to(x.dtype).T) @ left.to(x.dtype).T

    def stored(self, rest: Lattice, inputs: np.ndarray, fineness: float) -> LowRank:
        """Beside the lattice `rest`. inputs: (n,) factors that the inputs had while this was trained."""
        left, right = self.left.detach().double().numpy(), self.right.detach().double().numpy() * inputs
        return LowRank(_thin(left, fineness, 0), _thin(right, fineness, 1), rest)


def begin(entry: Entry, rank: int, generator: torch.Generator) -> Adapter:
    """The adapter of `entry`, which says nothing yet."""
    m, n = entry.tensor.shape
    right = torch.randn(rank, n, generator=generator) / math.sqrt(n)
    return Adapter(torch.zeros(m, rank, requires_grad=True), right.requires_grad_())


def room(shapes: Sequence[tuple[int, int]], rank: int) -> int:
    """Bytes that adapters of lattices of these shapes take at most."""
    return math.ceil(sum(rank * (m + n) * BITS / 8 + BESIDE for m, n in shapes)) if rank else 0


def _thin(values: np.ndarray, fineness: float, along: int) -> Lattice:
    """values: (m, n), rounded in steps of `fineness` times the root mean square over the axis `along`."""
    size = np.sqrt(np.square(values).mean(axis=along))
    steps = LogScale.nearest(fineness * np.maximum(size, 1e-9), 8)
    ones = LogScale(np.zeros(values.shape[along], np.int32), 1)
    q = np.rint(values / np.expand_dims(steps.values(), along)).astype(np.int32)
    classes = {n: np.full(n, OFFSET, np.uint8) for n in values.shape}
    bucket = np.full(values.shape[1], ZERO + round(-4 * math.log2(fineness)), np.uint8)
    row, col = (ones, steps) if along == 0 else (steps, ones)
    return Lattice(q, row, col, classes[values.shape[0]], bucket)
