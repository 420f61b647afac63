"""`sprat prove --tasks`: the table, the JSON, and refusals before anything long begins."""

import json

import pytest

from sprat.cli.main import main

LINES = [
    {"sentence_good": "the cat sat on the mat", "sentence_bad": "the cat the sat on mat"},
    {"sentence_good": "a small bird sang", "sentence_bad": "a bird small sang"},
]


@pytest.fixture
def command(tiny):
    options = ("--text", str(tiny.text), "--context", "32", "--tokens", "64")
    return ["prove", str(tiny.file), "--against", str(tiny.folder), *options]


def test_tasks_are_shown_and_written(command, tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, LINES)))
    last = tmp_path / "last.jsonl"
    last.write_text('{"text": "the cat sat on the mat"}')
    assert main([*command, "--tasks", str(pairs), str(last)]) == 0
    out = capsys.readouterr().out
    assert any(line.split()[:2] == ["pairs", "2"] for line in out.splitlines())
    assert "lost, won" in out
    assert "perplexity" in out
    assert main([*command, "--tasks", str(pairs), "--items", "1", "--json"]) == 0
    [entry] = json.loads(capsys.readouterr().out)["tasks"]
    assert (entry["name"], entry["items"], entry["source"]["items"]) == ("pairs", 1, 2)


def test_a_bad_task_file_is_refused_before_a_model_is_opened(command, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(LINES[0]) + "\nno json\n")
    command[command.index("--against") + 1] = "absent"
    assert main([*command, "--tasks", str(bad)]) == 2
    said = capsys.readouterr().err
    assert "bad.jsonl, line 2: no JSON" in said
    assert "Traceback" not in said
