"""What the verbs show: results on standard output, progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from sprat.progress import Progress


def out() -> Console:
    """Results; plain and unwrapped where they are piped."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, 120))


def err() -> Console:
    return Console(stderr=True, highlight=False)


def write_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def note(message: str) -> None:
    """A warning, on standard error."""
    err().print(f"sprat: note: {message}", markup=False, soft_wrap=True)


@contextmanager
def bars() -> Iterator[Progress]:
    """A progress callable that draws a bar a stage, with time spent and time left; lines in a log."""
    console = err()
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=console) as shown:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: float, total: float) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    shown.update(task, completed=shown.tasks[task].total)
                tasks[stage] = shown.add_task(stage, total=total)
            shown.update(tasks[stage], completed=done, total=total)

        yield progress


def _lines(console: Console) -> Progress:
    """For logs: a line when a stage begins."""
    seen: set[str] = set()

    def progress(stage: str, done: float, total: float) -> None:
        if stage not in seen:
            seen.add(stage)
            console.print(f"sprat: {stage} …", markup=False)

    return progress


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> Table:
    """A quiet table: the first column to the left, figures to the right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        made.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    return made
