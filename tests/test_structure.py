"""Structural pruning through the whole way: a fit whose file opens everywhere, and what is refused before it starts."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sprat
from families import CONFIGS, contexts, tiny_model
from sprat.cli.main import main
from sprat.errors import RecipeError, SourceError
from sprat.prove.proof import prove
from sprat.recipe import Recipe
from sprat.run.export import export
from sprat.run.model import to_torch
from sprat.run.native import NativeEngine


def quick(**settings: object) -> Recipe:
    return Recipe.from_dict({"context": 32, "tokens": 1024, "heal": 0} | settings)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / "cache"))


def _folder(family, tiny, tmp_path):
    folder = shutil.copytree(tiny.folder, tmp_path / "model")
    tiny_model(family).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", CONFIGS)
def test_a_reduced_model_is_fitted_and_runs(family, tiny, tmp_path):
    folder, file = _folder(family, tiny, tmp_path), tmp_path / "small.sprat"
    heads = 0 if "gpt2" in family else 1
    recipe = quick(remove_layers=1, ffn=0.5, kv_heads=heads)

    result = sprat.fit(folder, "40%", file, seed=3, recipe=recipe)

    artifact = sprat.open(file)
    artifact.verify()
    removed = artifact.provenance["structure"]
    assert removed["layers"]["of"] == 2 and len(removed["layers"]["removed"]) == 1
    assert removed["ffn"]["kept"] * 2 == removed["ffn"]["of"]
    model = to_torch(artifact)
    assert model.config.num_hidden_layers == 1
    # To the original: what rounding costs is next to nothing here beside what was removed.
    assert removed["kl"] > 0.01 and result.measured_kl == pytest.approx(removed["kl"], rel=0.2)
    if heads:
        assert removed["kv_heads"] == {"of": 2, "kept": 1}
        ids = contexts(1, 20)[0].numpy()
        with torch.no_grad():
            expected = model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
        found = NativeEngine(artifact, threads=1, activations="float").all_logits(ids)
        assert np.abs(found - expected).max() < 1e-3 * expected.std()


def test_fewer_tokens_are_compared_in_bits_per_byte(tiny, tmp_path):
    folder, file = _folder("qwen3", tiny, tmp_path), tmp_path / "small.sprat"
    options = {"seed": 3, "recipe": quick(vocabulary=280, ffn=0.75)}
    result = sprat.fit(folder, "60%", file, **options)
    again = sprat.fit(
        folder, "60%", tmp_path / "again.sprat", **options
    )  # what was chosen comes from the cache
    assert (
        tmp_path / "again.sprat"
    ).read_bytes() == file.read_bytes() and again.measured_kl == result.measured_kl
    before, after = result.bits_per_byte
    assert before > 0 and after > 0 and before != after
    artifact = sprat.open(file)
    assert artifact.config["vocab_size"] == 280
    text = "the cat sat on a mat, café 🐟"
    tokenizer = AutoTokenizer.from_pretrained(export(artifact, "hf", tmp_path / "hf"))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token_id == artifact.config["eos_token_id"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert model.get_input_embeddings().weight.shape[0] == 280
    proof = prove(file, folder, tiny.text, tokens=512, context=64)
    assert np.isnan(proof.metrics.kl.value) if proof.metrics.kl is not None else True
    assert proof.metrics.bits_per_byte_compressed.value > 0


def test_neurons_that_copy_others_go_for_nothing(tiny, tmp_path):
    folder = _folder("llama", tiny, tmp_path)
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            for name in ("gate_proj", "up_proj"):
                weight = getattr(layer.mlp, name).weight
                weight[1::2] = weight[::2]
    model.save_pretrained(folder)
    result = sprat.fit(folder, "90%", tmp_path / "x.sprat", recipe=quick(ffn=0.5, shrinkage=1e-3), seed=3)
    assert result.measured_kl < 1e-3  # half the neurons at random: above 0.3


def test_what_there_is_not_is_refused(tiny, tmp_path):
    folder = _folder("llama", tiny, tmp_path)
    for settings, said in (
        ({"remove_layers": 2}, "has 2 layers.*0 to 1"),
        ({"kv_heads": 3}, "has 2 key-value heads.*1 to 2"),
        ({"vocabulary": 200}, "259.*to 308"),
        ({"vocabulary": 400}, "259.*to 308"),
    ):
        with pytest.raises(RecipeError, match=said):
            sprat.fit(folder, "50%", tmp_path / "x.sprat", recipe=quick(**settings))
    for settings in ({"ffn": 0.0}, {"ffn": 1.5}, {"remove_layers": -1}, {"kv_heads": -1}, {"vocabulary": -1}):
        with pytest.raises(RecipeError, match=next(iter(settings))):
            Recipe.from_dict(settings)
    assert not (tmp_path / "x.sprat").exists()


def test_families_without_groups_are_refused_by_name(tiny, tmp_path):
    with pytest.raises(SourceError, match=r"GPT2LMHeadModel.*kv_heads"):
        sprat.fit(_folder("gpt2", tiny, tmp_path), "50%", tmp_path / "x.sprat", recipe=quick(kv_heads=1))


def test_a_layer_less_of_a_family_whose_maps_see_a_batch_in_one_row(tiny, tmp_path):
    file = tmp_path / "x.sprat"
    sprat.fit(_folder("opt", tiny, tmp_path), "60%", file, recipe=quick(remove_layers=1))
    with sprat.open(file) as artifact:
        assert to_torch(artifact).config.num_hidden_layers == 1


def test_a_family_that_fixes_its_heads_is_refused_by_name(tiny, tmp_path):
    folder = _folder("stablelm", tiny, tmp_path)
    with pytest.raises(
        SourceError, match="StableLmForCausalLM does not allow what would be left: size mismatch"
    ):
        sprat.fit(folder, "50%", tmp_path / "x.sprat", recipe=quick(kv_heads=1))


def test_flags_set_the_recipe_and_inspect_says_so(tiny, tmp_path, capsys):
    folder, file = _folder("llama", tiny, tmp_path), tmp_path / "x.sprat"
    words = ["fit", str(folder), "--budget", "50%", "-o", str(file), "--remove-layers", "1", "--ffn", "0.5"]
    for setting in ("context=32", "tokens=1024", "heal=0"):
        words += ["--set", setting]
    assert main([*words, "--kv-heads", "1", "--vocabulary", "300"]) == 0
    assert "bits a byte" in capsys.readouterr().out
    assert main(["inspect", str(file)]) == 0
    shown = capsys.readouterr().out
    for line in ("of 2 layers", "32 of 64 feed-forward", "1 of 2 key-value heads", "300 of 320 tokens"):
        assert line in shown


def test_a_sweep_on_a_text_does_not_trim_the_vocabulary(tiny, tmp_path):
    from sprat.sweep import sweep

    with pytest.raises(RecipeError, match="bits per byte"):
        sweep(tiny.folder, ["50%"], tmp_path / "s", tiny.text, recipe=quick(vocabulary=280))
