"""`--replay`: a record measured again holds or does not, and what is missing is named with how to give it."""

import json
import shutil

import numpy as np
import pytest

import sprat
from sprat.cli.main import main
from sprat.errors import ProofError
from sprat.prove.proof import SCHEMA
from sprat.prove.record import load
from sprat.prove.replay import Row, flatten, replay
from tiny_model import SENTENCES, save_model, write_file


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / "cache"))


def questions(path, seed):
    """Questions of random words, in PIQA's fields."""
    random, words = np.random.default_rng(seed), SENTENCES.split()

    def text():
        return " ".join(random.choice(words, size=4))

    rows = [{"goal": text(), "sol1": text(), "sol2": text(), "label": int(i % 2)} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A record beside copies of its file and text."""
    root = tmp_path_factory.mktemp("record")
    for path in (tiny.file, tiny.text):
        shutil.copy(path, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPRAT_CACHE", str(root / "cache"))
        sprat.prove(
            root / tiny.file.name,
            tiny.folder,
            root / tiny.text.name,
            640,
            32,
            generations=2,
            layers=True,
            tasks=[questions(root / "piqa.jsonl", 1), questions(root / "more.jsonl", 2)],
            items=20,
        ).save(root / "proof")
    return root


@pytest.fixture
def record(saved, tmp_path):
    """The folder of the record, to be spoilt."""
    return shutil.copytree(saved, tmp_path / "record") / "proof"


def rewrite(record, change):
    path = record / "result.json"
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))


def test_a_record_holds_where_nothing_changed(record):
    again = replay(record)
    assert again.holds and again.same_file
    assert {row.verdict for row in again.rows} == {"same"}
    names = [row.name for row in again.rows]
    assert len(names) == len(set(names))
    for name in ("kl", "kl_max", "probability_shift_rms", "kl at 17 to 18", "kl of layer 1 alone"):
        assert name in names
    assert "kl of the rarest quarter" in names and "tokens until generations differ" in names
    assert "piqa: accuracy_compressed" in names and "more: difference" in names
    assert "piqa: difference by bytes" in names


def test_a_figure_that_moved_is_within_its_interval_or_different(record, capsys):
    rewrite(record, lambda said: said["metrics"]["kl"].update(value=said["metrics"]["kl"]["value"] * 1.001))
    verdicts = {row.name: row.verdict for row in replay(record).rows}
    assert verdicts.pop("kl") == "within"
    assert set(verdicts.values()) == {"same"}
    assert main(["prove", "--replay", str(record)]) == 0
    rewrite(record, lambda said: said["metrics"]["kl"].update(value=9.0, low=8.0, high=10.0))
    assert not replay(record).holds
    capsys.readouterr()
    assert main(["prove", "--replay", str(record), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["schema"], said["holds"]) == ("sprat.replay/1", False)
    assert [row["name"] for row in said["figures"] if row["verdict"] == "different"] == ["kl"]


def test_another_file_is_told_and_its_figures_with_intervals_are_compared(tiny, record, tmp_path, capsys):
    other = write_file(tiny.folder, tmp_path / "other.sprat", steps=3)
    again = replay(record, file=other)
    assert not again.same_file and not again.holds
    assert "kl_max" not in [row.name for row in again.rows]
    assert main(["prove", str(other), "--replay", str(record)]) == 1
    assert "the file is not the record's, byte for byte" in capsys.readouterr().err


def test_what_is_not_measured_again_does_not_hold():
    row = Row("accuracy", 0.5, 0.4, 0.6, None)
    assert row.verdict == "missing"
    assert Row("alone", 1.0, None, None, 1.005).verdict == "same"
    assert Row("alone", 1.0, None, None, 1.02).verdict == "different"
    assert Row("of one context", 1.0, None, None, 1.02).verdict == "different"
    tasks = [{"name": "arc", "accuracy_original": {"value": 1}, "accuracy_compressed": {}, "difference": {}}]
    assert "arc: accuracy_original" in flatten({"metrics": {}, "tasks": tasks})


def test_nothing_compared_is_nothing_held(tiny, record, tmp_path):
    """A record of one context claims no interval; of another file nothing is then left to compare."""

    def alone(said):
        for part in ("positions", "frequencies", "layers", "generations", "tasks"):
            said[part] = None
        said["settings"].update(tasks=[], generations=0, layers=False)
        for figure in said["metrics"].values():
            if isinstance(figure, dict):
                figure.update(low=None, high=None)

    rewrite(record, alone)
    assert replay(record).holds
    again = replay(record, file=write_file(tiny.folder, tmp_path / "other.sprat", steps=3))
    assert not again.rows and not again.holds and "nothing to compare" in again.summary()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: said["metrics"]["kl"].pop("low"), "KeyError: 'low'"),
        (lambda said: said["metrics"]["kl"].update(value="0.1"), "not whole: TypeError"),
        (lambda said: said["positions"][0].pop("kl"), "KeyError: 'kl'"),
        (lambda said: said["text"].pop("sha256"), "KeyError: 'sha256'"),
        (lambda said: said["against"].pop("hash"), "KeyError: 'hash'"),
        (lambda said: said["settings"].update(tokens="640"), "not whole: TypeError"),
        (lambda said: said.update(metrics={}, positions=None, frequencies=None, layers=None, generations=None,
                                  tasks=None), "no figure"),
    ],
)  # fmt: skip
def test_a_record_that_was_spoilt_by_hand_is_refused_by_what_it_lacks(record, change, message):
    rewrite(record, change)
    with pytest.raises(ProofError, match=message):
        load(record)


@pytest.mark.parametrize(
    ("part", "path", "message"),
    [
        ("file", "tiny.sprat", r"the record's file .*absentprat is missing .*FILE; or fit it again from "),
        ("text", "text.txt", r"the record's text .*absent.txt is missing .*--replay .* --text TEXT"),
    ],
)
def test_a_missing_part_is_named_with_how_to_give_it(record, part, path, message):
    rewrite(record, lambda said: said[part].update(path=f"nowhere/absent{path[-4:]}"))
    with pytest.raises(ProofError, match=message):
        replay(record)
    where = record.parent / path
    assert replay(record, **({"file": where} if part == "file" else {"text": [where]})).holds


def test_a_missing_file_says_how_it_was_fitted(record):
    for recipe, said in (
        ({"heal": 0, "trellis": 4, "level": 1e-4}, "--set heal=0"),
        ({}, "the default recipe"),
    ):
        rewrite(
            record,
            lambda result, recipe=recipe: result.update(
                file=result["file"] | {"path": "absent"}, recipe=recipe
            ),
        )
        with pytest.raises(ProofError, match=rf"or fit it again from .* with {said}$"):
            replay(record)


def test_a_missing_or_changed_task_is_named_with_how_to_give_it(record, saved):
    def elsewhere(said):
        said["settings"]["tasks"][1] = said["tasks"][1]["source"]["path"] = "nowhere/absent.jsonl"

    rewrite(record, elsewhere)
    with pytest.raises(
        ProofError, match=r"the record's task nowhere/absent.jsonl is missing .* --tasks FILE"
    ):
        replay(record)
    mine = [str(saved / "piqa.jsonl"), str(saved / "more.jsonl")]
    assert replay(record, tasks=mine).holds
    with pytest.raises(ProofError, match=r"piqa.jsonl is not the record's task: its sha256 is"):
        replay(record, tasks=[mine[0], mine[0]])
    with pytest.raises(ProofError, match="the record has 2 tasks in files, and 1 are given"):
        replay(record, tasks=mine[:1])


def test_a_missing_model_is_named_with_how_to_give_it(record, tiny, capsys):
    rewrite(record, lambda said: said["against"].update(ref="/nowhere/model"))
    assert main(["prove", "--replay", str(record)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("sprat: error: the record's model original (hash ")
    assert f"Say where it is: sprat prove --replay {record} --against MODEL" in error
    assert main(["prove", "--replay", str(record), "--against", str(tiny.folder)]) == 0


def test_parts_beside_the_record_are_found_when_it_has_moved(record):
    for name in ("tiny.sprat", "text.txt"):
        (record.parent / name).rename(record / name)
    rewrite(record, lambda said: [said[part].update(path=f"elsewhere/{name}") for part, name in
                                  (("file", "tiny.sprat"), ("text", "text.txt"))])  # fmt: skip
    assert replay(record).holds


def test_another_text_or_model_is_refused(record, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("another text, " * 2000)
    with pytest.raises(ProofError, match="is not the record's text: its sha256 is"):
        replay(record, text=[other])
    with pytest.raises(ProofError, match="the record has 1 texts in files, and 2 are given"):
        replay(record, text=[other, other])
    with pytest.raises(
        ProofError, match=r"is not the record's model original: its hash is .*--against MODEL"
    ):
        replay(record, against=save_model(tmp_path / "model", seed=9))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "its schema is None"),
        ('{"schema": "sprat.proof/1"}', "its schema is 'sprat.proof/1', not 'sprat.proof/2'$"),
        (
            '{"schema": "sprat.sweep/1", "command": "sprat sweep x"}',
            "not 'sprat.proof/2'. It was made by\n  sprat sweep x$",
        ),
        (
            '{"schema": "other/1", "commands": [{"command": "a"}, {"command": "b"}, 3]}',
            "It was made by\n  a\n  b$",
        ),
        (
            json.dumps({"schema": SCHEMA, "file": {}, "against": {}, "text": {}, "settings": {}}),
            "lacks 'metrics'",
        ),
        (
            json.dumps(
                {"schema": SCHEMA, "file": {}, "against": {}, "text": {}, "metrics": {}, "settings": {}}
            ),
            "lacks 'tokens'",
        ),
        (
            json.dumps(
                {"schema": "sprat.quality/1", "commands": [{"command": "python -m bench.quality --x"}]}
            ),
            "measured again, and compared row by row, by\n  python -m bench.quality --x --record NEW",
        ),
    ],
)
def test_what_is_no_proof_is_refused_and_told_what_it_is(tmp_path, content, message):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ProofError, match=message):
        load(tmp_path)


def test_a_folder_of_speeds_says_which_command_measures_them(tmp_path):
    said = {"schema": "sprat.bench/1", "file": "demo/smol.sprat", "threads": 2, "runs": 5}
    (tmp_path / "a.json").write_text(json.dumps(said))
    with pytest.raises(
        ProofError, match=r"has no result.json.*\n  sprat bench demo/smol.sprat --threads 2 --runs 5"
    ):
        load(tmp_path)
    with pytest.raises(ProofError, match=r"has no result.json$"):
        load(tmp_path / "absent")
