"""Lattices for tests: hypothesis strategies, and a big one of the kind that a water level makes."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from sprat.coding import entropy
from sprat.coding.patterns import Pattern
from sprat.coding.tensors import Lattice, LogScale

NEXT = {
    4: np.array([[0, 2], [2, 0], [1, 3], [3, 1]]),
    8: np.array([[0, 2], [5, 7], [1, 3], [6, 4], [2, 0], [4, 6], [3, 1], [7, 5]]),
}

#: (N, M) of patterns; (0, 1) is none.
PATTERNS = [(0, 1), (2, 4), (4, 8), (1, 2), (5, 6), (1, 3), (4, 9), (126, 127)]


def reconstruct(k: np.ndarray, trellis: int) -> np.ndarray:
    """Q of the symbols k: (m, n) int64."""
    if not trellis:
        return k
    q, state = np.empty_like(k), np.zeros(len(k), np.int64)
    for j in range(k.shape[1]):
        second = state & 1 if trellis == 8 else state >> 1
        q[:, j] = 2 * k[:, j] - second * np.sign(k[:, j])
        state = NEXT[trellis][state, k[:, j] & 1]
    return q


@st.composite
def lattices(draw: st.DrawFn, max_side: int = 24, patterns: bool = False) -> Lattice:
    """Any shape, any integers (also the ends of int32), any trellis, any classes; patterns: of zeros, and none."""
    m, n = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    kept, group = draw(st.sampled_from(PATTERNS)) if patterns else (0, 1)
    columns = n * kept if group > 1 else n  # of what is coded
    trellis = draw(st.sampled_from([0, 4, 8]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    limit = 2**30 - 1 if trellis else 2**31 - 1
    spread = draw(st.sampled_from([0.0, 0.3, 3.0, 300.0, 1e6, 1e12]))
    k = np.clip(np.rint(rng.standard_t(2, (m, columns)) * spread), -limit - 1, limit).astype(np.int64)
    q = reconstruct(k, trellis)
    pattern = None
    if group > 1:
        n *= group
        stay = rng.random((m, n // group, group)).argsort(2) < kept
        pattern = Pattern(kept, group, stay.reshape(m, n))
        q = pattern.expand(q)
    dtype = np.int16 if np.abs(q).max() < 2**15 and draw(st.booleans()) else np.int32
    top = draw(st.sampled_from([1, 100, 256]))
    row_class = rng.integers(256 - top, 256, m).astype(np.uint8)
    col_class = rng.integers(0, top, n).astype(np.uint8)
    resolution = draw(st.integers(1, 256))
    scales = [LogScale(rng.integers(-60, 61, s).astype(np.int32), resolution) for s in (m, n)]
    return Lattice(q.astype(dtype), scales[0], scales[1], row_class, col_class, trellis, pattern)


def large(rows: int, columns: int, step: float, trellis: int, seed: int = 0) -> Lattice:
    """Mixed Laplace and Gaussian integers whose deviations vary by row and column."""
    rng = np.random.default_rng(seed)
    row, col = np.exp2(rng.normal(0, 0.5, rows)), np.exp2(rng.normal(0, 0.6, columns))
    w = rng.standard_normal((rows, columns), np.float32)
    w *= np.where(rng.random((rows, columns), np.float32) < 0.3, 1.6, 0.8)
    k = np.rint(w * row[:, None] * col / step).astype(np.int64)
    scales = [LogScale.nearest(v, 16) for v in (row, col)]
    q = reconstruct(k, trellis).astype(np.int16)
    return Lattice(q, scales[0], scales[1], *entropy.classes(row / step, col), trellis)
