"""Two models' right and wrong answers to the same questions: accuracies, their difference, and the flips.

Equal accuracy can hide answers that changed both ways (Dutta et al. 2024, "Accuracy is Not All You Need",
arXiv:2407.09141), so the answers are paired. With n questions, b of them lost (right before, wrong after) and c
won, the difference is (c − b) / n. Its interval and the test both come from b and c, never from the accuracies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from sprat.prove.intervals import Estimate


@dataclass(frozen=True)
class Paired:
    """What n questions, answered by both models, say."""

    items: int
    accuracy_original: Estimate
    accuracy_compressed: Estimate
    difference: Estimate
    """Compressed less original."""
    lost: int
    """Right in the original, wrong in the compressed model."""
    won: int
    mcnemar_p: float
    """How often chance alone would split the flips this unevenly."""

    def to_json(self) -> dict[str, Any]:
        """As the proof's `tasks` have it."""
        estimates = ("accuracy_original", "accuracy_compressed", "difference")
        return {
            "items": self.items,
            **{name: getattr(self, name).to_json() for name in estimates},
            "flips": {"lost": self.lost, "won": self.won},
            "mcnemar_p": self.mcnemar_p,
        }


def paired(original: np.ndarray, compressed: np.ndarray, level: float = 0.95) -> Paired:
    """From two boolean arrays (items,): was each question answered right? At least one item."""
    n = len(original)
    lost, won = int((original & ~compressed).sum()), int((~original & compressed).sum())
    return Paired(
        items=n,
        accuracy_original=wilson(int(original.sum()), n, level),
        accuracy_compressed=wilson(int(compressed.sum()), n, level),
        difference=tango(lost, won, n, level),
        lost=lost,
        won=won,
        mcnemar_p=mcnemar(lost, won),
    )


def wilson(right: int, n: int, level: float = 0.95) -> Estimate:
    """A proportion with its score interval (Wilson 1927)."""
    z = _normal(level)
    p, spread = right / n, z * z / n
    centre = (p + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), level)


def tango(lost: int, won: int, n: int, level: float = 0.95) -> Estimate:
    """(won − lost) / n with the score interval of a paired difference.

    Tango 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B. The interval holds every
    difference that the score test does not reject. Unlike a bootstrap's it has a width where nothing flipped.
    """
    z, value = _normal(level), (won - lost) / n

    def score(difference: float) -> float:
        # The likeliest share of lost answers, given that difference.
        b = (2 * n - won + lost) * difference - lost - won
        c = -lost * difference * (1 - difference)
        share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * (2 * share + difference * (1 - difference))
        distance = won - lost - n * difference
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    return Estimate(
        value,
        _crossing(lambda d: score(d) - z, -1.0, value),
        _crossing(lambda d: score(d) + z, value, 1.0),
        level,
    )


def mcnemar(lost: int, won: int) -> float:
    """Two-sided exact p-value: of lost + won fair coins, at most as many heads as the rarer kind, or as tails."""
    n, fewer = lost + won, min(lost, won)
    term = total = 1
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        total += term
    return min(1.0, 2 * total / 2**n)


def _crossing(f: Callable[[float], float], low: float, high: float) -> float:
    """Where f, which falls from low to high, changes sign, to within 1e-17 of the range."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) > 0 else (low, middle)
    return (low + high) / 2


def _normal(level: float) -> float:
    return NormalDist().inv_cdf(0.5 + level / 2)
