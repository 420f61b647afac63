"""`sweep` end to end on the tiny model: what it writes, what it does not do twice, and what it refuses."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

import sprat
from sprat import job as jobs
from sprat.cli.main import main
from sprat.errors import SpratError
from sprat.recipe import Recipe

RECIPE = Recipe(context=64, tokens=2048, heal=0)
SETTINGS = ("--set", "context=64", "--set", "tokens=2048", "--set", "heal=0")
BUDGETS = ["30%", "50%", "80%"]
sweeping = importlib.import_module("sprat.sweep")  # `sprat.sweep` is the function


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(shared, monkeypatch):
    monkeypatch.setenv("SPRAT_CACHE", str(shared))


@pytest.fixture(scope="module")
def done(tiny, shared, tmp_path_factory):
    """(folder, result) of a sweep with a text, its files kept."""
    folder = tmp_path_factory.mktemp("sweep") / "report"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPRAT_CACHE", str(shared))
        result = sprat.sweep(
            tiny.folder, BUDGETS, folder, tiny.text, recipe=RECIPE, tokens=640, context=64, keep=True
        )
    return folder, result


@pytest.fixture
def copy(done, tmp_path):
    """A folder that holds the finished sweep's result.json, as `change` left it, and its files."""

    def call(change=lambda result: None, files=True):
        result = json.loads((done[0] / "result.json").read_text())
        change(result)
        folder = tmp_path / "copy"
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps(result))
        if files:
            for file in done[0].glob("*.sprat"):
                (folder / file.name).write_bytes(file.read_bytes())
        return folder

    return call


@pytest.fixture
def starts(monkeypatch):
    """Counts how often a model is loaded to be fitted, and which files are proven."""
    seen = {"fits": 0, "proofs": []}
    start, prove = jobs.start, sweeping.prove

    def started(*args):
        seen["fits"] += 1
        return start(*args)

    def proven(file, *args, **options):
        seen["proofs"].append(file.name)
        return prove(file, *args, **options)

    monkeypatch.setattr(jobs, "start", started)
    monkeypatch.setattr(sweeping, "prove", proven)
    return seen


def again(tiny, folder, budgets=BUDGETS, text=True, **options):
    options = {"recipe": RECIPE, "tokens": 640, "context": 64, "keep": True} | options
    return sprat.sweep(tiny.folder, budgets, folder, tiny.text if text else None, **options)


def test_rows_are_what_single_fits_and_proofs_give(done, tiny, tmp_path):
    folder, result = done
    assert [row["budget"] for row in result["rows"]] == BUDGETS
    row = result["rows"][1]
    found = sprat.fit(tiny.folder, "50%", tmp_path / "one.sprat", recipe=RECIPE)
    assert (tmp_path / "one.sprat").read_bytes() == (folder / row["file"]).read_bytes()
    assert (row["bytes"], row["level"], row["held_out_kl"]) == (found.nbytes, found.level, found.measured_kl)
    proof = sprat.prove(tmp_path / "one.sprat", str(tiny.folder), tiny.text, tokens=640, context=64).to_json()
    assert row["metrics"]["kl"] == proof["metrics"]["kl"]
    assert row["bytes"] <= row["budget_bytes"] == int(0.5 * result["model"]["bytes"])


def test_kl_falls_with_bytes_and_the_bound_lies_below_the_prediction(done):
    _, result = done
    kl = [row["metrics"]["kl"]["value"] for row in result["rows"]]
    assert kl == sorted(kl, reverse=True)
    curve = result["curve"]
    assert curve[0]["bytes"] < result["rows"][0]["bytes"] < result["rows"][-1]["bytes"] < curve[-1]["bytes"]
    both = [(place["bound_kl"], place["predicted_kl"]) for place in curve if place["predicted_kl"]]
    assert len(both) > 10
    assert all(0 < bound < predicted for bound, predicted in both)
    assert all(a[0] > b[0] and a[1] > b[1] for a, b in itertools.pairwise(both))


def test_the_folder_reads_by_itself(done):
    folder, result = done
    assert json.loads((folder / "result.json").read_text()) == result
    text = (folder / "README.md").read_text()
    for row in result["rows"]:
        assert f"| {row['budget']} | {row['bytes']:,} |" in text
        assert f"{row['metrics']['kl']['value']:.4f} (" in text
    assert "**Knee:" in text and "**Bound.**" in text and result["command"] in text
    picture = ElementTree.parse(folder / "curve.svg").getroot()
    circles = [e for e in picture.iter() if e.tag.endswith("circle")]
    assert len(circles) == len(BUDGETS) + 1  # and one in the legend
    assert len([e for e in picture.iter() if e.tag.endswith("polyline")]) == 3
    assert not list(folder.glob("*.partial*"))


def test_the_command_does_the_same(done, tiny, capfd):
    words = re.sub("^sprat ", "", done[1]["command"]).split()
    assert main([*words, "--json"]) == 0
    out = json.loads(capfd.readouterr().out)
    assert out["rows"] == done[1]["rows"]


def test_what_is_there_is_not_done_again(copy, tiny, starts):
    folder = copy()
    result = again(tiny, folder)
    assert starts == {"fits": 0, "proofs": []}
    assert len(result["rows"]) == 3
    result = again(tiny, folder, [*BUDGETS, "60%", "60%"])
    assert starts == {"fits": 1, "proofs": ["60pct.sprat"]}
    assert [row["budget"] for row in result["rows"]] == ["30%", "50%", "60%", "80%"]
    assert " --budgets 30%,50%,60%,80% " in again(tiny, folder, ["60%"])["command"]


def test_an_interrupted_sweep_goes_on(copy, tiny, starts, done):
    def interrupt(result):
        del result["rows"][2]
        del result["rows"][1]["metrics"]

    folder = copy(interrupt)
    result = again(tiny, folder)
    assert starts["fits"] == 1
    assert starts["proofs"] == ["50pct.sprat", "80pct.sprat"]
    assert [r["metrics"] for r in result["rows"]] == [r["metrics"] for r in done[1]["rows"]]


def test_a_curve_that_was_not_reached_is_made(copy, tiny, starts, done):
    result = again(tiny, copy(lambda result: result.update(curve=[])))
    assert starts == {"fits": 1, "proofs": []}
    assert result["curve"] == done[1]["curve"]


def test_a_file_that_is_gone_before_it_was_measured_is_fitted_again(copy, tiny, starts, done):
    folder = copy(lambda result: result["rows"][1].pop("metrics"), files=False)
    result = again(tiny, folder)
    assert starts == {"fits": 1, "proofs": ["50pct.sprat"]}
    assert result["rows"][1]["sha256"] == done[1]["rows"][1]["sha256"]


def test_a_file_that_is_proven_is_not_measured_again(copy, tiny, starts, done, tmp_path):
    def forget(result):
        for row in result["rows"][:2]:
            del row["metrics"]

    folder = copy(forget)
    options = {"tokens": 640, "context": 64}
    proof = sprat.prove(folder / "50pct.sprat", str(tiny.folder), tiny.text, **options)
    proof.save(tmp_path / "proof")
    result = again(tiny, folder, proofs=[tmp_path / "proof"])
    assert starts["proofs"] == ["30pct.sprat"]
    assert result["rows"][1]["metrics"] == done[1]["rows"][1]["metrics"]
    assert result["command"].endswith(f"--proofs {tmp_path / 'proof'} --keep")
    with pytest.raises(SpratError, match="was measured with another text than this sweep"):
        again(tiny, tmp_path / "other", text=False, proofs=[tmp_path / "proof"])
    with pytest.raises(SpratError, match="was measured with another tokens than this sweep"):
        again(tiny, tmp_path / "other", tokens=320, proofs=[tmp_path / "proof"])


def test_files_are_left_on_demand_only(copy, tiny):
    def as_if_cut_off(result):
        for row in result["rows"]:
            del row["kept"]

    folder = copy(as_if_cut_off)
    result = again(tiny, folder, keep=False)
    assert not list(folder.glob("*.sprat"))
    assert all("file" not in row for row in result["rows"])


def test_files_that_were_kept_outlive_a_sweep_that_keeps_none(copy, tiny):
    folder = copy()
    before = sorted(folder.glob("*.sprat"))
    result = again(tiny, folder, keep=False)
    assert sorted(folder.glob("*.sprat")) == before != []
    assert sorted(row["file"] for row in result["rows"]) == [file.name for file in before]


def test_a_budget_that_cannot_be_met_is_a_row(tiny, tmp_path, capfd):
    folder = tmp_path / "report"
    words = ["--budgets", "500,50%,200kB", "--report", folder, *SETTINGS]
    assert main(["sweep", *map(str, [tiny.folder, *words])]) == 0
    out, err = capfd.readouterr()
    assert "not fitted" in out
    assert re.search(
        r"500: \w+ does not fit into 500 bytes: the smallest budget that works is [0-9,]+ bytes", err
    )
    assert "200kB: " in err and "nothing needs to be compressed" in err
    result = json.loads((folder / "result.json").read_text())
    assert "metrics" not in result["rows"][1] and result["knee"] is None
    assert "held-out calibration text" in (folder / "curve.svg").read_text()
    assert "No knee" in (folder / "README.md").read_text()


def test_no_budget_met_is_an_error_and_warnings_are_told(tiny, tmp_path, capfd):
    words = ["sweep", str(tiny.folder), "--report", str(tmp_path / "report"), *SETTINGS, "--budgets"]
    assert main([*words, "500"]) == 2
    assert "no budget could be met" in capfd.readouterr().err
    assert json.loads((tmp_path / "report" / "result.json").read_text())["rows"][0]["failed"]
    words[words.index(str(tmp_path / "report"))] = str(tmp_path / "other")
    text = ["--calibrate", str(tiny.text), "--text", str(tiny.text), "--tokens", "640", "--context", "64"]
    assert main([*words, "50%", *text]) == 0
    assert re.search(r"50%: about .*% of the calibration text", capfd.readouterr().err)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {"seed": 7}, "another seed"),
        (None, {"recipe": Recipe(context=64, tokens=2048)}, r"another recipe \(heal 0, not 64\)"),
        (None, {"context": 32}, "another context"),
        (None, {"text": False}, "a sweep with a text"),
        (lambda r: r["text"].update(sha256="0"), {}, "another text"),
        (lambda r: r.update(ref="elsewhere"), {}, "another ref"),
        (lambda r: r.update(schema="sprat.proof/2"), {}, "another schema"),
        (lambda r: r.pop("rows"), {}, "no result of a sweep"),
        (lambda r: (r["rows"].pop(), r["model"].update(hash="0")), {}, "has changed since"),
    ],
)
def test_a_folder_of_another_sweep_is_refused(copy, tiny, change, options, message):
    folder = copy(change or (lambda result: None))
    before = (folder / "result.json").read_text()
    with pytest.raises(SpratError, match=message):
        again(tiny, folder, **options)
    assert (folder / "result.json").read_text() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"context": 2}, "at least 4 tokens"),
        ({"tokens": 32}, "at least one context"),
        ({"context": 200_000, "tokens": None}, "is too short"),
        ({"recipe": Recipe(method="auto")}, 'by one method .* method = "auto" tries several'),
    ],
)
def test_what_could_not_be_measured_is_refused_before_anything_is_fitted(
    tiny, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr(sweeping, "_fit", lambda *_: pytest.fail("fitted what cannot be measured"))
    with pytest.raises(SpratError, match=message):
        again(tiny, tmp_path / "report", **options)


def test_a_calibration_text_that_changed_is_refused(tiny, tmp_path, starts):
    notes, folder = tmp_path / "notes.txt", tmp_path / "report"
    notes.write_text(tiny.text.read_text("utf-8"), "utf-8")
    again(tiny, folder, ["80%"], text=False, calibrate=str(notes))
    notes.write_text(notes.read_text("utf-8")[::-1], "utf-8")
    before = (folder / "result.json").read_text()
    with pytest.raises(SpratError, match=r"calibration text notes\.txt has changed since"):
        again(tiny, folder, ["60%"], text=False, calibrate=str(notes))
    assert (folder / "result.json").read_text() == before


def test_a_broken_result_is_refused(tiny, tmp_path):
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(SpratError, match="no result of a sweep"):
        again(tiny, tmp_path)
