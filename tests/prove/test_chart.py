"""The picture: everything in it lies where its numbers say, inside the frame, and no words touch."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprat.prove.chart import Chart, Series, linear_ticks, log_ticks
from sprat.prove.quality import knee


def drawn(chart):
    return ElementTree.fromstring(chart.svg())


def find(root, tag):
    return [e for e in root.iter() if e.tag.endswith("}" + tag)]


def chart(*series, mark=None):
    return Chart("a <title> & more", "what it shows", "MB", "KL", series, mark)


def test_points_lie_where_their_numbers_say():
    root = drawn(chart(Series("", [(10, 1.0), (20, 0.1), (30, 0.01)], "#000")))
    places = [(float(c.get("cx")), float(c.get("cy"))) for c in find(root, "circle")]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2) and y0 < y1  # equal factors, equal distances
    text = {t.text: float(t.get("x")) for t in find(root, "text") if t.get("x")}
    assert text["20"] == pytest.approx(x1, abs=0.1)
    assert find(root, "title")[0].text == "a <title> & more"


def test_intervals_span_their_ends_and_zero_lies_on_the_edge():
    root = drawn(chart(Series("s", [(1, 0.2), (2, 0.0)], "#123456", intervals=[(0.1, 0.4), None])))
    whiskers = [e for e in find(root, "line") if e.get("stroke") == "#123456" and e.get("x1") == e.get("x2")]
    assert len(whiskers) == 1
    low, high = float(whiskers[0].get("y2")), float(whiskers[0].get("y1"))
    (_, middle), (_, bottom) = [(float(c.get("cx")), float(c.get("cy"))) for c in find(root, "circle")[:2]]
    assert middle == pytest.approx((low + high) / 2, abs=0.2)
    assert bottom == 64 + 340


def test_words_beside_points_do_not_touch():
    points = [(10 + i, 0.1 + i / 1000) for i in (0, 1, 2, 3, 30, 38, 39, 40)]
    labels = [f"a file with a name {i}.sprat" for i in range(8)]
    root = drawn(chart(Series("", points, "#abc", line="", labels=labels)))
    boxes = [
        (float(t.get("x")), float(t.get("x")) + 6.6 * len(t.text), float(t.get("y")))
        for t in find(root, "text")
        if t.get("fill") == "#abc"
    ]
    ends = [t.get("text-anchor") == "end" for t in find(root, "text") if t.get("fill") == "#abc"]
    assert len(boxes) == 8 and any(ends) and not all(ends)
    boxes = [(2 * l - r, l, y) if end else (l, r, y) for (l, r, y), end in zip(boxes, ends, strict=True)]
    for (l, r, y), (m, q, z) in itertools.combinations(boxes, 2):
        assert r <= m or q <= l or abs(y - z) >= 14
    assert all(l >= 0 and r <= 700 for l, r, _ in boxes)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.floats(1e-3, 1e6), st.floats(0, 1e4)), min_size=1, max_size=6),
    st.text(max_size=30),
)
def test_any_points_and_names_give_a_picture_with_all_in_the_frame(points, name):
    name = "".join(c for c in name if c.isprintable())
    root = drawn(chart(Series(name, points, "#000", labels=[name] * len(points)), mark=(points[0][0], name)))
    for circle in find(root, "circle"):
        assert 0 <= float(circle.get("cx")) <= 760 and 0 <= float(circle.get("cy")) <= 700
    assert not re.search("nan|inf", " ".join(f"{v}" for e in find(root, "circle") for v in e.attrib.values()))


@settings(max_examples=50)
@given(st.floats(1e-6, 1e6), st.floats(1.01, 1e6))
def test_ticks_are_round_and_within(low, factor):
    high = low * factor
    linear, logarithmic = linear_ticks(low, high), log_ticks(low, high)
    assert 1 <= len(linear) <= 10
    assert all(low * (1 - 1e-9) <= t <= high * (1 + 1e-6) for t in [*linear, *logarithmic])
    assert all(f"{t:.3e}"[0] in "125" for t in logarithmic)


def test_the_knee_is_where_the_curve_bends():
    """KL = e^-x over 0..10: furthest below the chord where the slope is the chord's, x = -ln((1 - e^-10) / 10)."""
    points = [(1000 * (x + 1), math.exp(-x)) for x in range(11)]
    assert knee(points) == pytest.approx(1000 * (1 - math.log((1 - math.exp(-10)) / 10)), abs=20)
    assert knee(list(reversed(points))) == knee(points)


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(1, 0.5), (2, 0.1)],
        [(1, 0.1), (2, 0.2), (3, 0.5)],
        [(1, 0.2), (1, 0.2), (1, 0.2)],
        [(1, 0.5), (2, 0.0), (3, 0.1)],
    ],
)
def test_where_nothing_bends_there_is_no_knee(points):
    assert knee(points) is None
