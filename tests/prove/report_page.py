"""Reads a report's page back: the figures in it, its tags, its text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pytest


@dataclass
class Found:
    """A number of the page: where it says that it comes from, its exact value, and what a reader sees."""

    path: str
    value: float
    text: str
    scale: float = 1.0
    offset: float = 0.0


@dataclass
class Page:
    """tags: (name, names of attributes) in order; text: all of it; headings: of level two."""

    tags: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    figures: list[Found] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    text: str = ""


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.tags.append((tag, tuple(name for name, _ in attrs)))
        if tag not in ("meta", "line", "rect", "circle"):
            self._open.append(tag)
        given = {name: value or "" for name, value in attrs}
        if "data-figure" in given:
            self.page.figures.append(
                Found(
                    given["data-figure"],
                    float(given["value"]),
                    "",
                    float(given.get("data-scale", 1)),
                    float(given.get("data-offset", 0)),
                )
            )
        if tag == "h2":
            self.page.headings.append("")
        if tag == "mark":
            self.page.marks.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            assert self._open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.page.text += data
        if self._open and self._open[-1] == "data":
            self.page.figures[-1].text += data
        if self._open and self._open[-1] == "h2":
            self.page.headings[-1] += data
        if self._open and self._open[-1] == "mark":
            self.page.marks[-1] += data


def read(html: str) -> Page:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert not reader._open, f"never closed: {reader._open}"
    return reader.page


def agree(figures: list[Found], result: dict[str, Any]) -> None:
    """Every figure is what stands at its place in the JSON, and is written rounded, nothing else."""
    for found in figures:
        value: Any = result
        for key in found.path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        assert found.value == value, found.path
        shown = re.fullmatch(r"(<?)([−-]?[\d,]+(?:\.(\d+))?)( .+)?", found.text)
        assert shown, f"{found.path}: {found.text!r} is no number"
        number = float(shown[2].replace(",", "").replace("−", "-"))
        true = found.value * found.scale + found.offset
        if shown[1]:
            assert true < number, found.path
        else:
            half = 0.5 * 10.0 ** -len(shown[3] or "")
            assert number == pytest.approx(true, abs=half * (1 + 1e-6)), found.path
