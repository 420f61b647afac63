"""All results under a folder: what is comparable stands together, best first, as text, HTML and Markdown."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from sprat.cli.main import main
from sprat.errors import ProofError
from sprat.golf.leaderboard import gather, write


def result(
    scores: list[float], cap: int = 250_000, minutes: float = 3.0, held: str = "v", pace: float = 0.0
) -> dict:
    row = {"parameters": 1000, "tokens": 5000, "engine": "native"}
    runs = [
        {**row, "bits_per_byte": s, "bits_per_byte_before": s - 0.1, "bytes": cap - i}
        for i, s in enumerate(scores)
    ]
    return {
        "schema": "sprat.golf/1", "cap": cap, "length": {"kind": "processor seconds", "amount": 60 * minutes},
        "threads": 1, "machine": {"processor": "P"}, "runs": runs,
        "pace": pace, "validation": {"hash": held, "documents": 11, "bytes": 500_000},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    found = {
        "a/naive": result([1.6, 1.7]), "a/dense": result([1.4, 1.5]), "b/<best>": result([1.3]),
        "b/long": result([1.2], minutes=30), "b/large": result([1.1], 1_000_000),
        "b/other text": result([1.0], held="w"),
    }  # fmt: skip
    for name, value in found.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    (tmp_path / "a" / "another.json").write_text('{"schema": "sprat.quality/1"}')
    (tmp_path / "a" / "broken.json").write_text("{")
    return tmp_path


def test_only_what_is_comparable_stands_together_best_first(folder):
    boards = gather(folder)
    assert [[e.name for e in board.entries] for board in boards] == [
        ["b/<best>", "a/dense", "a/naive"], ["b/other text"], ["b/long"], ["b/large"],
    ]  # fmt: skip
    assert boards[0].title == "250 kB, 3 processor minutes, scored on 11 documents (500 kB)"
    assert boards[0].rows()[1][:8] == (
        "2", "a/dense", "2", "250,000", "1,000", "5,000", "1.3500", "1.4500 ± 0.0707",
    )  # fmt: skip


def test_what_a_pace_counted_stands_apart_from_what_the_clock_did(tmp_path):
    found = {"clock": result([1.2]), "a": result([1.3], pace=1e-3), "b": result([1.1], pace=2e-3)}
    found["old"] = {name: value for name, value in result([1.4]).items() if name != "pace"}
    for name, value in found.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    boards = {board.title: [e.name for e in board.entries] for board in gather(tmp_path)}
    scored = "scored on 11 documents (500 kB)"
    assert boards == {
        f"250 kB, 3 processor minutes counted by a pace, {scored}": ["b", "a"],
        f"250 kB, 3 processor minutes, {scored}": ["clock", "old"],
    }


def test_pages_hold_every_result_and_a_picture(folder, capsys):
    assert main(["golf", "leaderboard", str(folder), "-o", str(folder / "page.md")]) == 0
    out = capsys.readouterr().out
    tables = [line for line in out.splitlines() if str(folder) not in line]  # a path is as long as it is
    assert "1.4500 ± 0.0707" in out and "…" not in out and max(map(len, tables)) <= 80
    text = (folder / "page.md").read_text()
    assert text.count("\n## ") == 4 and "| 2 | a/dense | 2 |" in text and "(page.svg)" in text
    picture = ET.fromstring((folder / "page.svg").read_text())
    assert len([e for e in picture.iter() if e.tag.endswith("title") and ": " in (e.text or "")]) == 6
    write(gather(folder), folder / "page.html")
    html = (folder / "page.html").read_text()
    assert "<svg" in html and "b/&lt;best&gt;" in html and html.count("<tr>") == 6 + 4


def test_what_is_no_folder_of_results_is_refused(tmp_path):
    with pytest.raises(ProofError, match="no folder"):
        gather(tmp_path / "absent")
    with pytest.raises(ProofError, match="no result of a golf"):
        gather(tmp_path)
    with pytest.raises(ProofError, match=r"\.html or \.md"):
        write([], tmp_path / "page.pdf")
