"""A learned guess of what a candidate will score, from its formula and its counts: ranks many before few are trained.

Ridge regression on standardized features; the penalty's weight is chosen by leave-one-out error, which has a closed
form (Golub, Heath & Wahba 1979). Below LEAST rows there is no guess.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from sprat.equations.terms import TERMS
from sprat.search.candidate import Candidate, Network

LEAST = 8
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def features(candidate: Candidate, network: Network) -> np.ndarray:
    """(features,) of what is known before any training."""
    recipe = network.recipe
    counts = [
        np.log(network.numbers),
        np.log(network.flops),
        np.log(network.flops) ** 2 / 10,
        np.log(network.flops / network.numbers),
        np.log(recipe.width),
        np.log(recipe.layers),
        float(candidate.bits),
    ]
    for term in (candidate.equation.attention, candidate.equation.ffn):
        names = re.findall(r"[a-z]+|[+@]", str(term))
        counts += [float(min(names.count(name), 2)) for name in (*TERMS, "+", "@")]
    counts.append(float(str(candidate.equation.embedding) == "dense"))
    return np.array(counts)


class Ridge:
    """y from x, both seen before; x: (rows, features)."""

    def __init__(self, x: Sequence[np.ndarray], y: Sequence[float]):
        matrix, target = np.stack(x), np.array(y)
        self.middle, self.spread = matrix.mean(0), matrix.std(0)
        self.spread[self.spread == 0] = 1.0
        self.mean = target.mean()
        z, t = (matrix - self.middle) / self.spread, target - self.mean
        u, s, v = np.linalg.svd(z, full_matrices=False)
        errors = []
        for penalty in PENALTIES:
            share = s**2 / (s**2 + penalty)
            kept = (u**2 * share).sum(1) + 1 / len(t)
            errors.append(np.square((t - u @ (share * (u.T @ t))) / np.maximum(1 - kept, 1e-3)).mean())
        best = PENALTIES[int(np.argmin(errors))]
        self.weights = v.T @ (s / (s**2 + best) * (u.T @ t))

    def __call__(self, x: np.ndarray) -> float:
        return float(self.mean + (x - self.middle) / self.spread @ self.weights)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, of at least two values; ties as they come."""
    first, second = (np.argsort(np.argsort(values)) for values in (a, b))
    return float(np.corrcoef(first, second)[0, 1])
