"""Paired bootstrap intervals over contexts.

Neighbouring tokens are not independent, so the unit that is drawn again is a whole context with both models'
figures in it (cluster bootstrap, Davison & Hinkley 1997 §3.8; paired, so what both models share cancels).
With few contexts the plain percentile interval is too short; its percentiles are moved outwards as a t
interval of the same size would ask (the "expanded percentile interval", Hesterberg 2015,
doi:10.1080/00031305.2015.1089789 §4.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

#: A statistic of summed columns: (..., columns) -> (...)
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval: with probability `level` the text's own sampling explains low..high."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high, "level": self.level}


def resample(sums: np.ndarray, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Draw the rows of `sums` (contexts, columns) with replacement; the summed columns of each draw.

    Returns (resamples, columns). One draw serves every figure, which keeps them paired.
    """
    contexts = len(sums)
    weights = np.full(contexts, 1.0 / contexts)
    counts = np.random.default_rng(seed).multinomial(contexts, weights, size=resamples)
    return counts.astype(np.float64) @ sums.astype(np.float64)


def estimate(sums: np.ndarray, draws: np.ndarray, statistic: Statistic, level: float = 0.95) -> Estimate:
    """`statistic` of the summed columns of `sums`, with the interval that `draws` give it."""
    value = float(statistic(sums.sum(axis=0, dtype=np.float64)))
    if len(sums) < 2:
        return Estimate(value, -math.inf, math.inf, level)
    tail = expanded_tail(len(sums), level)
    low, high = np.quantile(statistic(draws), [tail, 1 - tail])
    return Estimate(value, float(low), float(high), level)


def expanded_tail(clusters: int, level: float) -> float:
    """The tail probability whose normal quantile is the t quantile, widened by √(n/(n−1)), n = clusters."""
    normal = NormalDist()
    quantile = -t_quantile(normal.inv_cdf(0.5 + level / 2), clusters - 1)
    return normal.cdf(quantile * math.sqrt(clusters / (clusters - 1)))


def t_quantile(z: float, freedom: int) -> float:
    """Student's t quantile where the normal one is z (1 and 2 degrees exact; else Cornish–Fisher)."""
    if freedom <= 2:
        p = NormalDist().cdf(z)
        return math.tan(math.pi * (p - 0.5)) if freedom == 1 else (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
