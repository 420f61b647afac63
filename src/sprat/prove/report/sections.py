"""What the sections of figures show: fidelity, where KL arises, bytes, cost, and what was compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sprat.prove.report import charts
from sprat.prove.report.figures import PERCENT, Figure, Result, Shown, Style, nats
from sprat.prove.report.verdict import times_smaller

#: Colours of the ledger's kinds (page.css), in order of bytes; the last serves all that follow.
_HUES = 6


@dataclass(frozen=True)
class Row:
    """A row of a table of figures; `inner` rows explain the one above them."""

    name: str
    figure: Figure
    note: str = ""
    inner: bool = False


def metrics(result: Result) -> list[Row]:
    """Fidelity: every metric that was measured, with what it means."""
    kl = nats(result.number("metrics.kl.value"))
    listed = (
        ("kl", "KL to the original", "nats a token; 0 is identical", kl, False),
        ("same_top", "Same top token", "both models favour the same next token", PERCENT, False),
        ("probability_shift_rms", "Probability shift, RMS", "of the text’s own next token", PERCENT, False),
        ("perplexity_compressed", "Perplexity", "lower is better", Style(3), False),
        ("perplexity_original", "of the original", "", Style(3), True),
        ("perplexity_ratio", "ratio", "1 is no change", Style(4), True),
        ("bits_per_byte_compressed", "Bits a byte of text", "", Style(4), False),
        ("bits_per_byte_original", "of the original", "", Style(4), True),
        ("bits_per_byte_difference", "difference", "0 is no change", Style(4), True),
    )
    return [
        Row(name, figure, note, inner)
        for key, name, note, style, inner in listed
        if (figure := result.figure(f"metrics.{key}", style))
    ]


def spread(result: Result) -> list[tuple[str, Shown]]:
    """How KL is spread over positions."""
    named = (("median", "kl_median"), ("99th percentile", "kl_p99"), ("largest", "kl_max"))
    return [(name, shown) for name, key in named if (shown := result.show(f"metrics.{key}", Style()))]


@dataclass(frozen=True)
class Part:
    """A row of one of the two KL tables: a range of positions, or a quarter of the tokens."""

    name: str
    tokens: Shown | None
    kl: Figure | None


@dataclass(frozen=True)
class Parts:
    """A figure by parts of the text (positions, frequencies): rows of a table, and their chart."""

    rows: list[Part]
    chart: charts.Intervals


def _parts(result: Result, path: str, named: Callable[[str], str]) -> Parts | None:
    paths = result.rows(path)
    style = nats(min((kl for row in paths if (kl := result.number(f"{row}.kl.value"))), default=None))
    rows = [
        Part(named(row), result.show(f"{row}.tokens"), result.figure(f"{row}.kl", style)) for row in paths
    ]
    return Parts(rows, charts.intervals([row.kl for row in rows])) if any(row.kl for row in rows) else None


def positions(result: Result) -> Parts | None:
    """KL by position in the context; the contract's ranges are half open, a reader's are not."""

    def name(row: str) -> str:
        first, last = result.number(f"{row}.from"), result.number(f"{row}.to")
        return "" if first is None or last is None else f"{first:.0f}–{last - 1:.0f}"

    return _parts(result, "positions", name)


def frequencies(result: Result) -> Parts | None:
    """KL by how frequent the predicted token is."""
    return _parts(result, "frequencies", lambda row: result.string(f"{row}.name"))


@dataclass(frozen=True)
class Kind:
    """What one kind of content takes of the file; start: where its share begins."""

    name: str
    nbytes: Shown
    share: float
    rate: str
    zeros: str
    hue: int
    start: float


def ledger(result: Result) -> list[Kind]:
    """Bytes by kind, the largest first; `share` and `start` are per cent of the whole file."""
    found = [
        (shown, path) for path in result.rows("ledger") if (shown := result.show(f"{path}.bytes")) is not None
    ]
    total, out, start = sum(shown.value for shown, _ in found), [], 0.0
    for i, (shown, path) in enumerate(sorted(found, key=lambda item: -item[0].value)):
        weights, zeros = result.number(f"{path}.weights"), result.number(f"{path}.zeros")
        share = 100 * shown.value / total if total > 0 else 0.0
        rate = f"{8 * shown.value / weights:.2f}" if weights else ""
        nil = f"{100 * zeros / weights:.0f} %" if weights and zeros is not None else ""
        hue = min(i, _HUES - 1)
        out.append(Kind(result.string(f"{path}.kind"), shown, share, rate, nil, hue, start))
        start += share
    return out


def to_scale(result: Result) -> dict[str, Any] | None:
    """The original's bytes and this file's, drawn to one scale."""
    smaller = times_smaller(result)
    original = "against.bytes" if result.number("against.bytes") else "cost.original_bytes"
    if smaller is None or smaller < 1:
        return None
    return {
        "share": 100 / smaller,
        "size": result.size("file.bytes"),
        "original": result.size(original),
        "name": result.string("against.name"),
    }


def cost(result: Result) -> list[tuple[str, Shown, str]]:
    """What running the file takes: name, figure, remark."""
    threads = result.show("cost.threads")
    on = f"{threads} thread{'s' if threads.value != 1 else ''}" if threads else ""
    speed = Style(1, " tokens/s")
    listed = (
        ("File", result.size("file.bytes"), ""),
        ("Bits a weight", result.show("file.bits_per_weight", Style(3)), "of the whole file"),
        ("Original", result.size("against.bytes") or result.size("cost.original_bytes"), "in bf16"),
        ("In memory", result.size("cost.resident_bytes"), "resident"),
        ("Opening", result.show("cost.open_seconds", Style(2, " s")), ""),
        ("Reading (prefill)", result.show("cost.prefill_tokens_per_second", speed), on),
        ("Writing (decode)", result.show("cost.decode_tokens_per_second", speed), on),
        ("Energy", result.show("cost.energy_joules_per_token", Style(3, " J a token")), ""),
    )
    return [(name, shown, note) for name, shown, note in listed if shown is not None]


def identity(result: Result) -> list[tuple[str, str, Shown | None, str]]:
    """What was compared: role, name, size, SHA-256."""
    listed = (
        ("This file", "file.path", "file.bytes", "file.sha256"),
        ("Original", "against.ref", "against.bytes", "against.hash"),
        ("Text", "text.path", "text.bytes", "text.sha256"),
    )
    return [
        (role, result.string(name), result.show(size), result.string(digest))
        for role, name, size, digest in listed
        if result.string(name) or result.string(digest)
    ]


def settings(result: Result) -> list[tuple[str, str]]:
    """How the proof was made, by name, as it is shown."""
    found = [(name.replace("_", " "), value) for name, value in result.pairs("settings")]
    seconds = result.show("seconds", Style(0, " s"))
    return [*found, ("took", str(seconds))] if seconds else found
