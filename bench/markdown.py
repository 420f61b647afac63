"""Tables and figures as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: bool = False) -> str:
    """A line a row. right: all columns but the first stand to the right."""
    rule = ["---", *["--:" if right else "---"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [columns, rule, *rows])


def interval(value: Mapping[str, Any], places: int, scale: float = 1, sign: str = "") -> str:
    """An estimate of a record, `value` (`low` to `high`), times `scale`; alone where it has no interval."""
    shown = [
        f"{scale * value[end]:{sign}.{places}f}" for end in ("value", "low", "high") if value[end] is not None
    ]
    return shown[0] if len(shown) < 3 else f"{shown[0]} ({shown[1]} to {shown[2]})"
