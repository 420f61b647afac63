"""A sweep's result as people read it: the knee of its quality–bytes curve, a table, and the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sprat.prove.chart import COLOURS, Chart, Series
from sprat.sizes import format_bytes

_NO_KNEE = "No knee: that needs three budgets whose KL falls."
_KNEE = """The place of the measured curve furthest below the straight line from its first point to its last,
bytes and KL each scaled to 0..1 (Kneedle, Satopää et al. 2011), log KL taken as linear in bytes between points. It
depends on the range of budgets that was asked for."""
_BOUND = """**Bound.** With v = ½ g r² μ, the variances in nats of a map's components (μ: the eigenvalues of its
input's second moments, scaled by its columns; r: its rows; g: their Fisher weights), KL(θ) = Σ min(v, θ) and
bits(θ) = Σ max(0, ½ log₂(v/θ)): reverse water-filling (Cover & Thomas, section 10.3.3). The tokenizer, header and norms
are added as they are. It assumes independent Gaussian weights and a KL that is quadratic in their error, by the
statistics of the calibration text. No code for such weights gets below it; healing, which moves away from the original
weights, and another text may."""
_PREDICTED = (
    "**Predicted** is what the level's steps cost by the same statistics, before anything is rounded."
)

#: Places between two neighbouring points at which the knee is looked for.
_STEPS = 50


def kl_of(row: dict[str, Any]) -> tuple[float, tuple[float, float] | None]:
    """KL in nats a token and its interval: on the text where there is one, else on held-out calibration text."""
    if "metrics" not in row:
        return row["held_out_kl"], None
    kl = row["metrics"]["kl"]
    ends = (kl["low"], kl["high"])
    return kl["value"], None if None in ends else ends


def knee(points: Sequence[tuple[float, float]]) -> float | None:
    """Bytes at the knee of (bytes, KL) points; None for fewer than three, or where the curve does not bend.

    The place furthest below the straight line from the first point to the last, both axes scaled to 0..1 (the
    "Kneedle" of Satopää et al. 2011, section III), log KL being linear in bytes between points. So it depends on the
    first and the last point: it is the bend of the curve that was asked for.
    """
    points = sorted((b, kl) for b, kl in points if kl > 0)
    if len(points) < 3 or points[0][0] == points[-1][0] or points[0][1] <= points[-1][1]:
        return None
    (left, top), (right, bottom) = points[0], points[-1]
    best, place = 0.0, None
    for (a, kl_a), (b, kl_b) in pairwise(points):
        for i in range(_STEPS + 1):
            share = i / _STEPS
            x = a + share * (b - a)
            y = math.exp((1 - share) * math.log(kl_a) + share * math.log(kl_b))
            below = 1 - (x - left) / (right - left) - (y - bottom) / (top - bottom)
            if below > best + 1e-12:
                best, place = below, x
    return place


def chart(result: dict[str, Any]) -> Chart:
    """The measured curve over what was predicted and what is possible at all, KL on a logarithmic axis."""
    rows = sorted((row for row in result["rows"] if "bytes" in row), key=lambda row: row["bytes"])
    found = [kl_of(row) for row in rows]
    held_out = "text" not in result
    series = [
        Series(
            "measured" + (" on held-out calibration text" if held_out else ", 95 % intervals"),
            [(row["bytes"] / 1e6, kl) for row, (kl, _) in zip(rows, found, strict=True)],
            COLOURS[0],
            intervals=[interval for _, interval in found],
        )
    ]
    for name, key, colour, line in (
        ("predicted from the statistics", "predicted_kl", COLOURS[1], "dashed"),
        ("rate–distortion bound", "bound_kl", COLOURS[2], "dotted"),
    ):
        points = [(place["bytes"] / 1e6, place[key]) for place in result["curve"] if place[key]]
        series.append(Series(name, points, colour, line, marks=False))
    where = result.get("knee")
    on = result["text"]["path"] if not held_out else "calibration text that the statistics did not see"
    return Chart(
        title=f"{result['model']['name']}: quality against bytes",
        subtitle=f"KL to the original on {on}",
        x_label="whole file, MB (10⁶ bytes)",
        y_label="KL, nats a token",
        series=series,
        mark=None if where is None else (where / 1e6, f"knee, {format_bytes(where)}"),
        notes=(
            "bound: reverse water-filling, for Gaussian weights in the metric of the same statistics (README.md)",
        ),
    )


def readme(result: dict[str, Any]) -> str:
    """README.md of a sweep's folder."""
    rows = sorted((row for row in result["rows"] if "bytes" in row), key=lambda row: row["bytes"])
    failed = [row for row in result["rows"] if "failed" in row]
    model, settings = result["model"], result["settings"]
    said = [f"# {model['name']} at {len(rows)} budgets", ""]
    own = settings["calibrate"] == ["self"]
    on = "text that it wrote itself" if own else ", ".join(settings["calibrate"])
    size = f"{format_bytes(model['bytes'])} in bf16, {model['weights']:,} weights"
    said.append(f"{size}; calibrated on {on}, seed {settings['seed']}.")
    if text := result.get("text"):
        tokens = settings["tokens"] or 40 * settings["context"]
        said.append(
            f"KL to the original in nats a token on {text['path']} ({tokens:,} tokens at most, contexts of "
            f"{settings['context']}, the second half of each, {settings['dtype']}), with paired bootstrap intervals "
            "of 95 %."
        )
    else:
        said.append("KL to the original in nats a token on calibration text that the statistics did not see.")
    said += ["", "![KL against bytes](curve.svg)", "", *_table(rows), ""]
    said += [f"- {row['budget']}: {row['failed']}" for row in failed] + [""] * bool(failed)
    where = result.get("knee")
    said += [
        _NO_KNEE if where is None else f"**Knee: {format_bytes(where)}.** {_KNEE}",
        "",
        _BOUND,
        "",
        _PREDICTED,
    ]
    if notes := {note for row in rows for note in row["warnings"]}:
        said += ["", "## Warnings", "", *(f"- {note}" for note in sorted(notes))]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = result["machine"]
    said += [
        "",
        "## How this was made",
        "",
        f"- `{result['command']}`; {versions}; {machine['processor']}, {machine['cores']} cores, {machine['system']}",
        f"- original: SHA-256 `{model['hash']}`",
    ]
    if text:
        said.append(f"- text: {text['bytes']:,} bytes, SHA-256 `{text['sha256']}`")
    said.append("- recipe, level and hash of each file: result.json")
    return "\n".join(said) + "\n"


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    measured = any("metrics" in row for row in rows)
    more = ["same top", "perplexity ×"] if measured else []
    columns = ["budget", "bytes", "bits a weight", "KL", *more, "KL predicted", "fit, s"]
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " --: |" * (len(columns) - 1)]
    for row in rows:
        kl, ends = kl_of(row)
        cells = [row["budget"], f"{row['bytes']:,}", f"{row['bits_per_weight']:.3f}"]
        cells.append(f"{kl:.4f}" + (f" ({ends[0]:.4f}–{ends[1]:.4f})" if ends else ""))
        if measured:
            metrics = row.get("metrics")
            cells += (
                [f"{100 * metrics['same_top']['value']:.1f} %", f"{metrics['perplexity_ratio']['value']:.3f}"]
                if metrics
                else ["", ""]
            )
        cells += [f"{row['predicted_kl']:.4f}", f"{row['seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
