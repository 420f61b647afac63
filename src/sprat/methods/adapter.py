"""A product of low rank, alone or beside a lattice, trained in healing: what scales alone cannot say.

    y = diag(r) (W + B A) diag(k) x,     A (r, n) and B (m, r) by Adam with the scales r and k (methods/heal.py)

A few numbers for thousands of weights: they learn from little text, where the weights themselves would learn it by
heart. All maps that are stacked in one entry share A, as they share their input. A new product begins with A drawn
small and B nothing, and is stored as two thin lattices whose steps are a share of each component's size, so that
rounding them loses next to nothing of what they say. One that the file holds begins as it is, and goes back to the
steps that it has: what was not moved by half a step is stored as it was.
Source: LoRA (Hu et al., arXiv 2106.09685); beside a quantized matrix QLoRA (2305.14314) and LQ-LoRA (2311.12023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sprat.coding.tensors import OFFSET, ZERO, Entry, Lattice, LogScale, LowRank

#: Steps of the stored factors, in units of a component's root mean square, the finest first: they add about 0.8, 2
#: and 5 % of their own energy as error, and take 3.8, 3 and 2.4 bits a number.
FINENESS = (0.3, 0.5, 0.8)
#: What a fit leaves room for: bits that a number takes at most, and bytes that a product takes beside its numbers.
BITS, BESIDE = 4.0, 96
#: Of Adam, beside the rate of the scales: these are no logarithms. For an A of the size that `begin` draws it with.
RATE = 0.5


@dataclass(frozen=True)
class Adapter:
    """right: A, (r, n); left: B, (m, r), the rows of all maps of an entry; stands: what the file holds of it."""

    left: Tensor
    right: Tensor
    stands: LowRank | None = None

    def rates(self) -> tuple[float, float]:
        """Of Adam, of left and right: the same product in other units of what lies between the two learns alike."""
        if self.stands is None:
            return RATE, RATE
        unit = float(np.sqrt(np.square(self.stands.right.dense()).sum(1).mean())) or 1.0
        return RATE / unit, RATE * unit

    def added(self, x: Tensor, out: Tensor, first: int) -> Tensor:
        """`out` of the map whose rows begin at `first`, with the product of its input x."""
        left = self.left[first : first + out.shape[-1]]
        return out + (x @ self.right.to(x.dtype).T) @ left.to(x.dtype).T

    def stored(
        self,
        rest: Lattice | None,
        outputs: np.ndarray,
        inputs: np.ndarray,
        fineness: float,
        resolution: int | None = None,
    ) -> LowRank:
        """Beside `rest`, if anything. outputs: (m,), inputs: (n,) factors that both ends had while this was trained."""
        left = self.left.detach().cpu().double().numpy() * outputs[:, None]
        right = self.right.detach().cpu().double().numpy() * inputs
        if self.stands is None:
            return LowRank(_thin(left, fineness, 0), _thin(right, fineness, 1), rest)
        wider = fineness / FINENESS[0]
        return LowRank(
            _again(self.stands.left, left, outputs, wider, resolution, 0),
            _again(self.stands.right, right, inputs, wider, resolution, 1),
            rest,
        )


def begin(entry: Entry, rank: int, generator: torch.Generator, device: torch.device) -> Adapter:
    """The adapter of `entry`, which says nothing yet. generator: of the processor."""
    m, n = entry.tensor.shape
    right = torch.randn(rank, n, generator=generator) / math.sqrt(n)
    return Adapter(torch.zeros(m, rank, device=device).requires_grad_(), right.to(device).requires_grad_())


def going_on(tensor: LowRank, device: torch.device) -> Adapter:
    """The product that is stored in `tensor`, to be trained further.

    On a trellis no integer of a factor moves alone: such a one learns by the scale at its end only.
    """
    left, right = (
        torch.from_numpy(t.dense()).to(device).requires_grad_(not t.trellis)
        for t in (tensor.left, tensor.right)
    )
    return Adapter(left, right, tensor)


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


def _again(
    was: Lattice, values: np.ndarray, outer: np.ndarray, wider: float, resolution: int | None, along: int
) -> Lattice:
    """values: (m, n), on the steps of `was`, `wider` times as wide and times `outer` across the axis `along`.

    Its scales go there as near as their grids come, and the integers say the rest; on a trellis none of them moves.
    """
    wider = 1.0 if was.trellis else wider

    def scale(of: LogScale, by: np.ndarray | float) -> LogScale:
        return LogScale.nearest(of.values() * by, min(resolution or of.resolution, of.resolution))

    row, col = scale(was.row, (outer, wider)[along]), scale(was.col, (wider, outer)[along])
    if was.trellis:
        return replace(was, row=row, col=col)
    q = np.rint(values / row.values()[:, None] / col.values()).astype(np.int32)
    # The coder's contexts are quarters of an octave of the integers' deviation.
    row_class = np.clip(was.row_class.astype(int) - round(4 * math.log2(wider)), 0, 255).astype(np.uint8)
    return replace(was, q=q, row=row, col=col, row_class=row_class, pattern=None)
