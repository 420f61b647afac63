"""The budget: find the level whose file weighs at most the budget and at least 99 % of it, by weighing real files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sprat.coding.container import Assembled
from sprat.errors import BudgetError
from sprat.level.predict import solve_level
from sprat.level.rounding import Rounded
from sprat.sizes import format_bytes

#: A file is accepted between this share of the budget and the budget.
LEAST = 0.99
#: What the search aims at, and what it is content with in its first rounds: a last percent is worth 5 % of the KL.
AIM, CONTENT = 0.998, 0.996
EAGER = 3
ROUNDS = 6


@dataclass(frozen=True)
class Fitted:
    """The chosen level, what was rounded at it, and the file, not yet on disk."""

    level: float
    rounded: Rounded
    file: Assembled


def file_bytes(_: Rounded, file: Assembled) -> int:
    """What is weighed where the budget is one for the file."""
    return file.nbytes


def search(
    budget: int,
    predicted: Callable[[float], float],
    overhead: int,
    build: Callable[[float], tuple[Rounded, Assembled]],
    weigh: Callable[[Rounded, Assembled], int] = file_bytes,
) -> Fitted:
    """Secant steps on the logarithm of predicted bytes, corrected by every file that was weighed.

    predicted(level): bytes that depend on the level; overhead: those that do not; build(level) rounds and assembles;
    weigh gives what must stay within `budget`.
    Raises BudgetError when no level fits, naming the smallest budget that works.
    """
    best: Fitted | None = None
    heaviest = 0
    low, high = 0.0, math.inf  # levels known to be too fine, and known to fit
    weighed: list[tuple[float, int]] = []  # predicted bytes, and real ones
    for attempt in range(ROUNDS):
        level = solve_level(predicted, _aim(weighed, AIM * budget, overhead))
        if not low and level >= high:
            break  # the finest level that there is fits
        if not low < level < high:
            level = math.sqrt(low * high) if high < math.inf else 2 * low
        rounded, file = build(level)
        nbytes = weigh(rounded, file)
        if nbytes <= budget:
            high = min(high, level)
            if nbytes > heaviest:
                best, heaviest = Fitted(level, rounded, file), nbytes
            if best is not None and nbytes >= (CONTENT if attempt < EAGER else LEAST) * budget:
                return best
        else:
            low = max(low, level)
        weighed.append((predicted(level), nbytes))
        del rounded, file  # two bytes a weight, which the next build needs
    if best is None:
        raise BudgetError(f"no level fits {format_bytes(budget)} after {ROUNDS} tries; allow a little more")
    return best


def _aim(weighed: list[tuple[float, int]], target: float, overhead: int) -> float:
    """The predicted bytes whose file should weigh `target`.

    Through the two files nearest to the target where two were weighed: their line has the right overhead and the right
    correction of the prediction at once, of which a single file gives only one.
    """
    nearest = sorted(weighed, key=lambda pair: abs(pair[1] - target))[:2]
    if not nearest:
        return target - overhead
    predicted, nbytes = nearest[0]
    slope = max(nbytes - overhead, 1) / max(predicted, 1)
    if len(nearest) == 2 and nearest[1][0] != predicted:
        slope = (nearest[1][1] - nbytes) / (nearest[1][0] - predicted)
    return max(predicted + (target - nbytes) / min(max(slope, 0.25), 4.0), 1.0)


def refuse_impossible(budget: int, original: int, floor: int, name: str) -> None:
    """Raise BudgetError for a budget that no level reaches or that the original would fit into."""
    if budget > original:
        raise BudgetError(
            f"{name} has {format_bytes(original)} ({original:,} bytes) in bf16: a budget of {budget:,} bytes is "
            "above that; nothing needs to be compressed"
        )
    if budget < floor:
        raise BudgetError(
            f"{name} does not fit into {budget:,} bytes: the smallest budget that works is {floor:,} bytes "
            f"({format_bytes(floor)})"
        )
