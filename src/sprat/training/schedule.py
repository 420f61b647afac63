"""How long to train, by steps or by the clock, and the learning rate on the way.

The rate rises linearly over the first steps and then falls linearly to nothing: for a budget that is known beforehand
that decay is at least as good as a cosine (Defazio et al., arXiv 2310.07831).
"""

from __future__ import annotations

from dataclasses import dataclass

from sprat.errors import RecipeError


@dataclass(frozen=True)
class Schedule:
    """`steps` of the optimizer, or `seconds` of the clock; the other is None."""

    rate: float
    """The highest learning rate."""
    steps: int | None = None
    seconds: float | None = None
    warm_up: int = 5
    """Steps until the rate is whole."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise RecipeError("training takes a number of steps or a time, one of the two")
        if (self.steps is not None and self.steps < 1) or (self.seconds is not None and not self.seconds > 0):
            what = f"{self.steps} steps" if self.seconds is None else f"{self.seconds:g} seconds"
            raise RecipeError(f"training takes at least one step, or more than 0 seconds, not {what}")

    def done(self, step: int, seconds: float) -> float:
        """The share of the training that lies behind, 0..1, before step number `step` at `seconds`."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.seconds is not None
        return min(1.0, seconds / self.seconds)

    def at(self, step: int, seconds: float) -> float:
        """The learning rate of step number `step`, counted from 0."""
        return self.rate * min(1.0, (step + 1) / self.warm_up) * (1 - self.done(step, seconds))
