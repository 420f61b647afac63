"""bench.healing: which rows make a course, and what its table says."""

from __future__ import annotations

import pytest
from bench.healing import courses, draw, table


def row(kl: float, **more: float) -> dict:
    return {"kl": {"value": kl, "low": 0.9 * kl, "high": 1.1 * kl}, **more}


ROWS = {
    "water level, 16MB": row(3.0),
    "water level + heal, 16MB": row(2.0, minutes=9.8),
    "water level + heal on 32, 16MB": row(2.25, heal_minutes=3.6, minutes=5.0),
    "water level + heal, 40MB": row(0.3, minutes=10.0),
    "water level, 34MB": row(0.6),
}


def test_a_course_needs_what_was_healed_and_what_became_of_it():
    found = courses(ROWS)
    assert list(found) == ["water level, 16MB"]
    points = found["water level, 16MB"]
    assert [(p.contexts, p.kl[0], p.minutes) for p in points] == [
        (0, 3.0, 0.0),
        (32, 2.25, 3.6),
        (128, 2.0, 9.8),
    ]
    assert table(found).splitlines()[2] == (
        "| water level, 16MB | 3.000 | 2.250 (-25 %; 4 min) | 2.000 (-33 %; 10 min) |"
    )


def test_the_picture_is_the_same_again(tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        draw(courses(ROWS), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"water level, 16MB" in (tmp_path / "a.svg").read_bytes()
