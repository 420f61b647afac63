"""How long a training is, and what of its rates each moment has."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sprat.errors import RecipeError

KINDS = ("tokens", "seconds", "processor seconds")


@dataclass(frozen=True)
class Length:
    """A training's end: `amount` of a kind: "tokens" read; "seconds" of the clock on the wall; "processor seconds",
    of all threads together, which other work on the machine slows and does not use up. pace: seconds that a token is
    taken to cost, in the clock's place; 0: what it does cost."""

    kind: str
    amount: float
    pace: float = 0.0

    def __post_init__(self) -> None:
        assert self.kind in KINDS
        if not 0 < self.amount < 1e15:
            raise RecipeError(f"a training's length must be above 0 {self.kind}, not {self.amount:g}")

    def now(self) -> float:
        """The clock that belongs to it, in seconds."""
        return time.process_time() if self.kind == "processor seconds" else time.monotonic()

    def share(self, tokens: int, seconds: float) -> float:
        """How much of the training is over, 0 to 1, after so many tokens and seconds."""
        return min(1.0, (tokens if self.kind == "tokens" else seconds) / self.amount)


def rate(share: float, warm_up: float, cool_down: float) -> float:
    """Of the full rate, 0 to 1: rising, constant, and falling linearly to 0 at the end (a trapezoid, WSD)."""
    rising = 1.0 if share >= warm_up else share / warm_up
    falling = 1.0 if share <= 1 - cool_down else (1 - share) / cool_down
    return min(rising, falling)
