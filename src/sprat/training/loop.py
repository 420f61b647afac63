"""The training loop: contexts in an order that the seed and the step fix, gradients accumulated, progress, checkpoints.

A run that was stopped goes on from its checkpoint as if it had not been: the order is a function of (seed, step), the
learner's state and torch's random state are in the checkpoint, and so is the time spent. On a CPU a run by steps is the
same to the bit; one by the clock makes as many steps as the time allows, and is not.

Several processes (training/processes.py) learn from contexts of their own, average what they accumulated and then all
take the same step; the first one's clock is everybody's, and it writes the checkpoints.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sprat.errors import SpratError
from sprat.progress import Progress, silent
from sprat.training import processes
from sprat.training.checkpoint import Checkpoint
from sprat.training.schedule import Schedule

#: Share that each step keeps of the mean loss that progress shows.
SMOOTH = 0.9


class Learner(Protocol):
    """What is trained."""

    def learn(self, context: Tensor, share: float) -> float:
        """Add `share` times the gradient of the loss on a context, int64 (context,); the loss, in nats a token."""
        ...

    def average(self) -> None:
        """What was accumulated becomes its mean over all processes, as `processes.average` makes it."""
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
    """Where a run stood: contexts learnt from by all processes, seconds spent, and the loss of the last step."""

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
    """Train on `contexts`: (contexts, context) int64, `accumulate` a step in each process; a point a step.

    resume: go on from `checkpoint`, in as many processes. The last checkpoint, of the end, stays, for what is done with
    the result may fail: whoever has written that removes it.
    """
    points: list[Point] = []
    step, before = 0, 0.0
    count, rank = processes.count(), processes.rank()
    if checkpoint:
        checkpoint = replace(checkpoint, key={"number of processes": str(count), **checkpoint.key})
    if checkpoint and resume:
        saved = processes.shared(checkpoint.load)
        learner.restore(saved["learner"])
        points = [Point(**point) for point in saved["points"]]
        step, before = saved["step"], saved["seconds"]
        torch.set_rng_state(saved["random"][rank])
    started = time.monotonic() - before
    seconds = kept = before
    mean = points[-1].loss if points else 0.0

    while (done := schedule.done(step, seconds)) < 1:
        progress(f"{name}, loss {mean:.4f}" if points else name, done, 1)
        rate = schedule.at(step, seconds)
        numbers = ((step * accumulate + i) * count + rank for i in range(accumulate))
        losses = [learner.learn(contexts[place(len(contexts), n, seed)], 1 / accumulate) for n in numbers]
        learner.average()
        loss = processes.total(sum(losses))[0] / accumulate / count
        learner.step(rate)
        step += 1
        seconds = processes.shared(lambda: time.monotonic() - started)
        points.append(Point(step * accumulate * count, seconds, loss))
        mean = SMOOTH * mean + (1 - SMOOTH) * loss if len(points) > 1 else loss
        if checkpoint and seconds - kept > checkpoint.every:
            kept = seconds
            _keep(checkpoint, learner, points, step)
    if checkpoint:
        with suppress(SpratError):  # no room for it is no reason to lose the training
            _keep(checkpoint, learner, points, step)
    progress(f"{name}, loss {mean:.4f}", 1, 1)
    return points


def _keep(checkpoint: Checkpoint, learner: Learner, points: list[Point], step: int) -> None:
    """Called by every process; the first one writes."""
    random = processes.gathered(torch.get_rng_state())
    if processes.rank() == 0:
        state = {"learner": learner.state(), "points": [asdict(point) for point in points], "step": step}
        checkpoint.save({**state, "seconds": points[-1].seconds, "random": random})


def place(count: int, number: int, seed: int) -> int:
    """Which of `count` contexts is number `number`: each comes once, in a new order, before any comes again."""
    passed, at = divmod(number, count)
    return int(np.random.default_rng((seed, passed)).permutation(count)[at])
