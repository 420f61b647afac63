"""A file through torch, generation, and export."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sprat
from sprat.coding.tensors import expand
from sprat.errors import FormatError, SourceError, SpratError
from sprat.run import export as exporting
from sprat.run.generate import generate, sample, tokens
from sprat.run.model import TorchEngine, to_torch
from sprat.run.tokenizer import from_files, open_tokenizer, render

IDS = torch.tensor([[5, 60, 130, 290, 7, 9, 300, 41]])


def test_the_model_is_the_original_with_the_stored_weights(tiny):
    artifact = sprat.open(tiny.file)
    original = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32)
    original.load_state_dict(
        {name: torch.from_numpy(array) for name, array in expand(artifact.entries()).items()}, strict=False
    )
    with torch.no_grad():
        assert torch.equal(to_torch(artifact)(IDS).logits, original.eval()(IDS).logits)


def test_an_unknown_dtype_is_refused_with_the_nearest(tiny):
    with pytest.raises(SpratError, match=r"unknown dtype 'float23' \(did you mean 'float32'\?\)"):
        to_torch(sprat.open(tiny.file), "float23")


class Altered:
    """An artifact with something changed."""

    def __init__(self, artifact, config=None, drop=(), rename=None):
        self.config = artifact.config | (config or {})
        self.names = tuple(name for name in artifact.names if name not in drop)
        self.artifact, self.rename = artifact, rename or {}

    def entry(self, name):
        entry = self.artifact.entry(name)
        return type(entry)(tuple(self.rename.get(m, m) for m in entry.maps), entry.rows, entry.tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"model_type": None}}, "no model_type"),
        ({"config": {"model_type": "lama"}}, "'lama' cannot be built"),
        (
            {"config": {"vocab_size": 321}},
            r"'model.embed_tokens.weight' is \(320, 32\), the config asks for \(321",
        ),
        ({"drop": ["model.norm.weight"]}, "lacks 1 tensors of its model, 'model.norm.weight' first"),
        (
            {"rename": {"model.norm.weight": "model.norms.weight"}},
            "no part of a llama.*did you mean 'model.norm",
        ),
    ],
)
def test_a_file_that_contradicts_its_config_is_refused(tiny, change, message):
    with pytest.raises(FormatError, match=message):
        to_torch(Altered(sprat.open(tiny.file), **change))


def test_greedy_text_is_what_transformers_writes(tiny, tmp_path):
    artifact = sprat.open(tiny.file)
    folder = exporting.export(artifact, "hf", tmp_path / "hf", "float32")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the cat", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    found = "".join(generate(artifact, "the cat", max_tokens=20, chat=False))
    assert found == tokenizer.decode(expected, skip_special_tokens=True)


def test_the_cache_gives_the_logits_of_the_whole_text(tiny):
    artifact = sprat.open(tiny.file)
    engine = TorchEngine(artifact)
    engine.logits(IDS[0, :5].tolist())
    for token in IDS[0, 5:].tolist():
        last = engine.logits([token])
    with torch.no_grad():
        np.testing.assert_allclose(last, to_torch(artifact)(IDS).logits[0, -1].numpy(), atol=1e-4)


def test_sampling_is_seeded_and_stops(tiny):
    artifact = sprat.open(tiny.file)
    options = {"max_tokens": 12, "temperature": 1.0, "top_p": 0.9, "chat": True}
    once, again, other = ("".join(generate(artifact, "the cat", seed=s, **options)) for s in (1, 1, 2))
    assert once == again != other


class Script:
    """An engine that always favours the next of a list of tokens."""

    def __init__(self, favoured):
        self.favoured, self.seen = list(favoured), []

    def logits(self, ids):
        self.seen.append(list(ids))
        out = np.zeros(320, np.float32)
        out[self.favoured.pop(0)] = 10
        return out


def test_an_end_of_text_token_ends_it_and_is_not_shown(tiny):
    engine = Script([70, 71, 0, 72])
    assert list(tokens(engine, [5, 6], frozenset({0}), 10, 0.0, 1.0, 0)) == [70, 71]
    assert engine.seen == [[5, 6], [70], [71]]
    assert open_tokenizer(sprat.open(tiny.file)).eos_ids == {0}


def test_characters_come_whole(tiny):
    tokenizer = open_tokenizer(sprat.open(tiny.file))
    ids = tokenizer.encode("the 🐟 sat café", special=False)
    pieces = list(tokenizer.stream([], ids))
    assert "".join(pieces) == "the 🐟 sat café"
    assert not any("�" in piece for piece in pieces)
    assert "".join(tokenizer.stream([], ids[:-1])) == "the 🐟 sat caf�"


def test_top_p_keeps_the_fewest_tokens_that_hold_the_mass():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    random = np.random.default_rng(0)
    drawn = [sample(logits, 1.0, 0.7, random) for _ in range(500)]
    assert set(drawn) == {0, 1}
    assert 0.55 < drawn.count(0) / 500 < 0.70
    assert {sample(logits, 1.0, 1.0, random) for _ in range(500)} == {0, 1, 2, 3}
    assert sample(logits, 0.0, 1.0, random) == 0
    with pytest.raises(SourceError, match="not finite"):
        sample(np.array([1.0, np.nan]), 1.0, 1.0, random)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must lie between"),
        ({"temperature": float("nan")}, "temperature must lie between"),
        ({"top_p": 0.0}, "top-p must be above 0"),
        ({"prompt": "", "chat": False}, "the prompt is empty"),
    ],
)
def test_settings_outside_their_range_are_refused(tiny, options, message):
    with pytest.raises(SourceError, match=message):
        list(generate(sprat.open(tiny.file), **({"prompt": "the"} | options)))


def test_chat_templates_render_as_transformers_does_and_run_sandboxed(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder)
    messages = [{"role": "user", "content": "the cat"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert open_tokenizer(sprat.open(tiny.file)).chat(messages) == expected
    with pytest.raises(SourceError, match="chat template refused"):
        render("{{ messages.__class__.__mro__[1].__subclasses__() }}", messages, {})
    with pytest.raises(SourceError, match="no assistants"):
        render("{{ raise_exception('no assistants') }}", messages, {})
    assert (
        render("{{ eos_token }}\n{% if add_generation_prompt %}\nx{% endif %}", messages, {"eos_token": "E"})
        == "E\nx"
    )


def test_a_broken_tokenizer_is_named(tiny):
    with pytest.raises(FormatError, match=r"no tokenizer\.json"):
        from_files({}, {})
    with pytest.raises(FormatError, match="section 'tokenizer'"):
        from_files({"tokenizer.json": b"{]"}, {})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_opens_unaided_with_the_same_logits(tiny, tmp_path, dtype):
    folder = sprat.export(tiny.file, "hf", tmp_path / "out", dtype)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == getattr(torch, dtype)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, to_torch(sprat.open(tiny.file), dtype)(IDS).logits)
    assert AutoTokenizer.from_pretrained(folder)("the cat").input_ids


def test_export_in_several_shards(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "SHARD_BYTES", 40_000)
    folder = exporting.export(tiny.file, "hf", tmp_path / "out", "float32")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list(folder.glob("*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, to_torch(sprat.open(tiny.file))(IDS).logits)


def test_export_refuses_and_leaves_nothing_half(tiny, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(SpratError, match="not an empty folder"):
        sprat.export(tiny.file, "hf", tmp_path / "full")
    with pytest.raises(SpratError, match=r"unknown form 'hff' \(did you mean 'hf'\?\)"):
        sprat.export(tiny.file, "hff", tmp_path / "out")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "_save", full)
    with pytest.raises(SpratError, match="No space left"):
        sprat.export(tiny.file, "hf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
