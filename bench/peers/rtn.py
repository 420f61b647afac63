"""Round to nearest, asymmetric: a group's least and greatest weight span its integers; zero is exact."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bench.packed import Grouped, to_number


def grid(w: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(scale, zero), each (m,), for the rows of w: (m, group). The span always holds 0, which is exact."""
    top = 2**bits - 1
    low, high = np.minimum(w.min(1), 0), np.maximum(w.max(1), 0)
    span = np.where(high > low, high - low, 1)
    scale = to_number(span / top, "bf16")
    return scale, np.clip(np.rint(-low / scale), 0, top).astype(np.uint8)


def nearest(w: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int) -> np.ndarray:
    """The integers, uint8, of weights w on the grid that broadcasts to them."""
    return np.clip(np.rint(w / scale) + zero, 0, 2**bits - 1).astype(np.uint8)


def quantize(w: Tensor, bits: int, group: int) -> Grouped:
    """w: (m, n). The last group of a row is shorter where `group` does not divide n."""
    weights = w.detach().float().numpy()
    m, n = weights.shape
    q = np.empty((m, n), np.uint8)
    scales, zeros = [], []
    for start in range(0, n, group):
        part = weights[:, start : start + group]
        scale, zero = grid(part, bits)
        q[:, start : start + group] = nearest(part, scale[:, None], zero[:, None], bits)
        scales.append(scale)
        zeros.append(zero)
    return Grouped(q, np.stack(scales, 1), np.stack(zeros, 1), bits, group, (m, n))
