"""What the verbs show: results on standard output, progress on standard error."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from sprat.progress import Progress, silent


class _Results(Console):
    """Standard output; whoever reads it may leave before the end (`| head`), and `main` ends then."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Notes(Console):
    """Standard error; the work goes on where nobody reads what is said of it."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def out() -> Console:
    """Results; plain and unwrapped where they are piped."""
    console = _Results(highlight=False)
    return console if console.is_terminal else _Results(highlight=False, width=max(console.width, 120))


def err() -> Console:
    """Progress, notes and errors: on standard error."""
    return _Notes(stderr=True, highlight=False)


def write_json(value: Any) -> None:
    """A result as JSON on standard output; ValueError for NaN and infinity."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def note(message: str) -> None:
    """A warning, on standard error."""
    err().print(f"sprat: note: {message}", markup=False, soft_wrap=True)


@contextmanager
def bars(visible: bool = True) -> Iterator[Progress]:
    """A progress callable that draws a bar a stage, with time spent and time left; lines where it is piped.

    visible: False where another process draws them.
    """
    if not visible:
        yield silent
        return
    console = err()
    if not console.is_terminal:
        log = Log(lambda line: console.print(f"sprat: {line}", markup=False, soft_wrap=True))
        yield log
        log.end()
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=console) as shown:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: float, total: float) -> None:
            name = _name(stage)
            if name not in tasks:
                for task in tasks.values():
                    shown.update(task, completed=shown.tasks[task].total)
                tasks[name] = shown.add_task(stage, total=total)
            shown.update(tasks[name], description=stage, completed=done, total=total)

        yield progress


def _name(stage: str) -> str:
    """A stage without what it says of itself: "training, loss 0.12" goes on with "training, loss 0.11"."""
    return stage.partition(", ")[0]


class Log:
    """Progress for a pipe or a log file: a line when a stage begins, one now and then, one with its seconds.

    A stage ends when all of it is done, or when another begins; what is begun again gets its lines again.
    """

    #: Seconds between two lines of one stage.
    EVERY = 15.0

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        """`write` takes a line without its end; `clock` gives seconds."""
        self._write, self._clock = write, clock
        self._stage: str | None = None
        self._ended = True

    def __call__(self, stage: str, done: float, total: float) -> None:
        now, name = self._clock(), _name(stage)
        if self._stage == name and self._ended and done >= total:
            return
        if self._stage != name or self._ended or done < self._done:
            self.end()
            self._stage, self._ended = name, False
            self._began, self._said, self._first = now, now, done
            self._write(f"{name} …")
        self._done = done
        if done >= total:
            self.end()
        elif now - self._said >= self.EVERY:
            self._said = now
            made = done - self._first
            left = f", {(now - self._began) * (total - done) / made:.0f} s left" if made else ""
            self._write(f"{stage}: {100 * done / total:.0f} %{left}")

    def end(self) -> None:
        """Say how long the stage under way took, if there is one."""
        if not self._ended:
            self._ended = True
            self._write(f"{self._stage}: {self._clock() - self._began:.1f} s")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> Table:
    """A quiet table: the first column to the left, figures to the right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        made.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    return made
