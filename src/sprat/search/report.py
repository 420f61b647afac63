"""What a search found: a picture of scores against operations, a table, and the best recipe as a file."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from sprat.folders import write_whole
from sprat.golf.recipe import Recipe
from sprat.prove.chart import COLOURS, Chart, Series
from sprat.search.candidate import Candidate, network
from sprat.search.study import RUNGS, Row, Settings, finished, front, guessed

#: Rows of the table, and formulas in the picture.
SHOWN = 12


def write(folder: Path, settings: Settings, vocabulary: int, cap: int, rows: list[Row]) -> dict[str, Any]:
    """result.json, pareto.svg, table.md and best.toml in `folder`; returns what result.json holds."""
    best = finished(rows)
    found = {
        "schema": "sprat.search/1",
        "cap": cap,
        "processor_seconds": sum(row["processor"] for row in rows),
        "trials": len(rows),
        "candidates": len({json.dumps(row["candidate"]) for row in rows}),
        "rank_correlation_of_guess": guessed(rows),
        "best": best[:SHOWN],
        "front": front(best),
    }
    write_whole(folder / "result.json", json.dumps(found, indent=1))
    write_whole(folder / "pareto.svg", picture(rows, cap, settings.seconds))
    write_whole(folder / "table.md", table(best[:SHOWN]))
    write_whole(folder / "best.toml", toml(recipe_of(best[0], settings, vocabulary)))
    return found


def recipe_of(row: Row, settings: Settings, vocabulary: int) -> Recipe:
    """What trains a row's candidate."""
    net = network(Candidate.from_dict(row["candidate"]), settings.base, vocabulary, settings.room)
    assert net is not None  # it was trained
    return net.recipe


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| bits a byte | equation | layers | width | numbers | operations a token | tokens read |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        lines.append(
            f"| {row['bits_per_byte']:.4f} | `{row['candidate']['equation']}` | {row['candidate']['layers']} | "
            f"{row['width']} | {row['numbers']:,} | {row['flops']:,} | {row['tokens']:,} |"
        )
    return "\n".join(lines) + "\n"


def picture(rows: list[Row], cap: int, seconds: float) -> str:
    """Every trial, the shorter ones too, and the front of the longest, as SVG."""
    top = max(row["rung"] for row in rows)
    series = [
        Series(
            f"{RUNGS[rung] * seconds:.0f} s of training",
            [(r["flops"] / 1e6, r["bits_per_byte"]) for r in rows if r["rung"] == rung and not r["diverged"]],
            COLOURS[(5, 4, 0)[rung]],
            line="",
        )
        for rung in range(top + 1)
    ]
    best = front(finished(rows))
    series.append(
        Series(
            "none better with as few operations",
            [(row["flops"] / 1e6, row["bits_per_byte"]) for row in best],
            COLOURS[1],
            labels=[row["candidate"]["equation"] for row in best],
        )
    )
    return Chart(
        "Equations of equal bytes",
        f"each in {cap:,} bytes; scored with the noise of the rounding that this takes",
        "million operations a token",
        "bits a byte, held-out text",
        [s for s in series if s.points],
    ).svg()


def toml(recipe: Recipe) -> str:
    """A recipe as a file: what differs from the defaults."""
    lines = []
    for field in fields(Recipe):
        value = getattr(recipe, field.name)
        if value != field.default and not isinstance(value, dict):
            lines.append(f"{field.name} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"
