"""The loop: steps until the length is reached, checkpoints on the way, exact when resumed.

The loop of training/loop.py, which healing runs on, is another: steps or the clock. Here a length may be tokens or the
processor time of all processes, rates follow the share of it that is over, what diverges is stopped, and the last
checkpoint stays until the file is written and scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sprat.errors import TrainingError
from sprat.golf.training import Training
from sprat.progress import Progress, silent
from sprat.training import processes
from sprat.training.checkpoint import Checkpoint

#: Shares of the training at which the loss is told.
REPORTS = 20


@dataclass(frozen=True)
class Point:
    """How a training stands. loss: nats a token, the mean since the point before."""

    share: float
    step: int
    tokens: int
    seconds: float
    loss: float


def run(
    training: Training,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
    watch: Callable[[Point], None] = lambda _: None,
) -> list[Point]:
    """Step until the length is reached; now and then, and at the end, save `checkpoint`.

    watch: is told REPORTS points, which are returned. Raises TrainingError where the loss diverges; the checkpoint
    before stays.
    """
    points: list[Point] = []
    losses: list[float] = []
    told = int(training.share * REPORTS)
    writes = checkpoint if processes.rank() == 0 else None
    last, saved = training.length.now(), time.monotonic()
    while training.share < 1:
        try:
            losses.append(training.advance())
        except TrainingError as error:
            kept = (
                f"; the last good checkpoint is {checkpoint.path}"
                if checkpoint and checkpoint.path.exists()
                else ""
            )
            raise TrainingError(f"{error}{kept}") from None
        now = training.length.now()
        spent, last = processes.total(now - last)[0], now
        # Processor time is that of all processes; the clock's is the same for all, but for a moment.
        if training.length.kind != "processor seconds":
            spent /= processes.count()
        training.seconds += training.length.pace * training.tokens / training.step or spent
        progress("training", training.share, 1.0)
        if int(training.share * REPORTS) > told:
            told = int(training.share * REPORTS)
            points.append(
                Point(
                    training.share,
                    training.step,
                    training.tokens,
                    training.seconds,
                    sum(losses) / len(losses),
                )
            )
            losses = []
            watch(points[-1])
        # What may be diverging takes no good checkpoint's place.
        due = writes and time.monotonic() - saved > writes.every and not training.above
        if writes and (due or training.share >= 1):
            writes.save(training.state())
            saved = time.monotonic()
    return points
