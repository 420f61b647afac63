"""bench.luck on the tiny model: rows, their ratios, and what is refused."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from bench import luck

ROWS = ("seed=0,context=64,tokens=1024", "seed=1,context=64,tokens=1024")


@pytest.fixture
def call(tiny, tmp_path, monkeypatch):
    """call(rows...) -> exit status; the record is tmp_path / "record"."""
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(luck, "LENGTH", 64)
    monkeypatch.setattr(luck.texts, "write", lambda _: dict.fromkeys(luck.FOREIGN, tiny.text))

    def run(*rows: str) -> int:
        words = [str(tiny.folder), "--record", str(tmp_path / "record"), "--budget", "50%", "--contexts", "4"]
        return luck.main([*words, "--rows", *rows])

    return run


def test_rows_beside_the_first_and_none_measured_again(call, tmp_path, monkeypatch):
    assert call(ROWS[0]) == 0 and call(*ROWS) == 0
    found = json.loads((tmp_path / "record" / "result.json").read_text())
    assert list(found["rows"]) == list(ROWS)
    first, second = (found["rows"][row] for row in ROWS)
    assert 0 < first["evaluation"]["kl"]["value"] != second["evaluation"]["kl"]["value"] > 0
    page = (tmp_path / "record" / "README.md").read_text()
    for text in (*luck.FOREIGN, luck.OWN):
        ratio = second[text]["kl"]["value"] / first[text]["kl"]["value"]
        assert f"{ratio:.3f} (" in page and f"× {ROWS[0]}, {text}" in page
    assert f"{first['held_out_kl']:.4f}" in page and "healing, s" not in page
    assert first["seconds"]["rounding"] > 0 and "healing" not in first["seconds"]
    monkeypatch.setattr("sprat.fit", lambda *_, **__: pytest.fail("measured again"))
    assert call(*ROWS) == 0


def test_a_row_that_heals_says_for_how_long(call, tmp_path):
    """And where rows differ in that alone, three of them are a curve."""
    assert call(ROWS[0], f"{ROWS[0]},heal=4") == 0
    assert not (tmp_path / "record" / "heal.svg").exists()
    rows = json.loads((tmp_path / "record" / "result.json").read_text())["rows"]
    spent = rows[f"{ROWS[0]},heal=4"]["seconds"]["healing"]
    page = (tmp_path / "record" / "README.md").read_text()
    assert call(ROWS[0], f"{ROWS[0]},heal=4", f"{ROWS[0]},heal=8") == 0
    picture = ElementTree.parse(tmp_path / "record" / "heal.svg")
    assert len(picture.findall(".//{*}polyline")) == 3  # a line a text
    assert "heal.svg" in (tmp_path / "record" / "README.md").read_text()
    assert call(ROWS[1]) == 0  # a row of another text
    assert "heal.svg" not in (tmp_path / "record" / "README.md").read_text()
    assert spent > 0 and f"| {ROWS[0]} | 0 |" in page and f"| {ROWS[0]},heal=4 | {spent:.0f} |" in page


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("sed=1", "unknown key 'sed'"),
        ("context=1", "context = 1 is not allowed"),
        ("seed", "wants KEY=VALUE"),
    ],
)
def test_a_row_that_is_none_is_refused_before_any_work(call, capsys, monkeypatch, row, why):
    monkeypatch.setattr(luck, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert call(ROWS[0], row) == 1
    assert why in capsys.readouterr().err
