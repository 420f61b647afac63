"""Figures of a proof's JSON as a reader sees them, each still tied to the place that it came from.

The JSON may come from anywhere, so nothing is taken for granted: what is missing, null, infinite or of
another type than the contract says is None here, and is then left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sprat.sizes import UNITS


@dataclass(frozen=True)
class Style:
    """How a number is written: value × scale + offset, with `places` decimals (None: three figures)."""

    places: int | None = None
    unit: str = ""
    scale: float = 1.0
    offset: float = 0.0


PERCENT = Style(1, " %", 100.0)
COUNT = Style(0)


def nats(value: float | None) -> Style:
    """For a KL of about `value`: four decimals, more where it is small."""
    return Style(4 if not value or value >= 0.01 else 5 if value >= 0.001 else 6)


@dataclass(frozen=True)
class Shown:
    """A number and its text; `path` says where in the JSON it stands, so that a page can be checked."""

    path: str
    value: float
    text: str
    style: Style = COUNT

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Interval:
    """Both ends of an interval, as they are shown."""

    low: Shown
    high: Shown

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


@dataclass(frozen=True)
class Figure:
    """An estimate, with its interval where it has one."""

    value: Shown
    interval: Interval | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The interval's ends, or the value twice."""
        low, high = (self.interval.low, self.interval.high) if self.interval else (self.value, self.value)
        return low.value, high.value


class Result:
    """The JSON, read by dotted paths ("metrics.kl.value", "tasks.0.name")."""

    def __init__(self, values: Mapping[str, Any]):
        self._values = values

    def at(self, path: str) -> Any:
        """What stands at `path`; None where there is nothing."""
        found: Any = self._values
        for key in path.split("."):
            if isinstance(found, Mapping):
                found = found.get(key)
            elif isinstance(found, list) and key.isdigit() and int(key) < len(found):
                found = found[int(key)]
            else:
                return None
        return found

    def number(self, path: str) -> float | None:
        found = self.at(path)
        return found if number(found) else None

    def string(self, path: str) -> str:
        """The string at `path`, or an empty one."""
        found = self.at(path)
        return found if isinstance(found, str) else ""

    def strings(self, path: str) -> list[str]:
        found = self.at(path)
        return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []

    def pairs(self, path: str) -> list[tuple[str, str]]:
        """The mapping at `path` as strings, without what is null."""
        found = self.at(path)
        if not isinstance(found, Mapping):
            return []
        return [(str(name), str(value)) for name, value in found.items() if value is not None]

    def rows(self, path: str) -> list[str]:
        """Paths of the mappings in the list at `path`."""
        found = self.at(path)
        if not isinstance(found, list):
            return []
        return [f"{path}.{i}" for i, item in enumerate(found) if isinstance(item, Mapping)]

    def show(self, path: str, style: Style = COUNT) -> Shown | None:
        value = self.number(path)
        return None if value is None else Shown(path, value, write(value, style), style)

    def size(self, path: str) -> Shown | None:
        """Bytes in the decimal unit that fits, `49.9 MB`."""
        value = self.number(path)
        if value is None or value < 0:
            return None
        unit = next((u for u in ("TB", "GB", "MB", "kB") if value >= UNITS[u]), "B")
        scaled = value / UNITS[unit]
        places = 0 if scaled == int(scaled) else 2 if scaled < 10 else 1
        return self.show(path, Style(places, f" {unit}", 1 / UNITS[unit]))

    def figure(self, path: str, style: Style) -> Figure | None:
        """The estimate at `path`, or a bare number there as one without an interval."""
        bare = self.show(path, style)
        if bare is not None:
            return Figure(bare)
        shown = self.show(f"{path}.value", style)
        if shown is None:
            return None
        # The ends are written with the decimals that the value has.
        bound = replace(style, places=decimals(shown.value, style), unit="")
        low, high = self.show(f"{path}.low", bound), self.show(f"{path}.high", bound)
        if low is None or high is None:
            return Figure(shown)
        return Figure(shown, Interval(low, high) if style.scale > 0 else Interval(high, low))


def number(value: Any) -> bool:
    """Whether `value` is a number that can be shown: finite, of under 300 digits, not JSON's true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def decimals(value: float, style: Style) -> int:
    """Those of the style, or as many as three figures need (six at most)."""
    if style.places is not None:
        return style.places
    size = abs(value * style.scale + style.offset)
    return 2 if size == 0 else max(0, min(6, 2 - math.floor(math.log10(size))))


def write(value: float, style: Style) -> str:
    """`1,234.5`, `−0.3 %`: thousands apart, a true minus, no minus before zero."""
    places = decimals(value, style)
    text = f"{value * style.scale + style.offset:,.{places}f}"
    if text.startswith("-"):
        text = "−" + text[1:] if text.strip("-0.,") else text[1:]
    return text + style.unit
