"""A ledger as parts that a person knows (attention, feed-forward, …), by layer, and as an SVG picture."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING

from sprat.sizes import format_bytes

if TYPE_CHECKING:
    from sprat.coding.ledger import Ledger, Line

#: What a section is, by the first pattern that its name has.
_KINDS = (
    (r"embed|wte|wpe|lm_head", "embedding and head"),
    (r"attn|attention", "attention"),
    (r"mlp|ffn|feed_forward|moe|experts", "feed-forward"),
)
#: Colour of each kind in the picture (readable beside each other with any colour vision; Okabe & Ito).
_COLOURS = {
    "embedding and head": "#0072b2",
    "attention": "#e69f00",
    "feed-forward": "#009e73",
    "norms and biases": "#cc79a7",
    "tokenizer": "#56b4e9",
    "header and tables": "#d55e00",
    "other": "#999999",
}


@dataclass(frozen=True)
class Part:
    """Bytes that belong together."""

    kind: str
    layer: int | None
    nbytes: int
    weights: int
    zeros: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.weights if self.weights else 0.0

    def __add__(self, other: Part) -> Part:
        return replace(
            self,
            nbytes=self.nbytes + other.nbytes,
            weights=self.weights + other.weights,
            zeros=self.zeros + other.zeros,
        )


def parts(ledger: Ledger) -> list[Part]:
    """One part for each kind in each layer, in the order of the file."""
    merged: dict[tuple[int | None, str], Part] = {}
    for line in ledger.lines:
        number = re.search(r"(?:layers|h|blocks)\.(\d+)\.", line.name)
        layer = int(number[1]) if number else None
        part = Part(_kind(line), layer, line.nbytes, line.weights, line.zeros)
        key = (layer, part.kind)
        merged[key] = merged[key] + part if key in merged else part
    return list(merged.values())


def _kind(line: Line) -> str:
    if line.kind == "file":
        return "tokenizer"
    if line.kind == "dense":
        return "norms and biases"
    if line.kind != "lattice":
        return "header and tables"
    return next((kind for pattern, kind in _KINDS if re.search(pattern, line.name)), "other")


def by_layer(found: list[Part]) -> list[tuple[str, Part]]:
    """A row for each layer in order, and one for each kind that belongs to none."""
    rows: dict[tuple[int, str], Part] = {}
    for part in found:
        key = (1, part.kind) if part.layer is None else (0, f"{part.layer:04d}")
        rows[key] = rows[key] + part if key in rows else part
    return [(name if group else f"layer {int(name)}", rows[group, name]) for group, name in sorted(rows)]


def svg(found: list[Part], title: str) -> str:
    """The picture: a stacked bar for each layer and each part outside them, as wide as its bytes."""
    rows = [name for name, _ in by_layer(found)]
    stacks = [
        [p for p in found if (p.kind if p.layer is None else f"layer {p.layer}") == name] for name in rows
    ]
    totals = [sum(part.nbytes for part in stack) for stack in stacks]
    height, left, width, top = 18, 150, 480, 84
    scale = width / max(totals)
    size, weights = sum(totals), sum(part.weights for part in found)
    subtitle = f"{size:,} bytes" + (f", {8 * size / weights:.3f} bits a weight in all" if weights else "")
    out = [_text(16, 26, title, "font-size='16' font-weight='bold'"), _text(16, 46, subtitle, "fill='#555'")]
    x = 16
    for kind in _kinds(found):
        out.append(f"<rect x='{x}' y='60' width='10' height='10' fill='{_COLOURS[kind]}'/>")
        out.append(_text(x + 14, 69, kind))
        x += 30 + 7 * len(kind)
    for i, (name, stack, total) in enumerate(zip(rows, stacks, totals, strict=True)):
        y, x0 = top + i * height, float(left)
        out.append(_text(left - 8, y + 12, name, "text-anchor='end'"))
        for part in stack:
            wide = part.nbytes * scale
            tip = f"{name}, {part.kind}: {part.nbytes:,} bytes"
            if part.weights:
                tip += f", {part.bits_per_weight:.2f} bits a weight, {part.zeros / part.weights:.0%} zeros"
            out.append(
                f"<rect x='{x0:.1f}' y='{y + 2}' width='{wide:.1f}' height='{height - 4}' "
                f"fill='{_COLOURS[part.kind]}'><title>{escape(tip)}</title></rect>"
            )
            x0 += wide
        held = sum(part.weights for part in stack)
        rate = f" · {8 * total / held:.2f} b/w" if held else ""
        out.append(_text(x0 + 6, y + 12, format_bytes(total) + rate, "fill='#555'"))
    w, h = max(left + width + 150, x + 16), top + len(rows) * height + 16
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {w} {h}' width='{w}' height='{h}' role='img' "
        f"font-family='system-ui, sans-serif' font-size='12' fill='#111'>\n<title>{escape(title)}</title>\n"
        f"<rect width='{w}' height='{h}' fill='#fff'/>\n" + "\n".join(out) + "\n</svg>\n"
    )


def _kinds(found: list[Part]) -> list[str]:
    present = {part.kind for part in found}
    return [kind for kind in _COLOURS if kind in present]


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y}' {style}>{escape(text)}</text>"
