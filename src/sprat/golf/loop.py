"""The loop: steps until the length is reached, checkpoints on the way, exact when resumed.

The loop of training/loop.py, which healing runs on, is another: steps or the clock. Here a length may be tokens or the
processor time of all processes, rates follow the share of it that is over, what diverges is stopped, and the last
checkpoint stays until the file is written and scored. As there, what a clock counts is the same in all processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sprat.errors import TrainingError
from sprat.golf.schedule import Length
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
    saved: Mapping[str, Any] | None = None,
) -> list[Point]:
    """Step until the length is reached; now and then, and at the end, save `checkpoint`.

    watch: is told REPORTS points, which are returned. saved: what `checkpoint` held, to go on from, its points too.
    Raises TrainingError where the loss diverges, or ends above knowing nothing; the checkpoint before stays.
    """
    points: list[Point] = []
    losses: list[float] = []
    if saved:
        training.restore(saved)
        points = [Point(**point) for point in saved["points"]]
        losses = list(saved["losses"])
    told = int(training.share * REPORTS)
    writes = checkpoint if processes.rank() == 0 else None
    last, written = training.length.now(), time.monotonic()
    while training.share < 1:
        try:
            losses.append(training.advance())
            now = training.length.now()
            spent, last = counted(training.length, now - last), now
            training.seconds += training.length.pace * training.tokens / training.step or spent
            if training.share >= 1 and training.above:
                raise training.diverged(losses[-1], "ended diverging", training.step)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"out of memory on {training.device}: a smaller `batch`, with a larger `accumulate`, takes less and "
                "trains the same"
            ) from error
        except TrainingError as error:
            path = checkpoint.path if checkpoint else None
            kept = f"; the last good checkpoint is {path}" if path and path.exists() else ""
            raise TrainingError(f"{error}{kept}") from None
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
        due = writes and (time.monotonic() - written > writes.every or training.share >= 1)
        if writes and due and not training.above:
            before = {"points": [asdict(point) for point in points], "losses": losses}
            writes.save({**training.state(), **before})
            written = time.monotonic()
    return points


def counted(length: Length, spent: float) -> float:
    """Of `spent` seconds of this process's clock, those that count, the same in every process: rates, and the end,
    follow them. Of processor time it is the sum over all processes; of the clock's, what passed in the first one."""
    if length.kind == "processor seconds":
        return processes.total(spent)[0]
    return processes.shared(lambda: spent)
