"""`compare` on tiny files: each row is what a proof of it says, and what is equal is not called different."""

from __future__ import annotations

import importlib
import json
import shutil
import xml.etree.ElementTree as ElementTree

import pytest
from transformers import PreTrainedTokenizerFast

from sprat.cli.main import main
from sprat.errors import ProofError, SourceError
from sprat.prove import comparison
from sprat.prove.comparison import compare_files
from sprat.run.export import export
from tiny_model import save_model, write_file

SETTINGS = {"tokens": 1280, "context": 64}
proving = importlib.import_module("sprat.prove.proof")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """Files of the tiny model at several steps, one of them exported, and another model of the same tokens."""
    root = tmp_path_factory.mktemp("files")
    found = {
        name: write_file(tiny.folder, root / f"{name}.sprat", steps)
        for name, steps in (("fine", 40), ("coarse", 6))
    }
    export(found["coarse"], "hf", root / "dense")
    found["dense"] = root / "dense"
    found["stranger"] = save_model(root / "stranger", seed=5)
    return found


@pytest.fixture(scope="module")
def done(files, tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPRAT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        names = ["fine", "coarse", "dense"]
        return compare_files([*(files[n] for n in names), tiny.folder], tiny.folder, tiny.text, **SETTINGS)


def test_rows_are_what_proofs_say(done, files, tiny):
    by_name = {row.name: row for row in done.rows}
    assert [row.kind for row in done.rows] == ["sprat", "sprat", "folder", "folder"]
    for name in ("fine", "coarse"):
        proof = proving.prove(files[name], str(tiny.folder), tiny.text, **SETTINGS)
        row = by_name[f"{name}.sprat"]
        assert row.metrics == proof.metrics
        assert (row.bytes, row.sha256) == (proof.file["bytes"], proof.file["sha256"])


def test_a_folder_weighs_what_running_it_needs(done, files):
    row = next(row for row in done.rows if row.name == "dense")
    needed = [f for f in files["dense"].iterdir() if f.name != "README.md"]
    assert row.bytes == sum(f.stat().st_size for f in needed)


def test_equal_models_are_equal_and_others_differ(done):
    found = {frozenset((p.lower, p.higher)): p for p in done.pairs}
    assert len(found) == 6
    same = found[frozenset(("coarse.sprat", "dense"))]
    assert abs(same.difference.value) < 1e-4 and not same.distinguishable
    other = found[frozenset(("fine.sprat", "coarse.sprat"))]
    assert (other.lower, other.distinguishable) == ("fine.sprat", True)
    original = next(row for row in done.rows if row.name == "original")
    assert abs(original.metrics.kl.value) < 1e-9
    assert done.pairs[0].p_holm <= done.pairs[-1].p_holm


def test_the_original_is_run_once_for_all(files, tiny, monkeypatch):
    passes = []
    remember = comparison.remember

    def counted(model, *args, **options):
        model.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
        return remember(model, *args, **options)

    monkeypatch.setattr(comparison, "remember", counted)
    found = compare_files([files["fine"], files["coarse"]], tiny.folder, tiny.text, tokens=640, context=32)
    assert found.settings["contexts"] == 20
    assert len(passes) == 20 + 2  # two to check that what is remembered is what the model says


def test_the_picture_has_a_point_a_file(done):
    root = ElementTree.fromstring(done.svg())
    words = {e.text for e in root.iter() if e.tag.endswith("text")}
    assert {"fine.sprat", "coarse.sprat", "dense", "original", ".sprat", "Hugging Face folder"} <= words
    assert len([e for e in root.iter() if e.tag.endswith("circle")]) == 4 + 2  # and two in the legend


def test_other_tokens_give_bits_a_byte_alone(files, tiny, tmp_path):
    folder = shutil.copytree(files["stranger"], tmp_path / "spelled")
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["model"]["merges"] = spec["model"]["merges"][:10]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    assert PreTrainedTokenizerFast.from_pretrained(folder).is_fast
    found = compare_files([files["fine"], folder], tiny.folder, tiny.text, **SETTINGS)
    row = found.rows[1]
    assert row.metrics.kl is None and row.metrics.bits_per_byte_difference.value > 0
    assert "different tokens" in row.reason and any("spelled" in w for w in found.warnings)
    assert found.pairs == []
    assert "spelled" not in found.svg()


def test_the_command_prints_and_draws(files, tiny, tmp_path, capfd):
    words = [files["fine"], files["coarse"], "--against", tiny.folder, "--text", tiny.text]
    words += ["--tokens", 640, "--context", 64, "--svg", tmp_path / "all.svg"]
    assert main(["compare", *map(str, words)]) == 0
    out, _ = capfd.readouterr()
    assert "fine.sprat < coarse.sprat" in out and "different" in out and "p (Holm)" in out
    assert (tmp_path / "all.svg").read_text().startswith("<svg")
    assert main(["compare", *map(str, words), "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["schema"] == "sprat.comparison/1"
    assert result["rows"][0]["metrics"]["kl"]["level"] == 0.95
    assert result["command"].startswith("sprat compare ")


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["fine.sprat", "gone.sprat"], ProofError, "there is no file"),
        (["fine.sprat", "gone.gguf"], SourceError, "there is no file or folder"),
        (["fine.sprat", "fine.sprat"], ProofError, "named twice"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_loaded(
    files, tiny, monkeypatch, names, error, message
):
    monkeypatch.setattr(comparison, "remember", lambda *_: pytest.fail("the original was loaded"))
    root = files["fine"].parent
    with pytest.raises(error, match=message):
        compare_files([root / name for name in names], tiny.folder, tiny.text, **SETTINGS)
