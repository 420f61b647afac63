"""Mixtures of experts through the whole way: fitted, opened, run, exported, compared with the original."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import sprat
from families import contexts
from mixtures import MIXTURES, tiny_mixture
from sprat.cli.main import main
from sprat.errors import SourceError, SpratError
from sprat.job import calibration_tokens, hungriest
from sprat.prove.metrics import compare
from sprat.prove.proof import prove
from sprat.prove.text import Contexts
from sprat.recipe import Recipe
from sprat.run.engine import open_engine, why
from sprat.run.export import export
from sprat.run.model import to_torch
from sprat.source.experts import unfuse
from sprat.source.maps import Group


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / "cache"))


def quick(**settings: object) -> Recipe:
    return Recipe.from_dict({"context": 32, "tokens": 1024, "heal": 0} | settings)


def saved(family, tiny, tmp_path):
    folder, model = shutil.copytree(tiny.folder, tmp_path / "model"), tiny_mixture(family)
    model.save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("family", MIXTURES)
def test_fit_open_export_and_compare(family, tiny, tmp_path):
    folder, original = saved(family, tiny, tmp_path)
    file = tmp_path / "x.sprat"
    result = sprat.fit(folder, "80%", file, seed=3, recipe=quick())

    assert 0.97 * 1.6 < result.nbytes / sum(p.numel() for p in original.parameters()) <= 1.6
    artifact = sprat.open(file)
    artifact.verify()
    stored = {m for entry in artifact.entries().values() for m in entry.maps}
    assert stored == unfuse(tiny_mixture(family)).state_dict().keys()
    rebuilt = to_torch(artifact)
    kl = compare(original, rebuilt, Contexts(contexts(8, 32).numpy(), np.ones(8), 1)).kl
    # Measured: 0.0005 to 0.018, nearly all of it tokens that are routed anew; two experts exchanged: 0.13 to 0.53.
    assert np.isfinite(kl).all() and 0 < kl.mean() < 0.05

    export(file, "hf", tmp_path / "hf", dtype="float32")
    assert (
        load_file(tmp_path / "hf" / "model.safetensors").keys()
        == load_file(folder / "model.safetensors").keys()
    )
    read, info = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ids = contexts(2, 17)
    with torch.no_grad():
        assert torch.allclose(read(input_ids=ids).logits, rebuilt(input_ids=ids).logits, atol=2e-5)

    engine = open_engine(artifact)
    assert engine.name == "torch" and "native engine does not serve" in why(engine)
    idle = sum(p.numel() for name, p in rebuilt.named_parameters() if ".experts." in name)
    idle -= sum(p.numel() for name, p in rebuilt.named_parameters() if re.search(r"experts\.[01]\.", name))
    read_once = sum(p.numel() for p in rebuilt.parameters()) - idle - 320 * 32  # 2 experts, no embedding
    assert getattr(engine, "bytes_per_token", 0) == 4 * read_once
    row = ids[0].tolist()
    assert np.allclose(engine.all_logits(row), rebuilt(input_ids=ids[:1]).logits[0].detach(), atol=2e-5)
    session = engine.session()
    steps = [engine.step([session], [[token]])[0] for token in row]
    assert np.allclose(np.stack(steps), engine.all_logits(row), atol=1e-4)


def test_verbs_know_mixtures(tiny, tmp_path, capsys):
    folder, _ = saved("mixtral", tiny, tmp_path)
    file, words = tmp_path / "x.sprat", ["--set", "context=32", "--set", "tokens=32", "--set", "heal=0"]
    assert (
        main(["fit", str(folder), "--budget", "60%", "-o", str(file), "--calibrate", str(tiny.text), *words])
        == 0
    )
    assert (
        "8 of 8 experts saw fewer calibration tokens than 2 for each of their inputs"
        in capsys.readouterr().err
    )
    assert main(["inspect", str(file)]) == 0
    assert "feed-forward" in capsys.readouterr().out
    assert main(["run", str(file), "the cat", "--max-tokens", "4"]) == 0
    proof = prove(file, folder, tiny.text, tokens=256, context=64)
    assert proof.metrics.kl is not None and 0 < proof.metrics.kl.value < 0.1


@pytest.mark.parametrize(("width", "tokens"), [(1024, 16384), (2048, 24576), (8192, 65536)])
def test_an_expert_gets_as_many_calibration_tokens_as_its_share_asks_for(width, tokens, monkeypatch):
    """Experts three quarters as wide as the model see half of the tokens; bounded as without experts."""
    found = [Group((), 0), Group((), 0, share=0.5)]
    widths = {id(found[0]): width, id(found[1]): width * 3 // 4}
    monkeypatch.setattr(Group, "width", property(lambda group: widths[id(group)]))
    assert calibration_tokens(hungriest(found)) == tokens


def test_sequential_rounding_is_refused(tiny, tmp_path):
    folder, _ = saved("mixtral", tiny, tmp_path)
    with pytest.raises(SpratError, match=r"mixtures of experts.*sequential = false"):
        sprat.fit(folder, "50%", tmp_path / "x.sprat", recipe=quick(sequential=True))
    assert not (tmp_path / "x.sprat").exists()


def test_fewer_experts_are_an_ordinary_smaller_model(tiny, tmp_path, capsys):
    folder, original = saved("mixtral", tiny, tmp_path)
    for layer in original.model.layers:  # one that says nothing
        layer.mlp.experts.down_proj.data[1] *= 1e-3
    original.save_pretrained(folder)
    file = tmp_path / "x.sprat"
    words = ["fit", str(folder), "--budget", "60%", "-o", str(file), "--experts", "3"]
    for setting in ("context=32", "tokens=1024", "heal=0"):
        words += ["--set", setting]
    assert main(words) == 0
    artifact = sprat.open(file)
    assert artifact.config["num_local_experts"] == 3
    assert artifact.provenance["structure"]["experts"] == {"of": 4, "kept": 3}
    assert main(["inspect", str(file)]) == 0
    assert "kept: 3 of 4 experts a layer" in capsys.readouterr().out
    rebuilt = to_torch(artifact)
    for layer in range(2):
        own = rebuilt.get_parameter(f"model.layers.{layer}.mlp.experts.1.w1.weight")
        assert torch.corrcoef(torch.stack([own.flatten(), _gate(original, layer, 2).flatten()]))[0, 1] > 0.99
    export(artifact, "hf", tmp_path / "hf", dtype="float32")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    ids = contexts(2, 17)
    with torch.no_grad():
        assert torch.allclose(read(input_ids=ids).logits, rebuilt(input_ids=ids).logits, atol=2e-5)


def _gate(model, layer: int, expert: int) -> torch.Tensor:
    return model.model.layers[layer].mlp.experts.gate_up_proj[expert].detach().chunk(2)[0]


def test_layers_beside_others_without_experts_stay(tiny, tmp_path):
    folder, _ = saved("qwen2, shared", tiny, tmp_path)
    with pytest.raises(SourceError, match=r"1 of its 2 layers have experts.*`remove_layers` at 0"):
        sprat.fit(folder, "50%", tmp_path / "x.sprat", recipe=quick(remove_layers=1))


def test_a_layer_with_experts_can_be_removed(tiny, tmp_path):
    folder, _ = saved("qwen3", tiny, tmp_path)
    file = tmp_path / "x.sprat"
    result = sprat.fit(folder, "40%", file, recipe=quick(remove_layers=1, kv_heads=1, experts=4))
    model = to_torch(sprat.open(file))
    assert len(model.model.layers) == 1 and model.config.num_experts == 4 and result.measured_kl > 0.01
