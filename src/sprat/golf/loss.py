"""Cross-entropy of a language model's head, its gradient made where the logits are read.

    L = mean_i ( log sum_j exp(z_ij) - z_i,y_i ),     dL/dz_ij = ( softmax(z_i)_j - [j = y_i] ) / n

A softmax over a vocabulary is bound by memory: written as operations of torch, logits go through it in float32 some ten
times. A few rows at a time stay in the cache, and forward and gradient share one exponential (as Liger Kernel does on
GPUs, arXiv 2410.10989, section 3.2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Rows that are read at a time: 64 of 4,096 logits in float32 are a megabyte, which a processor's cache holds. A GPU is
#: given more, since each of its operations takes a while to begin.
ROWS, GPU_ROWS = 64, 8192


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean nats a row, float32. logits: (n, vocabulary), any float type; target: (n,) int64. Differentiable once."""
    return _CrossEntropy.apply(logits, target)  # type: ignore[no-any-return]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        n, gradient = len(logits), torch.empty_like(logits)
        at_once = ROWS if logits.device.type == "cpu" else GPU_ROWS
        total = logits.new_zeros((), dtype=torch.float32)
        for first in range(0, n, at_once):
            gold = target[first : first + at_once, None]
            z = logits[first : first + at_once].to(torch.float32, copy=True)
            z -= z.amax(1, keepdim=True)
            told = z.gather(1, gold)
            whole = z.exp_().sum(1, keepdim=True)
            total += (whole.log() - told).sum()
            z /= n * whole
            z.scatter_add_(1, gold, torch.full_like(told, -1 / n))
            gradient[first : first + at_once] = z
        ctx.save_for_backward(gradient)
        return total / n

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return (gradient if above == 1 else gradient * above.to(gradient.dtype)), None
