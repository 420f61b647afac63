"""Bytes and KL as functions of the water level, without rounding anything of the model.

An element whose expected deviation is s steps costs bits(s) and c² D(s) / 2 nats (level.curve; c²/24 where the step
is fine, its whole variance where it is not: reverse water-filling, Cover & Thomas section 10.3). What is rounded is not
the weight alone but the weight and the errors fed back into it: with e = Σ_(i<j) (U_ij / U_jj)² for column j, its
variance is s² + e D(s). Raising the level by a quarter octave moves every element down by one bucket, so one histogram
a map serves all levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, from_numpy

from sprat.coding import entropy
from sprat.coding.tensors import BUCKETS, OFFSET, ZERO
from sprat.level.curve import Curve
from sprat.methods.waterlevel import Steps

#: What real weights cost beyond the curve's samples of one shape, the coder's chunks included: on SmolLM2-135M from 30
#: to 80 MB it was 1.0046 to 1.0070.
EXCESS = 1.0055


@dataclass(frozen=True)
class Spread:
    """How many elements of a map expect which deviation: histogram over row class + column class, at `level`.

    echo: mean of e over the columns; 0 without feedback. curve: of the map's own recipe, where that differs from the
    model's (embedding and head know no constraint).
    """

    histogram: np.ndarray
    level: float
    echo: float = 0.0
    curve: Curve | None = None

    @property
    def weights(self) -> int:
        return int(self.histogram.sum())

    @staticmethod
    def of(steps: Steps, level: float, echo: float = 0.0, curve: Curve | None = None) -> Spread:
        rows = np.bincount(steps.row_class, minlength=256).astype(np.float64)
        columns = np.bincount(steps.col_class, minlength=256).astype(np.float64)
        return Spread(np.rint(np.convolve(rows, columns)), level, echo, curve)


def echo(u: Tensor, steps: Steps) -> float:
    """Mean over columns of the feedback's variance by the error's, both in squared steps. u: (n, n) upper."""
    column = from_numpy(steps.col.values()).to(u)
    fed = u.square().T @ (column / u.diagonal()).square()
    return float((fed / column.square() - 1).mean())


def predicted_bits(spreads: list[Spread], level: float, curve: Curve) -> float:
    """Bits of the coded integers of all maps at `level`."""
    total = 0.0
    for spread in spreads:
        rates = spread.curve or curve
        buckets, _ = _at(spread, level, rates)
        bits = np.interp(buckets, np.arange(BUCKETS), rates.bits)
        bits += np.maximum(buckets - (BUCKETS - 1), 0) / 4  # finer than any bucket: a bit an octave
        total += float((spread.histogram * bits).sum())
    return EXCESS * total


def predicted_kl(spreads: list[Spread], level: float, curve: Curve) -> float:
    """Nats per token: the sum of all elements' shares, ½ c² D(s)."""
    return (
        level**2 / 2 * sum(float((s.histogram * _at(s, level, s.curve or curve)[1]).sum()) for s in spreads)
    )


def _at(spread: Spread, level: float, curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Buckets of what is rounded at `level`, one an entry of the histogram, and its distortion in squared steps."""
    buckets = np.arange(spread.histogram.size) - OFFSET - 4 * np.log2(level / spread.level)
    variance = np.asarray(entropy.bucket_std(buckets), np.float64) ** 2
    distortion = np.minimum(np.interp(buckets, np.arange(BUCKETS), curve.distortion), variance)
    return ZERO + 2 * np.log2(variance + spread.echo * distortion), distortion


def solve_level(bits_at, target: float, low: float = 1e-8, high: float = 1.0) -> float:
    """The level at which the falling function `bits_at` meets `target` (bisection on the logarithm)."""
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if bits_at(middle) > target else (low, middle)
    return high
