"""sprat's measured points as a curve, to be read at a peer's bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

Points = list[tuple[int, float]]


def curves(rows: Mapping[str, dict[str, Any]]) -> dict[str, Points]:
    """Calibration -> (bytes, KL) of its rows, by rising bytes."""
    out: dict[str, Points] = {}
    for row in rows.values():
        if row["section"] == "sprat" and "failed" not in row:
            out.setdefault(row["settings"]["calibration"], []).append((row["bytes"], row["kl"]["value"]))
    return {name: sorted(points) for name, points in out.items()}


def at(points: Points, nbytes: float) -> float | None:
    """KL at `nbytes`, log KL taken as linear in bytes between neighbours; None outside of them."""
    for (a, kl_a), (b, kl_b) in pairwise(points):
        if a <= nbytes <= b and kl_a > 0 and kl_b > 0:
            share = (nbytes - a) / (b - a) if b > a else 0.0
            return math.exp((1 - share) * math.log(kl_a) + share * math.log(kl_b))
    return None


def bytes_at(points: Points, kl: float) -> float | None:
    """The inverse of `at`: bytes at which the curve reaches `kl`."""
    for (a, kl_a), (b, kl_b) in pairwise(points):
        if kl_a >= kl >= kl_b > 0 and kl_a > kl_b:
            return a + (b - a) * math.log(kl_a / kl) / math.log(kl_a / kl_b)
    return None
