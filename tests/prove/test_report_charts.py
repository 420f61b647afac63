"""The geometry of the report's pictures, and its colours."""

from __future__ import annotations

import math
import re
from pathlib import Path

import proofs
from hypothesis import given, settings
from hypothesis import strategies as st

from sprat.prove.report import charts
from sprat.prove.report.figures import Result


@given(st.floats(1e-9, 1e9), st.integers(2, 6))
def test_ticks_cover_and_are_few(top, most):
    marks = charts.ticks(top, most)
    assert marks[0] == 0 and marks[-1] >= top * (1 - 1e-9) and 2 <= len(marks) <= most + 1
    step = marks[1] / 10 ** math.floor(math.log10(marks[1]) + 1e-9)
    assert min(abs(step - s) for s in (1, 2, 5, 10)) < 1e-6


@given(st.floats(1e-6, 1e3), st.floats(1, 1e6))
def test_log_ticks_lie_within(low, spread):
    marks = charts.log_ticks(low, low * spread, most=8)
    assert all(low <= mark <= low * spread for mark in marks) and marks == sorted(marks)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text("abc ", max_size=24), st.floats(1e6, 9e8), st.floats(1e-3, 9)),
        min_size=1,
        max_size=14,
    )
)
def test_names_touch_nothing(peers):
    """At every width that a page may have."""
    made = charts.plane(Result(proofs.minimal()), [{"name": n, "bytes": b, "kl": k} for n, b, k in peers])
    assert made is not None
    for width in range(270, 900, 30):
        shown = [p for p in made.points if p.side and (width >= 560 or not p.wide)]
        boxes = [charts._box(p, p.side, width) for p in shown]
        for i, box in enumerate(boxes):
            discs = [charts._box(p, "", width) for p in made.points if p is not shown[i]]
            assert not any(charts._touch(box, other) for other in discs + boxes[:i]), width
    assert all(0 <= p.x <= 100 and 0 <= p.y <= 100 for p in made.points)


def test_colours_can_be_read():
    """WCAG 2 contrast of text on its ground, 4.5 in both themes; 3 for what is drawn."""
    css = (Path(charts.__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    themes = [dict(re.findall(r"--([\w-]+): (#\w+);", block)) for block in css.split(":root {")[1:3]]
    assert len(themes) == 2
    for theme in themes:
        for text, ground in (
            ("ink", "paper"), ("soft", "paper"), ("mine", "paper"), ("warn", "paper"), ("warn", "warn-wash"),
            ("ink", "warn-wash"), ("ink", "wash"), ("mark-ink", "mark"), ("on", "original"), ("on", "mine"),
        ):  # fmt: skip
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        for drawn in ("mine", "peer", "original"):
            assert contrast(theme[drawn], theme["paper"]) >= 3, drawn


def contrast(a: str, b: str) -> float:
    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)
