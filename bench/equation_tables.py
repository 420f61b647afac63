"""The tables of bench.search: what its parts have measured, as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.markdown import table


def page(folder: Path) -> str:
    """The tables of all parts that are there, as Markdown: means over seeds, and the least and most of them."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    read = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/result.json"))]
    for name, row in (pair for found in read if "rows" in found for pair in found["rows"].items()):
        part, *words = name.split("/")
        groups.setdefault((part, "/".join(words[:-1]) or words[0]), []).append(row)
    lines: list[str] = []
    for part, made in TABLES.items():
        own = {name: rows for (p, name), rows in groups.items() if p == part}
        if own:
            lines += [f"## {part}", "", made(own), ""]
    return "\n".join(lines) + "\n"


def _verdict_table(own: dict[str, list[dict[str, Any]]]) -> str:
    columns = (
        "network",
        "numbers",
        "file, bytes",
        "bits a byte, unrounded",
        "of the file",
        "tokens read",
        "seeds",
    )
    lines = []
    for name, rows in own.items():
        for i, file in enumerate(rows[0]["files"]):
            scores = [score for row in rows if (score := row["files"][i]["bits_per_byte"]) is not None]
            lines.append([
                f"{name}, at those bytes" if i else name,
                f"{rows[0]['numbers']:,}",
                f"{file['bytes']:,}",
                _span([row["bits_per_byte_unrounded"] for row in rows]),
                _span(scores),
                f"{_mean([row['tokens'] for row in rows]):,.0f}",
                f"{len(rows)}",
            ])  # fmt: skip
    return table(columns, lines)


def _hand_table(own: dict[str, list[dict[str, Any]]]) -> str:
    columns = (
        "equation",
        "layers x width",
        "numbers",
        "operations a token",
        "tokens read",
        "bits a byte",
        "seeds",
    )
    lines = []
    for rows in sorted(own.values(), key=lambda rows: _mean([row["bits_per_byte"] for row in rows])):
        row = rows[0]
        lines.append([
            f"`{row['equation']}`",
            f"{row['layers']} x {row['width']}",
            f"{row['numbers']:,}",
            f"{row['flops']:,}",
            f"{_mean([r['tokens'] for r in rows]):,.0f}",
            _span([r["bits_per_byte"] for r in rows]),
            f"{len(rows)}",
        ])  # fmt: skip
    return table(columns, lines)


def _search_table(own: dict[str, list[dict[str, Any]]]) -> str:
    columns = (
        "seed",
        "candidates",
        "trainings",
        "rank correlation of the guess",
        "best equation",
        "its bits a byte",
    )
    lines = []
    for seed, (row,) in own.items():
        best, guess = row["best"][0], row["rank_correlation_of_guess"]
        lines.append([
            seed,
            f"{row['candidates']}",
            f"{row['trials']}",
            "" if guess is None else f"{guess:.2f}",
            f"`{best['candidate']['equation']}`",
            f"{best['bits_per_byte']:.4f}",
        ])  # fmt: skip
    return table(columns, lines)


TABLES = {
    "verdict": _verdict_table,
    "hand": _hand_table,
    "depth": _hand_table,
    "search": _search_table,
    "found": _hand_table,
}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _span(values: list[float]) -> str:
    """The mean, and the least and most where there are several."""
    if not values:
        return "refused"
    ends = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
    return f"{_mean(values):.4f}{ends}"
