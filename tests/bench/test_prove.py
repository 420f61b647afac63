"""The record of proofs: made, reported and replayed as a whole."""

import json
import shutil
from types import SimpleNamespace

import pytest

import sprat
from bench import prove as bench_prove
from bench import replay as bench_replay
from sprat.errors import SpratError
from tiny_model import write_file


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """(records, files): two proofs whose paths are relative to the folder `files`."""
    root = tmp_path_factory.mktemp("bench")
    records, files = root / "records", root / "files"
    files.mkdir()
    shutil.copy(tiny.text, files / "text.txt")
    questions = [{"sentence_good": f"the {i} cat", "sentence_bad": f"cat {i} the"} for i in range(12)]
    (files / "pairs.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPRAT_CACHE", str(root / "cache"))
        patch.chdir(files)
        for name, steps in (("small", 3), ("large", 30)):
            write_file(tiny.folder, files / f"{name}.sprat", steps=steps)
            proof = sprat.prove(
                f"{name}.sprat", str(tiny.folder), "text.txt", 640, 32, tasks=["./pairs.jsonl"], items=10
            )
            proof.save(records / "proofs" / name)
    (records / "speeds").mkdir()
    said = {"schema": "sprat.bench/1", "file": "x.sprat", "threads": 1, "runs": 2}
    (records / "speeds" / "a.json").write_text(json.dumps(said))
    return records, files


@pytest.fixture
def records(made, tmp_path, monkeypatch):
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / "cache"))
    return SimpleNamespace(path=shutil.copytree(made[0], tmp_path / "records"), files=made[1])


def test_every_proof_is_replayed_and_other_records_are_named(records, capsys):
    arguments = [str(records.path), "--files", str(records.files), "--fresh", "--write"]
    assert bench_replay.main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0].rsplit("/", 1)[1] for line in said[:3]] == ["large", "small", "speeds"]
    assert all(" holds. " in line and " 0 different" in line for line in said[:2])
    assert "no proof. " in said[2] and said[3] == "  sprat bench x.sprat --threads 1 --runs 2 --json"
    for name in ("small", "large"):
        again = json.loads((records.path / "proofs" / name / "replay.json").read_text())
        assert again["schema"] == "sprat.replay/1" and again["holds"] and again["same_file"]
    assert not (records.path.parent / "cache").exists()
    path = records.path / "proofs" / "small" / "result.json"
    said = json.loads(path.read_text())
    said["metrics"]["kl"] |= {"value": 9.0, "low": 8.0, "high": 10.0}
    path.write_text(json.dumps(said))
    small = [str(path.parent), "--files", str(records.files)]
    assert bench_replay.main(small) == 1
    assert "  kl: 9 then, " in capsys.readouterr().out
    assert bench_replay.main([str(records.path), "--files", str(records.path)]) == 2
    assert "could not be measured: the record's file large.sprat is missing" in capsys.readouterr().out


def test_the_record_is_a_table_over_its_proofs_each_the_others_peer(records, capsys):
    folder = records.path / "proofs"
    (folder / "remarks.md").write_text("## What did not work\n\nNothing.\n")
    assert bench_prove.main(["--record", str(folder), "--only-report"]) == 0
    text = (folder / "README.md").read_text()
    said = {name: json.loads((folder / name / "result.json").read_text()) for name in ("small", "large")}
    for name, other in (("small", "large"), ("large", "small")):
        proof, kl = said[name], said[name]["metrics"]["kl"]
        assert f"| [{name}]({name}/README.md) | {proof['file']['bytes']:,} |" in text
        assert f"| {kl['value']:.4f} ({kl['low']:.4f} to {kl['high']:.4f}) |" in text
        assert proof["command"] in text and proof["file"]["sha256"] in text
        [peer] = proof["peers"]
        assert (peer["name"], peer["record"]) == (f"sprat {other}", other)
        assert peer["kl"] == said[other]["metrics"]["kl"]
        assert f"sprat {other}" in (folder / name / "index.html").read_text()
        [task] = proof["tasks"]
        lost, won = task["flips"].values()
        assert f"| pairs | {name}.sprat | 10 |" in text and f"| {lost} / {won} |" in text
    assert "Nothing." in text and "| no |" in text
    assert text.index(f"{said['small']['file']['bytes']:,}") < text.index(
        f"{said['large']['file']['bytes']:,}"
    )
    with pytest.raises(SpratError, match="holds no proofs"):
        bench_prove.write(records.files, [])
    assert bench_prove.main(["--record", str(records.files), "--only-report"]) == 1
    assert "holds no proofs" in capsys.readouterr().err


def test_measuring_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(bench_prove, "sprat", lambda words: asked.append(words) or 0)
    monkeypatch.setattr(bench_prove, "write", lambda *_: None)
    (tmp_path / "tasks").mkdir()
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / "tasks" / name).touch()
    for name in (bench_prove.TEXT, "m-2MB.sprat"):
        (tmp_path / name).touch()
    done = tmp_path / "record" / "1MB"
    done.mkdir(parents=True)
    (done / "result.json").touch()
    arguments = ["m", "--files", str(tmp_path), "--record", str(done.parent), "--budgets", "1MB,2MB,3MB"]
    assert bench_prove.main(arguments) == 0
    assert [words[:2] for words in asked] == [
        ["prove", "m-2MB.sprat"],
        ["fit", "m"],
        ["prove", "m-3MB.sprat"],
    ]
    assert asked[0][-3:] == ["--tasks", "tasks/a.jsonl", "tasks/b.jsonl"]
    assert asked[1] == ["fit", "m", "--budget", "3MB", "-o", "m-3MB.sprat"]
