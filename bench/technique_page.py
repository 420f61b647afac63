"""A record of techniques as Markdown: the table, each row beside the water level at its bytes."""

from __future__ import annotations

import math
from typing import Any

from bench import healing
from bench.markdown import interval, table
from bench.record import Record
from bench.technique_rows import LEVEL, ROWS


def page(record: Record) -> str:
    """README.md: the table, and what was published beside it."""
    rows, original = record.rows, record.data.get("original", {"name": "model", "bytes": 1})
    names = [t["name"] for t in next((r["tasks"] for r in rows.values() if r.get("tasks")), [])]
    head = [
        "technique",
        "bytes",
        "ratio",
        "KL",
        "water level there",
        "perplexity ×",
        *names,
        "minutes",
        "tokens/s",
        "published",
    ]
    lines = []
    for row in ROWS:
        if (found := rows.get(row.name)) is None:
            continue
        if "failed" in found:
            lines.append([row.name, *[""] * (len(head) - 2), f"not made: {found['failed']}"])
            continue
        k, level = found["kl"], level_at(rows, found["bytes"])
        beside = (
            f"{level:.4f} ({k['value'] / level:.2f} ×)"
            if level and not row.name.startswith(f"{LEVEL}, ")
            else ""
        )
        lines.append([
            row.name,
            f"{found['bytes']:,}",
            f"{found['bytes'] / original['bytes']:.3f}",
            interval(k, 4),
            beside,
            interval(found["perplexity_ratio"], 3),
            *_accuracies(found.get("tasks", []), names),
            f"{found['minutes']:.0f}" if "minutes" in found else "",
            f"{found['decode']:.0f}" if "decode" in found else "",
            row.published,
        ])  # fmt: skip
    remarks = record.path.parent / "remarks.md"
    said = remarks.read_text("utf-8").strip() if remarks.exists() else ""
    commands = "\n".join(f"    {run['command']}" for run in record.data["commands"])
    parts = [
        _intro(record, original, rows, names),
        table(head, lines),
        _healing(rows),
        said,
        "## How\n\n" + commands,
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def level_at(rows: dict[str, dict[str, Any]], nbytes: int) -> float | None:
    """KL of the water level at these bytes: the logarithm is read off the line between its two nearest files."""
    found = sorted(
        (r["bytes"], r["kl"]["value"]) for n, r in rows.items() if n.startswith(f"{LEVEL}, ") and "kl" in r
    )
    below = [p for p in found if p[0] <= nbytes]
    above = [p for p in found if p[0] > nbytes]
    if not below or not above:
        return found[-1][1] if below and nbytes < 1.01 * below[-1][0] else None
    (low, kl), (high, less) = below[-1], above[0]
    share = (nbytes - low) / (high - low)
    return math.exp((1 - share) * math.log(kl) + share * math.log(less))


def _healing(rows: dict[str, Any]) -> str:
    """The section on how long was healed, where anything was."""
    found = healing.courses(rows)
    if not found:
        return ""
    return (
        "## KL against contexts of healing\n\nThe same speeches; in brackets the change and the minutes of one core, "
        f"beside other work.\n\n{healing.table(found)}\n\n![KL against contexts of healing](heal.svg)"
    )


def _intro(record: Record, original: dict[str, Any], rows: dict[str, Any], names: list[str]) -> str:
    s = record.data["settings"]
    base = next((r["tasks"] for r in rows.values() if r.get("tasks")), [])
    accuracy = ", ".join(f"{t['name']} {100 * t['accuracy_original']['value']:.1f} %" for t in base)
    return (
        f"# Techniques, one table\n\n{original['name']}, {original['bytes']:,} bytes in bf16. Bytes are those of the "
        f"whole file; KL and perplexity on {s['contexts']} contexts of 512 tokens of State of the Union speeches, the "
        "second half of each scored, float32, 95 % intervals by paired bootstrap. *Water level there*: its KL at the "
        "same bytes, read off the line between its nearest files, and the technique's KL over it."
        + (f" Tasks: {s['items']} questions each, difference to the original ({accuracy}) in points; * where McNemar's "
           "p is below 0.05." if names else "")
    )  # fmt: skip


def _accuracies(tasks: list[dict[str, Any]], names: list[str]) -> list[str]:
    found = {t["name"]: t for t in tasks}
    cells = []
    for name in names:
        task = found.get(name)
        star = "*" if task and task["mcnemar_p"] < 0.05 else ""
        cells.append(f"{100 * task['difference']['value']:+.1f}{star}" if task else "")
    return cells
