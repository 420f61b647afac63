"""The parts of a file, by layer, as an SVG picture."""

from __future__ import annotations

from html import escape

from sprat.coding.parts import Part, by_layer
from sprat.sizes import format_bytes

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
