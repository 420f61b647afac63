"""The table of tasks that `sprat prove` shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from sprat.cli import terminal


def task_table(tasks: Sequence[dict[str, Any]]) -> Table:
    """A line a task, and one for its accuracy by bytes where it has that: `tasks` as a proof has them."""
    columns = (
        "task",
        "questions",
        "original",
        "compressed",
        "difference, 95 % interval",
        "lost, won",
        "p",
        "chance",
    )
    return terminal.table(columns, [row for task in tasks for row in _rows(task)])


def _rows(task: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    chance = "" if task["chance"] is None else f"{100 * task['chance']:.0f} %"
    yield (task["name"], str(task["items"]), *_figures(task), chance)
    if "acc_norm" in task:
        yield ("  by answers' bytes", "", *_figures(task["acc_norm"]), "")
    if "perplexity_ratio" in task:
        before, after = (task[f"perplexity_{side}"]["value"] for side in ("original", "compressed"))
        ratio = task["perplexity_ratio"]
        interval = "" if ratio["low"] is None else f", {ratio['low']:.3f} to {ratio['high']:.3f}"
        yield (
            "  perplexity",
            "",
            f"{before:.2f}",
            f"{after:.2f}",
            f"{ratio['value']:.3f} times{interval}",
            "",
            "",
            "",
        )


def _figures(pair: dict[str, Any]) -> tuple[str, ...]:
    before, after = (
        f"{100 * pair[f'accuracy_{side}']['value']:.1f} %" for side in ("original", "compressed")
    )
    gap = pair["difference"]
    difference = f"{100 * gap['value']:+.1f}, {100 * gap['low']:+.1f} to {100 * gap['high']:+.1f}"
    return (
        before,
        after,
        difference,
        f"{pair['flips']['lost']}, {pair['flips']['won']}",
        f"{pair['mcnemar_p']:.3g}",
    )
