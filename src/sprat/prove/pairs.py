"""Which of several models differ: the paired bootstrap of their KL's differences, corrected for how many are asked.

All models are measured on the same contexts, so what makes a context hard for all of them cancels in a difference.
One draw of contexts serves every pair. The p-value of a difference is the one that its interval implies (the smallest α
whose interval of level 1 − α leaves 0 out, see intervals.py); Holm's step-down correction (1979) then keeps the
probability of calling *any* two equal models different at 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from sprat.prove.intervals import Estimate, estimate, expanded_tail, gather, resample

#: Draws: the smallest p-value that they can tell must survive Holm's correction for dozens of pairs.
RESAMPLES = 20_000


@dataclass(frozen=True)
class Pair:
    """Two models, the first of which has the lower KL."""

    lower: str
    higher: str
    difference: Estimate
    """KL of the higher less that of the lower, in nats a token; its interval is not corrected."""
    p: float
    p_holm: float
    distinguishable: bool
    """Whether p_holm is at most 1 less the interval's level."""


def pairs(
    kl: Mapping[str, np.ndarray],
    tokens: np.ndarray,
    clusters: np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> list[Pair]:
    """Every pair of models, the most different first.

    kl: model -> (contexts,) KL summed over each context's positions; tokens: (contexts,) how many those are; clusters:
    (contexts,) what belongs together (`Contexts.clusters`).
    """
    names = list(kl)
    sums = gather(np.stack([*(kl[name] for name in names), tokens], axis=1), clusters)
    draws = resample(sums, resamples, seed)
    found = []
    for i, j in combinations(range(len(names)), 2):
        a, b = (j, i) if sums[:, i].sum() > sums[:, j].sum() else (i, j)

        def difference(s: np.ndarray, a: int = a, b: int = b) -> np.ndarray:
            return (s[..., b] - s[..., a]) / s[..., -1]

        told = estimate(sums, draws, difference, level)
        found.append((names[a], names[b], told, p_value(difference(draws), len(sums))))
    corrected = holm([p for *_, p in found])
    out = [
        Pair(lower, higher, told, p, p_holm, p_holm <= 1 - level + 1e-12)
        for (lower, higher, told, p), p_holm in zip(found, corrected, strict=True)
    ]
    return sorted(out, key=lambda pair: (pair.p_holm, -pair.difference.value))


def p_value(draws: np.ndarray, clusters: int) -> float:
    """Two-sided p-value of "the difference is 0" from bootstrap draws of it; 1 where one cluster tells nothing.

    It cannot be smaller than the number of draws can tell.
    """
    if clusters < 2:
        return 1.0
    tail = max(min(np.mean(draws <= 0), np.mean(draws >= 0)), 1 / (len(draws) + 1))
    if tail >= 0.5:
        return 1.0
    low, high = 1e-12, 1.0  # of α; expanded_tail falls with the level 1 − α
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if expanded_tail(clusters, 1 - middle) < tail else (low, middle)
    return float(high)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order of `p`: each may be held against the whole family's level."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        out[i] = worst
    return out
