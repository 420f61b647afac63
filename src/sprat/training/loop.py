"""The training loop: contexts in an order that the seed and the step fix, gradients accumulated, progress, checkpoints.

A run that was stopped goes on from its checkpoint as if it had not been: the order is a function of (seed, step), the
learner's state and torch's random state are in the checkpoint, and so is the time spent. On a CPU a run by steps is the
same to the bit; one by the clock makes as many steps as the time allows, and is not. One process: several would have
to average what `learn` accumulates before each `step`, which is not built.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sprat.progress import Progress, silent
from sprat.training.checkpoint import Checkpoint
from sprat.training.schedule import Schedule

#: Share that each step keeps of the mean loss that progress shows.
SMOOTH = 0.9


class Learner(Protocol):
    """What is trained."""

    def learn(self, context: Tensor, share: float) -> float:
        """Add `share` times the gradient of the loss on a context, int64 (context,); the loss, in nats a token."""
        ...

    def step(self, rate: float) -> None:
        """One step of the optimizer along what was accumulated, which is then forgotten."""
        ...

    def state(self) -> dict[str, Any]:
        """All that `learn` and `step` depend on, between two steps."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Become what gave `state`."""
        ...


@dataclass(frozen=True)
class Point:
    """Where a run stood: contexts learnt from, seconds spent, and the loss of the last step."""

    contexts: int
    seconds: float
    loss: float


def train(
    learner: Learner,
    contexts: Tensor,
    schedule: Schedule,
    *,
    accumulate: int = 1,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
    name: str = "training",
    progress: Progress = silent,
) -> list[Point]:
    """Train on `contexts`: (contexts, context) int64, `accumulate` a step; a point a step.

    resume: go on from `checkpoint`. The checkpoint is removed at the end; an interruption leaves the last one.
    """
    points: list[Point] = []
    step, before = 0, 0.0
    if checkpoint and resume:
        saved = checkpoint.load()
        learner.restore(saved["learner"])
        points = [Point(**point) for point in saved["points"]]
        step, before = saved["step"], saved["seconds"]
        torch.set_rng_state(saved["random"])
    started = time.monotonic() - before
    kept, mean = before, points[-1].loss if points else 0.0

    def elapsed() -> float:
        return time.monotonic() - started

    while (done := schedule.done(step, elapsed())) < 1:
        progress(f"{name}, loss {mean:.4f}" if points else name, done, 1)
        rate = schedule.at(step, elapsed())
        order = (place(len(contexts), step * accumulate + i, seed) for i in range(accumulate))
        loss = sum(learner.learn(contexts[c], 1 / accumulate) for c in order) / accumulate
        learner.step(rate)
        step += 1
        points.append(Point(step * accumulate, elapsed(), loss))
        mean = SMOOTH * mean + (1 - SMOOTH) * loss if len(points) > 1 else loss
        if checkpoint and elapsed() - kept > checkpoint.every:
            kept = elapsed()
            checkpoint.save(
                {
                    "learner": learner.state(),
                    "points": [asdict(point) for point in points],
                    "step": step,
                    "seconds": kept,
                    "random": torch.get_rng_state(),
                }
            )
    progress(f"{name}, loss {mean:.4f}", 1, 1)
    if checkpoint:
        checkpoint.remove()
    return points


def place(count: int, number: int, seed: int) -> int:
    """Which of `count` contexts is number `number`: each comes once, in a new order, before any comes again."""
    passed, at = divmod(number, count)
    return int(np.random.default_rng((seed, passed)).permutation(count)[at])
