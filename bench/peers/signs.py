"""Signs with a scale a group, to nearest: what formats such as Q1_0 and TQ1_0 hold, of a model not trained for it.

Binary as in BWN (Rastegari et al., arXiv 1603.05279, section 3.1), ternary as in TWN (Li et al., arXiv 1605.04711,
section 2.2).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bench.packed import Grouped, to_number

#: Of a group's mean magnitude: what is smaller becomes 0 in a ternary one.
THRESHOLD = 0.7


def quantize(w: Tensor, bits: int, group: int) -> Grouped:
    """w: (m, n). bits: 1 for ±s, s the group's mean magnitude, which is the least squares scale; 2 for −s, 0 and s, s
    the mean magnitude of what is kept."""
    weights = w.detach().float().numpy()
    m, n = weights.shape
    q, scales = np.empty((m, n), np.uint8), []
    for start in range(0, n, group):
        part = weights[:, start : start + group]
        size = np.abs(part)
        kept = size > THRESHOLD * size.mean(1, keepdims=True) if bits == 2 else np.ones_like(size, bool)
        scales.append(to_number((size * kept).sum(1) / np.maximum(kept.sum(1), 1), "bf16"))
        q[:, start : start + group] = np.sign(part) * kept + 1 if bits == 2 else part >= 0
    scale = np.stack(scales, 1)
    if bits == 2:
        return Grouped(q, scale, np.ones(scale.shape, np.uint8), bits, group, (m, n))
    return Grouped(q, 2 * scale, np.full(scale.shape, 0.5, np.float32), bits, group, (m, n))
