"""Two trainings beside each other: Welch's test over seeds, and an interval over the validation documents.

Welch (Biometrika 1947): t = (mean_a - mean_b) / sqrt(v_a / n_a + v_b / n_b) of the seeds' bits per byte, with
(v_a / n_a + v_b / n_b)^2 / ( (v_a / n_a)^2 / (n_a - 1) + (v_b / n_b)^2 / (n_b - 1) ) degrees of freedom: whether
another seed would have turned it round. The interval, paired over documents (prove/intervals.py), says whether another
text would have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, stdev, variance
from typing import Any

import numpy as np

from sprat.errors import ProofError
from sprat.golf.result import GAINED, counted_by
from sprat.prove.intervals import Estimate, estimate, resample

_ITERATIONS, _EPS = 300, 1e-15


@dataclass(frozen=True)
class Side:
    """One training: bits per byte of its seeds, and its largest file."""

    seeds: int
    mean: float
    deviation: float
    largest: int


@dataclass(frozen=True)
class Comparison:
    """difference: bits per byte of a less those of b, with its interval over documents; p: Welch's, two-sided, None
    where a side has a single seed; unequal: what the two do not share and should."""

    a: Side
    b: Side
    difference: Estimate
    t: float | None
    freedom: float | None
    p: float | None
    unequal: tuple[str, ...]

    def sentences(self) -> list[str]:
        d = self.difference
        better = "the second" if d.value > 0 else "the first"
        by = f"{better} is better by {abs(d.value):.4f} bits a byte" if d.value else "neither is better"
        lines = [f"{by} (95 % interval of the difference over documents {d.low:.4f} to {d.high:.4f})"]
        if self.p is None:
            lines.append("one seed a side says nothing of other seeds: train with --seeds 3 for Welch's test")
        else:
            lines.append(
                f"Welch's test over seeds: t {self.t:.2f}, {self.freedom:.1f} degrees of freedom, p {self.p:.2g}"
            )
        lines += [f"not equal: {what}" for what in self.unequal]
        return lines


def compare(a: dict[str, Any], b: dict[str, Any]) -> Comparison:
    """Two results on the same validation documents."""
    if a["validation"]["hash"] != b["validation"]["hash"]:
        raise ProofError(
            "the two were scored on different documents: give both the same text and validation share"
        )
    sides, costs = [], []
    nbytes = np.array([n for _, n in a["runs"][0]["documents"]], np.float64)
    for result in (a, b):
        scores = [run["bits_per_byte"] for run in result["runs"]]
        deviation = stdev(scores) if len(scores) > 1 else 0.0
        sides.append(Side(len(scores), fmean(scores), deviation, max(run["bytes"] for run in result["runs"])))
        costs.append(np.mean([_bits(run, nbytes) for run in result["runs"]], axis=0))
    sums = np.stack([costs[0] - costs[1], nbytes], axis=1)
    difference = estimate(sums, resample(sums), lambda s: s[..., 0] / s[..., 1])
    t = freedom = p = None
    if min(side.seeds for side in sides) > 1:
        t, freedom, p = welch(*([run["bits_per_byte"] for run in result["runs"]] for result in (a, b)))
    first, second = ({**GAINED, **result, "counted by": counted_by(result)} for result in (a, b))
    unequal = tuple(
        f"{key}: {_plain(first[key])} and {_plain(second[key])}"
        for key in ("cap", "length", "counted by", "threads", "processes", "device", "machine")
        if first[key] != second[key]
    )
    if a["text"]["hash"] != b["text"]["hash"]:
        unequal += ("training text",)
    return Comparison(sides[0], sides[1], difference, t, freedom, p, unequal)


def _bits(run: dict[str, Any], nbytes: np.ndarray) -> np.ndarray:
    """What each document of a seed costs in bits, (documents,), in the order that `nbytes` has.

    The hash of held-out documents is the same in whatever order their files were named, so only their bytes tell
    which is which; paired in another order, the interval would be one of documents that have nothing in common.
    """
    bits, own = np.array(run["documents"], np.float64).T
    if np.array_equal(own, nbytes):
        return bits
    if len(np.unique(own)) < len(own) or not np.array_equal(np.sort(own), np.sort(nbytes)):
        raise ProofError(
            "the two were scored on the same documents in another order, and their bytes do not tell which is which: "
            "train one of them again with its validation files in the order of the other"
        )
    out = np.empty_like(bits)
    out[np.argsort(nbytes)] = bits[np.argsort(own)]
    return out


def _plain(value: object) -> str:
    return " ".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def welch(a: list[float], b: list[float]) -> tuple[float, float, float]:
    """(t, degrees of freedom, two-sided p) of two samples of at least two each."""
    u, v = variance(a) / len(a), variance(b) / len(b)
    if u + v == 0:
        same = fmean(a) == fmean(b)
        return (0.0 if same else math.copysign(math.inf, fmean(a) - fmean(b))), math.inf, float(same)
    t = (fmean(a) - fmean(b)) / math.sqrt(u + v)
    freedom = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
    return t, freedom, incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b): by its continued fraction (DLMF 8.17.22), evaluated from the
    front by Lentz's method. Two-sided tails of Student's t are I_{v / (v + t^2)}(v / 2, 1 / 2)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    value = d
    for m in range(1, _ITERATIONS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / (1 + term * d or tiny), 1 + term / c or tiny
            value *= c * d
        if abs(c * d - 1) < _EPS:
            break
    return math.exp(log_front) * value / a
