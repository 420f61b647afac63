"""Bytes and KL as functions of the water level, without rounding anything.

An element whose expected deviation is s steps costs h(s) bits, the entropy of the coder's own table for that bucket,
and c² D(s) / 2 nats, with D(s) ≈ 1 / (12 + 1 / s²): c²/24 where the step is fine, its whole variance where it is not
(reverse water-filling, Cover & Thomas section 10.3). Raising the level by a quarter octave moves every element down by
one bucket, so one histogram a map serves all levels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from sprat.coding import entropy
from sprat.coding.tensors import BUCKETS, OFFSET
from sprat.methods.waterlevel import Steps

#: Distortion of the trellis over plain rounding's at the same rate, about 0.9 dB (Marcellin and Fischer 1990, table V).
TRELLIS_GAIN = 0.81
#: Classes are sums of two bytes.
_SPAN = 512


@dataclass(frozen=True)
class Spread:
    """How many elements of a map expect which deviation: histogram over row class + column class, at `level`."""

    histogram: np.ndarray
    level: float

    @property
    def weights(self) -> int:
        return int(self.histogram.sum())

    @staticmethod
    def of(steps: Steps, level: float) -> Spread:
        rows = np.bincount(steps.row_class, minlength=256).astype(np.float64)
        columns = np.bincount(steps.col_class, minlength=256).astype(np.float64)
        return Spread(np.rint(np.convolve(rows, columns)), level)


def predicted_bits(spreads: list[Spread], level: float, trellis: bool) -> float:
    """Bits of the coded integers of all maps at `level`."""
    total = 0.0
    for spread in spreads:
        buckets = np.arange(spread.histogram.size) - OFFSET - 4 * np.log2(level / spread.level)
        bits = np.interp(buckets, np.arange(BUCKETS), _entropies(trellis))
        bits += np.maximum(buckets - (BUCKETS - 1), 0) / 4  # finer than any bucket: a bit an octave
        total += float((spread.histogram * bits).sum())
    return total


def predicted_kl(spreads: list[Spread], level: float, trellis: bool) -> float:
    """Nats per token: the sum of all elements' shares, ½ c² D(s)."""
    total = 0.0
    for spread in spreads:
        buckets = np.arange(spread.histogram.size) - OFFSET - 4 * np.log2(level / spread.level)
        s = np.asarray(entropy.bucket_std(buckets), np.float64)
        total += float((spread.histogram / (12 + 1 / np.maximum(s, 1e-12) ** 2)).sum())
    return level**2 / 2 * total * (TRELLIS_GAIN if trellis else 1.0)


@functools.cache
def _entropies(trellis: bool) -> np.ndarray:
    """(BUCKETS,) bits a symbol of each bucket's prior, the mean of both quantizers under a trellis."""
    bits = entropy.prior_tables().bits(2**12).astype(np.float64)
    p = np.exp2(-bits)
    h = (p * bits).sum(-1) / p.sum(-1)
    return h.mean(0) if trellis else h[0]


def solve_level(bits_at, target: float, low: float = 1e-8, high: float = 1.0) -> float:
    """The level at which the falling function `bits_at` meets `target` (bisection on the logarithm)."""
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if bits_at(middle) > target else (low, middle)
    return high
