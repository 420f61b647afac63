"""`sprat.prove` on a tiny file: the figures, what it says of itself, and what it refuses."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sprat
from sprat.errors import ProofError
from sprat.prove import overlap
from sprat.prove.proof import SCHEMA, sha256
from sprat.run.model import to_torch
from sprat.run.tokenizer import open_tokenizer
from tiny_model import save_model, write_file


def source(folder, model=None):
    """What `sprat.load` gives, as far as a proof looks at it."""
    if model is None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return SimpleNamespace(
        model=model, tokenizer=tokenizer, ref=str(folder), name="tiny", hash="0", original_bytes=57_664
    )


@pytest.fixture(scope="module")
def proof(tiny):
    return sprat.prove(tiny.file, source(tiny.folder), tiny.text, tokens=640, context=32, seed=3)


def test_figures_agree_with_whole_logits(tiny, proof):
    original, compressed = source(tiny.folder).model, to_torch(sprat.open(tiny.file))
    assert proof.settings["contexts"] == 20
    assert proof.settings["scored_tokens"] == 20 * 15
    ids = open_tokenizer(sprat.open(tiny.file)).encode(tiny.text.read_text("utf-8"), special=False)
    first = torch.tensor([ids[:32]])
    with torch.no_grad():
        p, q = (model(first).logits[0, 16:31].double().log_softmax(-1) for model in (original, compressed))
    alone = sprat.prove(tiny.file, source(tiny.folder), tiny.text, tokens=32, context=32)
    assert alone.metrics.kl.value == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert alone.metrics.kl.low == -math.inf
    assert alone.to_json()["metrics"]["kl"]["low"] is None
    assert any("too few for intervals" in warning for warning in alone.warnings)


def test_the_proof_says_what_it_is_about(tiny, proof):
    said = json.loads(json.dumps(proof.to_json(), allow_nan=False))
    assert said["schema"] == SCHEMA == "sprat.proof/2"
    assert said["file"] == {
        "path": str(tiny.file),
        "bytes": tiny.file.stat().st_size,
        "sha256": sha256(tiny.file),
        "weights": sprat.open(tiny.file).ledger().weights,
        "bits_per_weight": pytest.approx(
            8 * tiny.file.stat().st_size / sprat.open(tiny.file).ledger().weights
        ),
    }
    assert sum(part["bytes"] for part in said["ledger"]) == tiny.file.stat().st_size
    assert said["cost"] == {"bytes": tiny.file.stat().st_size, "original_bytes": 57_664}
    assert (said["layers"], said["generations"], said["tasks"]) == (None, None, None)
    assert said["settings"]["round_trip"] is True
    assert sum(part["tokens"] for part in said["positions"]) == said["settings"]["scored_tokens"]
    assert sum(part["tokens"] for part in said["frequencies"]) == said["settings"]["scored_tokens"]
    assert said["text"]["sha256"] == sha256(tiny.text)
    assert said["against"]["bytes"] == 57_664
    assert said["calibration"] == {"source": "self", "overlap": 0.0}
    assert said["warnings"] == []
    assert said["versions"]["sprat"] == sprat.__version__
    assert said["machine"]["cores"] >= 1
    kl = said["metrics"]["kl"]
    assert 0 < kl["low"] < kl["value"] < kl["high"]
    assert kl["level"] == 0.95


def test_the_same_seed_gives_the_same_proof(tiny, proof):
    again = sprat.prove(tiny.file, source(tiny.folder), tiny.text, tokens=640, context=32, seed=3)
    assert again.metrics == proof.metrics


def test_the_files_own_model_costs_nothing(tiny):
    same = source(tiny.folder, to_torch(sprat.open(tiny.file)))
    metrics = sprat.prove(tiny.file, same, tiny.text, tokens=640, context=32).metrics
    assert (metrics.kl.value, metrics.kl_max, metrics.same_top.value) == (0, 0, 1)


def test_a_coarser_file_is_worse(tiny, tmp_path, proof):
    coarse = write_file(tiny.folder, tmp_path / "coarse.sprat", steps=4)
    worse = sprat.prove(coarse, source(tiny.folder), tiny.text, tokens=640, context=32)
    assert worse.metrics.kl.low > proof.metrics.kl.high


def test_calibration_overlap_is_said(tiny, tmp_path):
    content = tiny.text.read_text("utf-8")
    for said, expected, warns in [
        ({"source": "text.txt", "sha256": [sha256(tiny.text)]}, 1.0, "100% of the calibration text"),
        ({"source": "text.txt", "sketch": overlap.sketch(content)}, 1.0, "100% of the calibration text"),
        ({"source": "other.txt", "sketch": overlap.sketch("one two three " * 9)}, 0.0, None),
        ({}, None, "overlap with this text is unknown"),
    ]:
        file = write_file(tiny.folder, tmp_path / "f.sprat", provenance={"calibration": said})
        proof = sprat.prove(file, source(tiny.folder), tiny.text, tokens=320, context=32)
        assert proof.calibration["overlap"] == expected
        assert any(warns in warning for warning in proof.warnings) if warns else proof.warnings == []


def test_kl_is_what_transformers_gives_on_the_exported_folder(tiny, tmp_path):
    """An independent way: export, load with transformers alone, whole softmaxes in float64."""
    folder = sprat.export(tiny.file, "hf", tmp_path / "exported", dtype="float32")
    models = [
        AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32).eval() for f in (tiny.folder, folder)
    ]
    text = tmp_path / "text.txt"
    text.write_text(tiny.text.read_text("utf-8")[:6000], "utf-8")
    kl = sprat.prove(tiny.file, source(tiny.folder), text, tokens=640, context=32).metrics.kl.value
    ids = AutoTokenizer.from_pretrained(folder)(text.read_text("utf-8"))["input_ids"]
    windows = [ids[i : i + 32] for i in range(0, len(ids) - 31, 32)]
    chosen = [windows[i] for i in np.linspace(0, len(windows) - 1, 20).round().astype(int)]
    with torch.no_grad():
        p, q = (model(torch.tensor(chosen)).logits[:, 16:31].double().softmax(-1) for model in models)
    independent = float((p * (p / q).log()).sum(-1).mean())
    assert len(windows) > 20
    assert kl == pytest.approx(independent, abs=1e-6)  # 1e-4 is asked for


def test_everything_asked_for_is_measured(tiny):
    proof = sprat.prove(
        tiny.file,
        source(tiny.folder),
        [tiny.text, tiny.text],
        tokens=640,
        context=32,
        layers=True,
        generations=3,
        speed=True,
    )
    said = json.loads(json.dumps(proof.to_json(), allow_nan=False))
    assert [layer["name"] for layer in said["layers"]] == ["embedding", "layer 0", "layer 1"]
    assert len(said["generations"]["prompts"]) == 3
    assert said["generations"]["divergence"]["value"] >= 0
    assert said["cost"]["decode_tokens_per_second"] > 0
    assert said["cost"]["engine"] == "native"
    assert said["settings"]["documents"] == 2
    assert [file["path"] for file in said["text"]["files"]] == [str(tiny.text)] * 2
    assert said["warnings"] == [
        "2 documents are too few for intervals of 95 % to be trusted (at least 8): give more text"
    ]
    flags = ["--layers", "--text", "--generations", "3", "--tokens", "640", "--context", "32", "--skip", "16"]
    assert all(flag in said["command"].split() for flag in flags)


def test_with_another_tokenizer_bits_per_byte_stand_alone(tiny, tmp_path):
    other = save_model(tmp_path / "other")
    settings = json.loads((other / "tokenizer.json").read_text())
    settings["model"]["merges"] = settings["model"]["merges"][:10]
    (other / "tokenizer.json").write_text(json.dumps(settings))
    proof = sprat.prove(tiny.file, source(other), tiny.text, context=32)
    assert re.search(r"different tokens \('.*KL and same-top", proof.warnings[0])
    said = proof.to_json()
    assert said["metrics"]["kl"] is None and said["metrics"]["perplexity_ratio"] is None
    assert (said["positions"], said["frequencies"], said["generations"]) == ([], [], None)
    assert said["metrics"]["bits_per_byte_original"]["value"] > 0
    assert said["settings"]["scored_bytes"] > 0


def test_a_broken_original_is_refused(tiny):
    broken = source(tiny.folder)
    broken.model.model.norm.weight.data[:] = math.nan
    with pytest.raises(ProofError, match="the original model gave logits that are not finite"):
        sprat.prove(tiny.file, broken, tiny.text, context=32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 3}, "at least 4 tokens"),
        ({"context": 32, "skip": 31}, "skip must lie between 0 and context − 2 = 30"),
        ({"context": 32, "skip": -1}, "skip must lie between"),
        ({"context": 32, "tokens": 31}, "at least one context"),
        ({"context": 100_000}, "too short"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny, options, message):
    with pytest.raises(ProofError, match=message):
        sprat.prove(tiny.file, source(tiny.folder), tiny.text, **options)
