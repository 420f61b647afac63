"""`fit` and `plan` end to end on the tiny model, and every wrong input that a user may give them."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import sprat
from sprat.cli.main import main
from sprat.errors import BudgetError, SourceError
from sprat.recipe import Recipe
from sprat.run.model import to_torch
from sprat.run.torch_engine import TorchEngine
from sprat.sense.cache import Cache
from sprat.sense.walk import Walk

RECIPE = Recipe(context=64, tokens=2112)
SETTINGS = ("--set", "context=64", "--set", "tokens=2112")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One cache for the tests that do not look at it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(shared, monkeypatch):
    monkeypatch.setenv("SPRAT_CACHE", str(shared))


@pytest.fixture(scope="module")
def files(tiny, shared, tmp_path_factory):
    """budget -> the result of a fit of the tiny model by its own text."""
    folder, results = tmp_path_factory.mktemp("files"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPRAT_CACHE", str(shared))
        for budget in ("80%", "30000", "6.2bpw"):
            out = folder / f"{len(results)}.sprat"
            results[budget] = sprat.fit(tiny.folder, budget, out, recipe=RECIPE)
    return results


@pytest.fixture
def fit(tiny, tmp_path, monkeypatch):
    """fit(calibrate, cache name, ...) -> the file's bytes; a cache of its own by name."""

    def call(cache, calibrate="self", budget="50%", **options):
        monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / cache))
        out = tmp_path / "out.sprat"
        texts = calibrate if calibrate == "self" else str(calibrate)
        sprat.fit(tiny.folder, budget, out, texts, recipe=RECIPE, **options)
        return out.read_bytes()

    return call


# --- what a fit gives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "limit"), [("80%", 46_131), ("30000", 30_000), ("6.2bpw", 22_344)])
def test_the_file_keeps_its_budget_and_is_whole(files, tiny, budget, limit):
    result = files[budget]
    nbytes = result.path.stat().st_size
    assert 0.99 * limit <= nbytes == result.nbytes <= limit
    artifact = sprat.open(result.path)
    artifact.verify()
    assert sum(line.nbytes for line in artifact.ledger().lines) == artifact.ledger().total == nbytes
    assert artifact.ledger() == result.ledger
    assert artifact.recipe == {**RECIPE.to_dict(), "level": result.level}
    assert artifact.provenance["calibration"]["source"] == "self"
    assert artifact.provenance["original_bytes"] == 57_664
    assert result.bits_per_weight == pytest.approx(8 * nbytes / 28_832)
    assert result.warnings == []
    assert {"loading", "calibration text", "statistics", "rounding", "check", "writing"} <= set(
        result.seconds
    )


@pytest.mark.parametrize(("budget", "limit"), [("40%", 23_065), ("28.5KiB", 29_184)])
def test_a_text_file_calibrates(tiny, tmp_path, budget, limit):
    sprat.fit(tiny.folder, budget, tmp_path / "f.sprat", str(tiny.text), recipe=RECIPE)
    assert 0.99 * limit <= (tmp_path / "f.sprat").stat().st_size <= limit
    artifact = sprat.open(tmp_path / "f.sprat")
    artifact.verify()
    assert artifact.provenance["calibration"]["source"] == "text.txt"
    proof = sprat.prove(tmp_path / "f.sprat", tiny.folder, tiny.text, 640, 64, resamples=50)
    assert proof.calibration["overlap"] == 1.0  # the very file
    assert 0 < proof.metrics.kl.value < 0.02
    assert [path.name for path in tmp_path.iterdir()] == ["f.sprat"]


def test_kl_falls_with_the_budget_and_was_foreseen(files, tiny):
    found = []
    for budget in ("6.2bpw", "30000", "80%"):
        proof = sprat.prove(files[budget].path, tiny.folder, tiny.text, 2560, 64, resamples=50)
        assert proof.calibration["overlap"] == 0.0
        found.append(proof.metrics.kl.value)
        assert np.isfinite(files[budget].measured_kl)
        # The check runs in bfloat16 where that is fast: its own noise is about 1e-4 here.
        assert files[budget].predicted_kl < 1.2 * files[budget].unhealed_kl + 1e-4
        assert files[budget].measured_kl <= files[budget].unhealed_kl < 4 * files[budget].predicted_kl + 1e-3
    assert 0 < found[2] < found[1] / 3 < found[0] / 9 < 0.05


def test_the_file_writes_text(files, capfd):
    argv = ["run", str(files["30000"].path), "the cat", "--max-tokens", "8", "--raw"]
    assert main(argv) == 0
    assert capfd.readouterr().out.strip()


def test_the_export_computes_what_run_computes(files, tmp_path):
    artifact = sprat.open(files["30000"].path)
    folder = sprat.export(artifact, "hf", tmp_path / "hf", "float32")
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[5, 60, 130, 290, 7, 9, 300, 41]])
    with torch.no_grad():
        logits = model(ids).logits
        assert torch.equal(logits, to_torch(artifact)(ids).logits)
    np.testing.assert_allclose(TorchEngine(artifact).all_logits(ids[0].tolist()), logits[0], atol=1e-5)


def test_plan_foresees_bytes_and_kl_and_writes_nothing(files, tiny, shared):
    before = sorted(shared.rglob("*"))
    rows = sprat.plan(tiny.folder, ["30000", "6.2bpw"], recipe=RECIPE)
    assert sorted(shared.rglob("*")) == before
    for row, result in zip(rows, (files["30000"], files["6.2bpw"]), strict=True):
        assert row.predicted_bytes == pytest.approx(result.nbytes, rel=0.01)
        # A file this small is half fixed bytes, which the plan takes a little high: its level is coarser.
        assert result.level < row.level < 2 * result.level
        assert result.predicted_kl < row.predicted_kl < 5 * result.predicted_kl


def test_a_progress_report_of_every_stage(tiny, tmp_path):
    seen = {}
    sprat.fit(
        tiny.folder,
        "50%",
        tmp_path / "f.sprat",
        str(tiny.text),
        seed=9,
        recipe=RECIPE,
        progress=lambda stage, done, total: seen.setdefault(stage.partition(", ")[0], []).append(
            done / total
        ),
    )
    stages = {"loading the model", "hidden states", "statistics", "rounding", "held-out check", "healing"}
    assert stages <= set(seen)
    assert all(0 <= share <= 1 for shares in seen.values() for share in shares)
    assert all(shares[-1] == 1 for shares in seen.values())


# --- the same again, from the cache, after an interruption --------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(fit):
    first = fit("one", seed=5)
    assert fit("two", seed=5) == first
    assert fit("two", seed=6) != first


def test_a_second_budget_measures_nothing_again(fit, monkeypatch):
    fit("one")

    def never(*_, **__):
        raise AssertionError("a second pass")

    monkeypatch.setattr(Walk, "boundaries", never)
    monkeypatch.setattr("sprat.source.selftext.write", never)
    monkeypatch.setattr(Cache, "put", never)
    smaller = fit("one", budget="40%")
    monkeypatch.undo()
    assert smaller == fit("two", budget="40%")


@pytest.mark.parametrize(
    ("stage", "measured_again"),
    [
        ("writing calibration text", ["text", "layer/1", "layer/0", "head"]),
        ("hidden states", ["layer/1", "layer/0", "head"]),
        ("statistics", ["layer/0", "head"]),
        ("rounding", []),
    ],
)
def test_an_interrupted_fit_goes_on_where_it_was(fit, tmp_path, monkeypatch, stage, measured_again):
    def stop(now, done, total):
        if now == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit("one", progress=stop)
    assert not (tmp_path / "out.sprat").exists()
    stored, put = [], Cache.put

    def note(self, name, records):
        stored.append(name)
        put(self, name, records)

    monkeypatch.setattr(Cache, "put", note)
    resumed = fit("one")
    assert stored == measured_again
    assert resumed == fit("two")


def test_a_damaged_cache_is_measured_again(fit, tmp_path):
    whole = fit("one")
    for path in (tmp_path / "one").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    assert fit("one") == whole


# --- wrong inputs, as a user gives them ---------------------------------------------------------------------------


@pytest.fixture
def refused(capfd, tiny, tmp_path):
    """refused(argv...) -> the one line that the command line ends with; no file is left."""

    def call(*argv, status=2, left=()):
        out = tmp_path / "results"
        out.mkdir(exist_ok=True)
        words = [str(word) for word in argv]
        if "-o" not in words:
            words += ["-o", str(out / "f.sprat")]
        capfd.readouterr()
        assert main(["fit", *words]) == status
        shown = capfd.readouterr()
        assert shown.out == "" and "Traceback" not in shown.err
        assert sorted(path.name for path in out.iterdir()) == sorted(left)
        return next(line for line in reversed(shown.err.splitlines()) if not line.startswith("try:"))

    return call


def test_folders_that_are_no_model(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    said = refused(tmp_path / "empty", "--budget", "50%")
    assert said.startswith(f"sprat: error: {tmp_path}/empty is no model: looked for config.json")
    (tmp_path / "empty" / "notes.txt").write_text("x")
    assert said.replace("nothing", "notes.txt") == refused(tmp_path / "empty", "--budget", "50%")
    assert f"there is no file or folder {tmp_path}/emty (did you mean 'empty'?)" in refused(
        tmp_path / "emty", "--budget", "50%"
    )


def test_architectures_that_are_not_supported(refused, tiny, tmp_path):
    folder = shutil.copytree(tiny.folder, tmp_path / "model")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]})
    )
    said = refused(folder, "--budget", "50%")
    assert "unsupported architecture T5ForConditionalGeneration (model_type 't5')" in said
    assert "supported is any causal language model" in said and "Llama" in said
    (folder / "config.json").write_text(json.dumps({"model_type": "nonesuch"}))
    assert "unsupported architecture nonesuch" in refused(folder, "--budget", "50%")
    config = BertConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    config.num_attention_heads = 4
    BertForMaskedLM(config).save_pretrained(folder)
    said = refused(folder, "--budget", "50%")
    assert "unsupported architecture BertForMaskedLM (model_type 'bert'): it reads a text from both" in said


def test_misspelt_packages_and_recipe_keys(refused, tiny):
    assert "there is no model 'smolm2-135m' (did you mean 'smollm2-135m'?)" in refused(
        "smolm2-135m", "--budget", "5MB"
    )
    said = refused(tiny.folder, "--budget", "50%", "--set", "tokns=5")
    assert "recipe: unknown key 'tokns' (did you mean 'tokens'?); known: method, rank" in said
    assert "tokens = -1 is not allowed" in refused(tiny.folder, "--budget", "50%", "--set", "tokens=-1")
    assert "unknown method 'waterlevl'" in refused(
        tiny.folder, "--budget", "50%", "--set", "method=waterlevl"
    )


@pytest.mark.parametrize("what", [("--deep",), ("--set", "heal_rank=1")], ids=["deep", "rank"])
def test_what_only_healing_does_is_refused_without_it(refused, tiny, what):
    said = refused(tiny.folder, "--budget", "50%", "--set", "heal=0", *what)
    assert "says what healing trains, but heal = 0 and heal_minutes = 0 leave it out" in said


@pytest.mark.parametrize("seed", ["-1", "9223372036854775808", "x"])
def test_seeds_that_are_none(refused, tiny, seed):
    assert f"{seed!r} is no whole number" in refused(tiny.folder, "--budget", "50%", "--seed", seed)


def test_a_budget_below_the_floor_names_one_that_works(refused, tiny, tmp_path):
    said = refused(tiny.folder, "--budget", "9kB", *SETTINGS)
    found = re.search(
        r"original does not fit into 9,000 bytes: the smallest .* works is ([0-9,]+) bytes", said
    )
    assert found
    floor = int(found[1].replace(",", ""))
    with pytest.raises(BudgetError, match=f"smallest budget that works is {floor:,}"):
        sprat.plan(tiny.folder, [str(floor - 1)], recipe=RECIPE)
    result = sprat.fit(tiny.folder, str(floor), tmp_path / "f.sprat", recipe=RECIPE)
    assert result.nbytes <= floor
    assert np.isfinite(result.measured_kl)
    sprat.open(result.path).verify()


@pytest.mark.parametrize("budget", ["57665", "58kB", "16.1bpw"])
def test_a_budget_above_the_original(refused, tiny, budget):
    said = refused(tiny.folder, "--budget", budget, *SETTINGS)
    assert "original has 57.7 kB (57,664 bytes) in bf16: a budget of" in said
    assert "nothing needs to be compressed" in said


def test_texts_that_cannot_serve(refused, tiny, tmp_path):
    text = tmp_path / "text.txt"
    argv = (tiny.folder, "--budget", "50%", "--calibrate", text, *SETTINGS)
    assert f"there is no calibration text {text}" in refused(*argv)
    text.write_text("the cat sat")
    said = refused(*argv)
    assert f"the calibration text is too short: 3 tokens in {text}, at least 2624 are needed" in said
    assert "'self'" in said
    text.write_bytes(b"caf\xe9 " * 5000)
    assert f"{text} is not UTF-8 text (byte 3" in refused(*argv)


def test_contexts_longer_than_the_model_takes(refused, tiny, tmp_path):
    folder = shutil.copytree(tiny.folder, tmp_path / "model")
    GPT2LMHeadModel(
        GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=4, n_positions=48)
    ).save_pretrained(folder)
    said = refused(folder, "--budget", "50%", *SETTINGS)
    assert "model was made for texts of up to 48 tokens: calibration contexts of 64 are too long" in said
    assert "--set context=48" in said
    sprat.fit(folder, "60%", tmp_path / "f.sprat", recipe=Recipe(context=48, tokens=480))


def test_weights_that_are_not_finite(refused, tiny, tmp_path):
    folder = shutil.copytree(tiny.folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 5] = float("nan")
    weights[name][0, 0] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert f"the tensor {name} holds 2 values that are NaN or infinite" in refused(folder, "--budget", "50%")
    with pytest.raises(SourceError, match=re.escape(name)):
        sprat.plan(folder, ["50%"], recipe=RECIPE)


def test_norms_that_the_stored_type_cannot_hold(refused, tiny, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny.folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    layer = "model.layers.0."
    weights[layer + "input_layernorm.weight"][2] *= 70_000
    for name in "qkv":  # what the norm does more these do less: the model computes what it did
        weights[f"{layer}self_attn.{name}_proj.weight"][:, 2] /= 70_000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr("sprat.job.calibration_ids", lambda *_: pytest.fail("a text was written"))
    said = refused(folder, "--budget", "60%", *SETTINGS, "--set", "dense_type=f16")
    assert "input_layernorm.weight has values up to 70144, which f16 cannot hold" in said


def test_places_that_cannot_be_written(refused, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("sprat.job.start", lambda *_: pytest.fail("work for a file that cannot be written"))
    missing = tmp_path / "absent" / "f.sprat"
    said = refused(tiny.folder, "--budget", "50%", "-o", missing)
    assert said == f"sprat: error: cannot write {missing}: there is no folder {missing.parent}"
    said = refused(tiny.folder, "--budget", "50%", "-o", tmp_path)
    assert said == f"sprat: error: cannot write {tmp_path}: it is a folder"
    text = tmp_path / "text.txt"
    text.write_text("the cat")
    said = refused(tiny.folder, "--budget", "50%", "--calibrate", text, "-o", text)
    assert (
        said == f"sprat: error: cannot write {text}: it is what is read, and would be lost; name another file"
    )
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"GGUF")
    assert "it is what is read" in refused(weights, "--budget", "50%", "-o", weights)
    monkeypatch.setattr("os.access", lambda *_: False)
    assert f"the folder {tmp_path} is not writable" in refused(tiny.folder, "--budget", "50%", "-o", weights)


@pytest.mark.parametrize("before", [None, b"what was there"])
@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 2, "sprat: error: disk full: "),
        (OSError(errno.EIO, "Input/output error"), 2, "sprat: error: cannot write "),
        (KeyboardInterrupt(), 130, "sprat: stopped"),
    ],
    ids=["disk full", "broken disk", "Ctrl-C"],
)
def test_failures_while_writing_leave_what_was_there(
    refused, tiny, tmp_path, monkeypatch, before, failure, status, message
):
    out = tmp_path / "results" / "f.sprat"
    if before is not None:
        out.parent.mkdir()
        out.write_bytes(before)

    def fail(_):
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    said = refused(
        tiny.folder, "--budget", "50%", *SETTINGS, status=status, left=["f.sprat"] if before else []
    )
    assert said.startswith(message)
    assert before is None or out.read_bytes() == before
