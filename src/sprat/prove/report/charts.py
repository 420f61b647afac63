"""Geometry of the pictures: places in per cent of the plot, which the templates draw.

Nothing is scaled with the page, so that text and strokes keep their size; only places move.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sprat.prove.chart import log_ticks
from sprat.prove.report.figures import Figure, Result, Shown, nats, number, write
from sprat.sizes import format_bytes


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, in percent of its length, and the text there."""

    at: float
    text: str


@dataclass(frozen=True)
class Span:
    """A value and its interval along an axis, per cent of its length."""

    at: float
    low: float
    high: float


def ticks(top: float, most: int = 4) -> list[float]:
    """Round numbers from 0 to just above `top`: at most `most` steps of 1, 2 or 5 times a power of ten."""
    if top < 1e-12:
        return [0.0, 1.0]
    step = next(s for s in _rounds(top / most) if s * most >= top)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def _rounds(start: float) -> list[float]:
    power = 10.0 ** math.floor(math.log10(start))
    return [power, 2 * power, 5 * power, 10 * power]


@dataclass(frozen=True)
class Intervals:
    """Rows of values on one axis that starts at zero."""

    spans: list[Span | None]
    ticks: list[Tick]


def intervals(figures: Sequence[Figure | None]) -> Intervals:
    """Dots with whiskers for each figure, on one scale."""
    marks = ticks(max([0.0, *(f.ends[1] for f in figures if f)]), 3)
    top = marks[-1]

    def place(value: float) -> float:
        return min(100.0, max(0.0, 100 * value / top))

    spans = [Span(place(f.value.value), *map(place, f.ends)) if f else None for f in figures]
    return Intervals(spans, [Tick(100 * t / top, f"{t:g}") for t in marks])


@dataclass(frozen=True)
class Column:
    """A bar of a chart, in its units, and what it says."""

    x: float
    width: float
    height: float
    label: str
    name: str
    shown: Shown


@dataclass(frozen=True)
class Columns:
    """Layers in their order, one column each; `others` (the embedding) stand after a gap."""

    columns: list[Column]
    ticks: list[Tick]
    others: list[Column]
    worst: list[Column]


def layers(result: Result) -> Columns | None:
    """KL where only one layer is the compressed one."""
    rows = result.rows("layers")
    style = nats(max((result.number(f"{path}.kl") or 0.0 for path in rows), default=0.0))
    found = [
        (result.string(f"{path}.name"), shown) for path in rows if (shown := result.show(f"{path}.kl", style))
    ]
    if not found:
        return None
    numbered = [(re.fullmatch(r"layer (\d+)", name), name, shown) for name, shown in found]
    inside = [(match[1], name, shown) for match, name, shown in numbered if match]
    outside = [("", name, shown) for match, name, shown in numbered if not match]
    marks = ticks(max(shown.value for _, shown in found), 4)
    slots = len(inside) + (len(outside) + 0.5 if outside else 0)
    every = max(1, math.ceil(len(inside) / 8))

    def column(slot: float, label: str, name: str, shown: Shown) -> Column:
        height = min(100.0, max(0.0, 100 * shown.value / marks[-1]))
        return Column(100 * (slot + 0.15) / slots, 70 / slots, height, label, name, shown)

    columns = [
        column(i, number if i % every == 0 else "", name, shown)
        for i, (number, name, shown) in enumerate(inside)
    ]
    others = [column(len(inside) + 0.5 + i, *item) for i, item in enumerate(outside)]
    worst = sorted([*columns, *others], key=lambda c: -c.shown.value)[:3]
    scale = [Tick(100 * t / marks[-1], f"{t:g}") for t in marks]
    return Columns(columns, scale, others, worst)


@dataclass(frozen=True)
class Point:
    """A file: its place, and where its name fits (side "" where it does not, `wide` where only on a wide page)."""

    name: str
    nbytes: float
    kl: float
    x: float
    y: float
    mine: bool
    side: str = ""
    wide: bool = False
    low: float | None = None
    high: float | None = None

    @property
    def size(self) -> str:
        return format_bytes(self.nbytes)

    @property
    def written(self) -> str:
        return write(self.kl, nats(self.kl))


@dataclass(frozen=True)
class Plane:
    """KL against bytes. `closer`: peers no larger than this file with a KL below its interval."""

    points: list[Point]
    x: list[Tick]
    y: list[Tick]
    closer: list[Point]
    no_larger: int


#: Height of the plane in CSS pixels, and the widths of the plot at which names must not touch.
HEIGHT = 300
_WIDTHS = (270, 400, 560, 720, 880)
_WIDE = _WIDTHS[2:]


def plane(result: Result, peers: Sequence[dict[str, Any]]) -> Plane | None:
    """This file among its peers; None without peers or without a KL of its own."""
    kl = result.figure("metrics.kl", nats(result.number("metrics.kl.value")))
    size = result.number("file.bytes")
    others = [found for peer in peers if (found := _peer(peer))]
    if kl is None or not size or kl.value.value <= 0 or not others:
        return None
    everything = [("this file", size, kl.value.value), *others]
    low, high = kl.ends
    ends = [low, high] if low > 0 else []
    x, x_ticks = _axis([b for _, b, _ in everything], 8, format_bytes)
    y, y_ticks = _axis([k for _, _, k in everything] + ends, 4, lambda value: f"{value:g}")
    made = [
        Point(name, nbytes, value, x(nbytes), 100 - y(value), mine=i == 0)
        for i, (name, nbytes, value) in enumerate(everything)
    ]
    mine = replace(made[0], low=100 - y(low), high=100 - y(high)) if ends else made[0]
    no_larger = [p for p in made[1:] if p.nbytes <= size]
    return Plane(
        points=_named([mine, *made[1:]]),
        x=x_ticks,
        y=[Tick(100 - t.at, t.text) for t in y_ticks],
        closer=[p for p in no_larger if p.kl < low],
        no_larger=len(no_larger),
    )


def _peer(peer: dict[str, Any]) -> tuple[str, float, float] | None:
    kl = peer.get("kl")
    kl = kl.get("value") if isinstance(kl, dict) else kl
    nbytes = peer.get("bytes")
    if not number(kl) or not number(nbytes) or kl <= 0 or nbytes <= 0:  # pyright: ignore[reportOptionalOperand]
        return None
    return str(peer.get("name", "")), nbytes, kl  # pyright: ignore[reportReturnType]


def _axis(values: list[float], spread: float, text: Any) -> tuple[Any, list[Tick]]:
    """A place (0..100) for each value, and ticks: logarithmic where the values span more than `spread`."""
    low, high = min(values), max(values)
    if high > spread * low:
        low, high = low / 1.25, high * 1.25
        place = lambda v: 100 * math.log(v / low) / math.log(high / low)  # noqa: E731
        return place, [Tick(place(t), text(t)) for t in log_ticks(low, high, most=8)]
    margin = 0.08 * (high - low) or 0.1 * high
    low, high = max(0.0, low - margin), high + margin
    place = lambda v: 100 * (v - low) / (high - low)  # noqa: E731
    step = ticks(high - low, 5)[1]
    first = math.ceil(low / step)
    marks = [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return place, [Tick(place(t), text(t)) for t in marks]


def _named(points: list[Point]) -> list[Point]:
    """Give each point the first side where its name touches nothing, at every width that a page may have."""
    placed: list[tuple[Point, str]] = []
    out = []
    for point in points:
        out.append(point)
        for widths, wide in ((_WIDTHS, False), (_WIDE, True)):
            side = next(
                (s for s in ("right", "left", "above", "below") if _free(point, s, widths, points, placed)),
                "",
            )
            if side:
                out[-1] = replace(point, side=side, wide=wide)
                placed.append((point, side))
                break
    return out


def _free(
    point: Point, side: str, widths: Sequence[int], points: list[Point], placed: list[tuple[Point, str]]
) -> bool:
    for width in widths:
        box = _box(point, side, width)
        if box[0] < -4 or box[2] > width + 8 or box[1] < -6 or box[3] > HEIGHT + 4:
            return False
        discs = [_box(other, "", width) for other in points if other is not point]
        if any(_touch(box, other) for other in [*discs, *(_box(p, s, width) for p, s in placed)]):
            return False
    return True


def _box(point: Point, side: str, width: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in CSS pixels of a point (side "") or of its name beside it."""
    x, y = point.x * width / 100, point.y * HEIGHT / 100
    if not side:
        return x - 5, y - 5, x + 5, y + 5
    wide = 7.4 * len(point.name) + 2
    left = {"right": x + 9, "left": x - 9 - wide}.get(side, x - wide / 2)
    middle = {"above": y - 14, "below": y + 14}.get(side, y)
    return left, middle - 8, left + wide, middle + 8


def _touch(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
