"""The bits that the weights will take, in the loss of the last part of training.

A row w of n weights, taken as Laplacian with b = mean |w| and rounded in steps of delta, entropy-codes in about
    n log2(1 + 2 e b / delta)      bits
(a Laplacian's entropy is log2(2 e b), less log2 delta; Cover & Thomas, section 8.3; the 1 lets a row that rounds to
nothing cost nothing). Its gradient, sign(w) / (delta + 2 e b), draws rows that do not earn their bits to zero. delta is
the step that the cap asks for, b bits a weight of a Gaussian with the matrix's own deviation (as in golf/noise.py),
when this part begins; it stays, so that smaller weights are fewer bits. As in learned compression, loss and rate are
minimized together (Balle et al., arXiv 1611.01704).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class RateTerm:
    """Of matrices (m, n) with a step each."""

    def __init__(self, weights: Sequence[Tensor], steps: Sequence[float]):
        self.weights, self.steps = weights, list(steps)
        self.count = sum(w.numel() for w in weights)

    @staticmethod
    def begin(weights: Sequence[Tensor], bits: float) -> RateTerm:
        """At the steps that `bits` a weight ask for now."""
        scale = math.sqrt(2 * math.pi * math.e) * 2.0**-bits
        return RateTerm(weights, [scale * float(w.detach().square().mean().sqrt()) for w in weights])

    def bits(self) -> Tensor:
        """Bits a weight, a scalar with a gradient."""
        total = self.weights[0].new_zeros(())
        for w, step in zip(self.weights, self.steps, strict=True):
            if step > 0:
                total = total + w.shape[1] * torch.log2(1 + 2 * math.e / step * w.abs().mean(1)).sum()
        return total / self.count
