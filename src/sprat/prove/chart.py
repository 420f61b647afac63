"""A small picture of figures against bytes, as one self-contained SVG: lines, points, intervals, one marked place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

#: Readable beside each other with any colour vision (Okabe & Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = {"solid": "", "dashed": "7 4", "dotted": "2 3"}
_LEFT, _TOP, _WIDTH, _HEIGHT, _RIGHT, _BOTTOM = 74, 64, 600, 340, 26, 56
#: What is this many times smaller than the largest value lies on the bottom edge.
_DECADES = 1e-9
#: Height of a line of text, and width of a letter, in pixels.
_LINE, _LETTER = 15, 6.6


@dataclass(frozen=True)
class Series:
    """Points (x, y), y > 0 where it is to be seen. line: "solid", "dashed", "dotted", or "" for none.

    intervals: (low, high) of each y; labels: a word beside each point.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    line: str = "solid"
    marks: bool = True
    intervals: Sequence[tuple[float, float] | None] = ()
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Chart:
    """On a logarithmic axis what is not above zero lies on the edge; a linear one need not start at zero.

    mark: (x, words).
    """

    title: str
    subtitle: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    mark: tuple[float, str] | None = None
    notes: Sequence[str] = field(default=())
    x_log: bool = False
    y_log: bool = True

    def svg(self) -> str:
        """The picture."""
        x, y, x_ticks, y_ticks = self._scales()
        out = [_text(16, 24, self.title, "font-size='16' font-weight='bold'")]
        out.append(_text(16, 44, self.subtitle, "fill='#555'"))
        bottom = _TOP + _HEIGHT
        for tick in x_ticks:
            out.append(_rule(x(tick), _TOP, x(tick), bottom))
            out.append(_text(x(tick), bottom + 18, f"{tick:g}", "text-anchor='middle' fill='#555'"))
        for tick in y_ticks:
            out.append(_rule(_LEFT, y(tick), _LEFT + _WIDTH, y(tick)))
            out.append(_text(_LEFT - 8, y(tick) + 4, f"{tick:g}", "text-anchor='end' fill='#555'"))
        out.append(_text(_LEFT + _WIDTH / 2, bottom + 42, self.x_label, "text-anchor='middle'"))
        middle = _TOP + _HEIGHT / 2
        out.append(
            _text(18, middle, self.y_label, f"text-anchor='middle' transform='rotate(-90 18 {middle})'")
        )
        if self.mark is not None:
            out.append(_rule(x(self.mark[0]), _TOP, x(self.mark[0]), bottom, "#555", "5 4"))
            out.append(_text(x(self.mark[0]) + 6, _TOP + 14, self.mark[1], "fill='#555'"))
        for series in self.series:
            out.extend(_drawn(series, x, y))
        out.extend(self._labels(x, y))
        drawn, height = self._legend(bottom + _BOTTOM)
        out.extend(drawn)
        for note in self.notes:
            height += 4
            out.append(_text(16, height + _LINE, note, "fill='#555' font-size='11'"))
            height += _LINE
        w, h = _LEFT + _WIDTH + _RIGHT, height + _LINE
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {w} {h:.0f}' width='{w}' height='{h:.0f}' "
            f"role='img' font-family='system-ui, sans-serif' font-size='12' fill='#111'>\n"
            f"<title>{escape(self.title)}</title>\n<rect width='{w}' height='{h:.0f}' fill='#fff'/>\n"
            + "\n".join(out)
            + "\n</svg>\n"
        )

    def _scales(self):
        """Functions from values to pixels, and the ticks of both axes."""
        xs = [x for series in self.series for x, _ in series.points]
        ys = [y for series in self.series for _, y in series.points]
        ys += [end for series in self.series for pair in series.intervals if pair for end in pair]
        across, x_ticks = _axis(xs, self.x_log)
        up, y_ticks = _axis(ys, self.y_log)

        def x(value: float) -> float:
            return _LEFT + _WIDTH * across(value)

        def y(value: float) -> float:
            return _TOP + _HEIGHT * (1 - up(value))

        return x, y, x_ticks, y_ticks

    def _labels(self, x, y) -> list[str]:
        """The words beside points, moved down where they would touch."""
        words = sorted(
            (y(point[1]), x(point[0]), label, series.colour)
            for series in self.series
            for point, label in zip(series.points, series.labels, strict=False)
            if label
        )
        out: list[str] = []
        placed: list[tuple[float, float, float]] = []  # left, right, top
        for top, at, label, colour in words:
            width = _LETTER * len(label)
            right = at + 9 + width < _LEFT + _WIDTH + _RIGHT
            left = at + 9 if right else at - 9 - width
            while any(left < r and l < left + width and abs(top - t) < _LINE for l, r, t in placed):
                top += 2
            placed.append((left, left + width, top))
            anchor = "start" if right else "end"
            out.append(
                _text(at + (9 if right else -9), top + 4, label, f"fill='{colour}' text-anchor='{anchor}'")
            )
        return out

    def _legend(self, top: float) -> tuple[list[str], float]:
        """A line or mark and its name for each series that has one, in rows; and where they end."""
        out: list[str] = []
        x, y = 16.0, top + _LINE
        for series in self.series:
            if not series.name:
                continue
            width = 44 + _LETTER * len(series.name)
            if x + width > _LEFT + _WIDTH + _RIGHT and x > 16:
                x, y = 16.0, y + _LINE + 3
            if series.line:
                out.append(_rule(x, y - 4, x + 24, y - 4, series.colour, _DASHES[series.line], 2))
            if series.marks:
                out.append(f"<circle cx='{x + 12:.1f}' cy='{y - 4:.1f}' r='4' fill='{series.colour}'/>")
            out.append(_text(x + 30, y, series.name))
            x += width
        return out, y


def _axis(values: Sequence[float], log: bool) -> tuple[Callable[[float], float], list[float]]:
    """From a value to its share of the axis, 0 to 1, and the ticks; room is left beside the least and the largest."""
    if log:
        seen = [value for value in values if value > 0] or [1.0]
        high = max(seen) * 1.3
        low = max(min(seen) / 1.3, high * _DECADES)
        ticks = log_ticks(low, high)
        ticks = ticks if len(ticks) > 2 else linear_ticks(low, high)
        return lambda value: math.log(max(value, low) / low) / math.log(high / low), ticks
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.1 * high or 1.0
    low, high = max(0.0, low - margin), high + margin
    return lambda value: (value - low) / (high - low), linear_ticks(low, high)


def linear_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Round numbers within low..high, steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(m * power for m in (1, 2, 5, 10, 20) if (high - low) / (m * power) <= most)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int = 10) -> list[float]:
    """1, 2 and 5 times powers of ten within low..high; the powers alone where those are more than `most`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [float(f"{m}e{p}") for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return found if len(found) <= most else [tick for tick in found if f"{tick:e}".startswith("1")]


def _drawn(series: Series, x, y) -> list[str]:
    out = []
    if series.line and len(series.points) > 1:
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in series.points)
        dash = f" stroke-dasharray='{_DASHES[series.line]}'" if _DASHES[series.line] else ""
        out.append(f"<polyline points='{path}' fill='none' stroke='{series.colour}' stroke-width='2'{dash}/>")
    for (a, _), pair in zip(series.points, series.intervals, strict=False):
        if pair:
            out.append(_rule(x(a), y(pair[0]), x(a), y(pair[1]), series.colour, "", 1.5))
    if series.marks:
        for a, b in series.points:
            tip = escape(f"{series.name or 'x'}: {a:g}, {b:.4g}")
            out.append(
                f"<circle cx='{x(a):.1f}' cy='{y(b):.1f}' r='4' fill='{series.colour}'><title>{tip}</title></circle>"
            )
    return out


def _rule(
    x0: float, y0: float, x1: float, y1: float, colour: str = "#e3e3e3", dash: str = "", width: float = 1
) -> str:
    dashes = f" stroke-dasharray='{dash}'" if dash else ""
    return (
        f"<line x1='{x0:.1f}' y1='{y0:.1f}' x2='{x1:.1f}' y2='{y1:.1f}' stroke='{colour}' "
        f"stroke-width='{width}'{dashes}/>"
    )


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{escape(text)}</text>"
