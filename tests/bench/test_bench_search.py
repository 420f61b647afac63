"""bench.search at a toy size: every part leaves rows, goes on where it was, and ends in tables."""

from __future__ import annotations

import json
from functools import partial

import bench.search as bench
import pytest

from golf.small import documents, write


def test_all_parts_leave_rows_and_tables(tmp_path, monkeypatch, capsys):
    # Gentle: a model that knows this small language by heart is too sharp to be rounded.
    fit = {"tokens": 1024, "heal": 4}
    monkeypatch.setattr(
        bench, "BASE", {"vocabulary": 320, "context": 64, "batch": 4, "matrix_rate": 0.005, "fit": fit}
    )
    monkeypatch.setattr(bench, "WIDE", {"layers": 2, "width": 48, "heads": 2, "kv_heads": 1, "inner": 96})
    monkeypatch.setattr(bench, "RATIO", 2)
    monkeypatch.setattr(bench, "EQUATIONS", ("lowrank(8); embedding: lowrank(24)",))
    # What it does is tested in tests/search: here only that the shape of the claim is asked for.
    monkeypatch.setattr(
        bench, "instantiate", lambda shape, most, *_, **__: {"most": most, "dense": shape.parameters}
    )
    monkeypatch.setattr(bench, "HAND", (("dense", 2), ("lowrank(4)", 2)))
    monkeypatch.setattr(bench, "paces", partial(bench.paces, rounds=6))
    monkeypatch.setattr(bench, "DEPTH", (("lowrank(4)", 3),))
    text = [str(path) for path in write(tmp_path, documents())]
    arguments = ["--record", str(tmp_path / "r"), "--text", *text, "--share", "0.2", "--cap", "30kB"]
    arguments += ["--seconds", "1", "--search-minutes", "0.06", "--seeds", "1"]
    assert bench.main(arguments) == 0
    assert "verdict" in capsys.readouterr().out
    rows = {}
    for part in bench.PARTS:
        rows |= json.loads((tmp_path / "r" / part / "result.json").read_text())["rows"]
    parts = ["pace", "verdict", "pace", *["verdict"] * 4, "claim", "hand", "hand", "pace", "depth"]
    parts += ["search", "found"]
    assert [name.split("/")[0] for name in rows] == parts
    equation, whole, narrow, *longer = (rows[name] for name in rows if name.startswith("verdict"))
    assert {row["tokens"] for row in longer} == {equation["tokens"]}
    deep, tokens = rows["depth/lowrank(4), 3 layers/0"], rows["pace/depth/0"]["lowrank(4), 3 layers"]
    assert deep["layers"] == 3 and deep["seconds"] == pytest.approx(deep["tokens"] * tokens)
    assert 41 < rows["claim/0"]["dense"] / rows["claim/0"]["most"] < 42
    cap = equation["files"][0]["bytes"]
    assert equation["numbers"] * 2 < whole["numbers"] and len(whole["files"]) == 2
    assert (
        whole["files"][0]["bytes"] > cap >= whole["files"][1]["bytes"] and narrow["files"][0]["bytes"] <= cap
    )
    table = (tmp_path / "r" / "table.md").read_text()
    assert "dense, same shape, at those bytes" in table and "`lowrank(4)`" in table and "## found" in table
    before = (tmp_path / "r" / "hand" / "result.json").read_text()
    assert bench.main(arguments) == 0  # nothing is measured again
    assert (
        json.loads(before)["rows"]
        == json.loads((tmp_path / "r" / "hand" / "result.json").read_text())["rows"]
    )
