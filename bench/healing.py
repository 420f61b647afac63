"""KL against contexts of healing: a line for each file that was healed, from the rows of bench.techniques."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import markdown
from bench.plots import pyplot
from bench.technique_rows import ROWS


@dataclass(frozen=True)
class Point:
    """A file behind so many contexts of healing. kl: (value, low, high) in nats a token; None: not timed."""

    contexts: int
    kl: tuple[float, float, float]
    minutes: float | None


def courses(rows: Mapping[str, dict[str, Any]]) -> dict[str, list[Point]]:
    """Row that was healed -> itself and what became of it, by rising contexts; those that were measured."""
    found: dict[str, list[Point]] = {}
    for row in ROWS:
        if row.of and "kl" in rows.get(row.name, {}) and "kl" in rows.get(row.of, {}):
            course = found.setdefault(row.of, [_point(0, rows[row.of])])
            course.append(_point(row.contexts, rows[row.name]))
    return {name: sorted(points, key=lambda p: p.contexts) for name, points in found.items()}


def _point(contexts: int, row: dict[str, Any]) -> Point:
    k = row["kl"]
    minutes = row.get("heal_minutes", row.get("minutes")) if contexts else 0.0
    return Point(contexts, (k["value"], k["low"], k["high"]), minutes)


def table(found: Mapping[str, list[Point]]) -> str:
    """Markdown: a row a file, a column a number of contexts."""
    counts = sorted({p.contexts for points in found.values() for p in points})
    columns, lines = ["file", *(f"{n} contexts" if n else "unhealed" for n in counts)], []
    for name, points in found.items():
        cells = {p.contexts: f"{p.kl[0]:.3f}" + _spent(p, points[0]) for p in points}
        lines.append([name, *(cells.get(n, "") for n in counts)])
    return markdown.table(columns, lines)


def _spent(point: Point, first: Point) -> str:
    if not point.contexts:
        return ""
    less = f"{100 * (point.kl[0] / first.kl[0] - 1):+.0f} %"
    return f" ({less}; {point.minutes:.0f} min)" if point.minutes is not None else f" ({less})"


def draw(found: Mapping[str, list[Point]], path: Path) -> None:
    """heal.svg: KL against contexts, with the intervals of the KL."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.2, 4.4))
    for name, points in found.items():
        middle = [p.kl[0] for p in points]
        errors = [[p.kl[0] - p.kl[1] for p in points], [p.kl[2] - p.kl[0] for p in points]]
        axes.errorbar([p.contexts for p in points], middle, errors, marker="o", ms=4, capsize=2, label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("contexts of 512 tokens learnt from")
    axes.set_ylabel("KL to the original, nats a token")
    axes.set_title("Healing: KL on speeches that nothing was learnt from", loc="left", fontsize=11)
    axes.grid(True, which="both", color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
