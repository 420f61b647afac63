"""Engines: how one is chosen, and that torch's keeps its word to whoever uses it."""

import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, MistralConfig, Qwen3Config

import sprat
from sprat.errors import RequestError, SpratError, UnsupportedError
from sprat.run.engine import open_engine, why
from sprat.run.model import to_torch
from sprat.run.torch_engine import TorchEngine
from tiny_model import write_file

IDS = [5, 60, 130, 290, 7, 9, 300, 41, 17, 3, 3, 250]
_WIDE = {
    "vocab_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "initializer_range": 0.2,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "pad_token_id": None,
}
#: The sliding windows are shorter than the text.
FAMILIES = {
    "mistral": MistralConfig(**_WIDE, sliding_window=4),
    "qwen3": Qwen3Config(**_WIDE, tie_word_embeddings=True),
    "gemma3": Gemma3TextConfig(
        **_WIDE,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
    ),
}


@pytest.fixture(scope="module", params=["llama", *FAMILIES])
def engine(request, tiny, tmp_path_factory):
    if request.param == "llama":
        return TorchEngine(sprat.open(tiny.file))
    folder = shutil.copytree(tiny.folder, tmp_path_factory.mktemp(request.param) / "model")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(FAMILIES[request.param], dtype=torch.float32).save_pretrained(folder)
    return TorchEngine(sprat.open(write_file(folder, folder / "file.sprat")))


def one(engine, ids):
    session = engine.session()
    out = engine.step([session], [ids])[0]
    session.close()
    return out


def test_steps_give_the_logits_of_the_whole_text(engine):
    every = engine.all_logits(IDS)
    assert every.shape == (len(IDS), engine.vocabulary) and every.dtype == np.float32
    with torch.no_grad():
        plain = engine.model(torch.tensor([IDS]), use_cache=False).logits[0].numpy()
    np.testing.assert_allclose(every, plain, atol=1e-5)
    session, at = engine.session(), 0
    for size in (3, 1, 4, 1, 1, 2):
        found = engine.step([session], [IDS[at : at + size]])
        at += size
        assert session.length == at and found.shape == (1, engine.vocabulary)
        np.testing.assert_allclose(found[0], every[at - 1], atol=1e-4)


def test_a_batch_is_its_texts_one_by_one(engine):
    sessions = [engine.session() for _ in range(3)]
    texts = [IDS[:7], IDS[2:3], IDS[4:9]]
    np.testing.assert_allclose(engine.step(sessions, texts), [one(engine, t) for t in texts], atol=1e-4)
    found = engine.step(sessions[::-1], [[8], [9, 1], [2]])
    grown = [texts[2] + [8], texts[1] + [9, 1], texts[0] + [2]]
    np.testing.assert_allclose(found, [one(engine, t) for t in grown], atol=1e-4)


@pytest.mark.parametrize("length", [0, 1, 6, 11, 12])
def test_a_rewound_session_is_as_if_the_rest_had_never_been(engine, length):
    session = engine.session()
    engine.step([session], [IDS])
    session.rewind(length)
    assert session.length == length
    found = engine.step([session], [[44, 45]])[0]
    np.testing.assert_allclose(found, one(engine, [*IDS[:length], 44, 45]), atol=1e-4)


def test_what_a_step_cannot_take_is_refused_and_changes_nothing(tiny):
    engine = TorchEngine(sprat.open(tiny.file), context=8)
    assert engine.context == 8
    first, second = engine.session(), engine.session(4)
    engine.step([first], [IDS[:3]])
    for sessions, ids, message in (
        ([first, second], [[1], IDS[:5]], r"0 \+ 5 tokens do not fit into a context of 4"),
        ([first, second], [[1], []], "at least one token"),
        ([first, second], [[1], [320]], "outside the vocabulary of 320"),
        ([first, second], [[1], [-1]], "outside the vocabulary"),
        ([first, first], [[1], [2]], "twice"),
        ([first], [[1], [2]], "1 sessions, but 2"),
        ([first], [IDS[:6]], r"3 \+ 6 tokens"),
    ):
        with pytest.raises(RequestError, match=message):
            engine.step(sessions, ids)
        assert (first.length, second.length) == (3, 0)
    with pytest.raises(RequestError, match="cannot rewind to 4"):
        first.rewind(4)
    with pytest.raises(RequestError, match="do not fit"):
        engine.all_logits(IDS)
    with pytest.raises(RequestError, match="between 1 and 8"):
        engine.session(9)
    first.close()
    first.close()
    with pytest.raises(RequestError, match="closed"):
        engine.step([first], [[1]])


def test_a_step_that_breaks_off_leaves_no_half_session(tiny, monkeypatch):
    engine = TorchEngine(sprat.open(tiny.file))
    session = engine.session()
    engine.step([session], [IDS])

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.model.model.layers[1], "forward", stop)
    with pytest.raises(KeyboardInterrupt):
        engine.step([session], [[1]])
    with pytest.raises(RequestError, match="closed"):
        engine.step([session], [[1]])


def test_the_context_is_the_models_unless_a_shorter_one_is_asked_for(tiny):
    artifact = sprat.open(tiny.file)
    assert open_engine(artifact, kind="torch").context == 256
    with pytest.raises(RequestError, match="context must lie between 1 and 256 tokens, not 257") as caught:
        open_engine(artifact, context=257, kind="torch")
    assert caught.value.setting == "context"


def test_bytes_a_token_leaves_only_an_untied_embedding_out(engine):
    total = sum(p.numel() for p in engine.model.parameters()) * 4
    assert engine.bytes_per_token == total - (0 if engine.model.config.tie_word_embeddings else 320 * 32 * 4)


class Native:
    """Stands for the native engine's module."""

    name = "native"

    def __init__(self, artifact, threads=None, context=None, cache=None, keep=None):
        self.asked = threads, context, cache


@pytest.fixture
def native(monkeypatch):
    """Put a class in the native engine's place."""

    def put(engine):
        monkeypatch.setitem(sys.modules, "sprat.run.native", types.SimpleNamespace(NativeEngine=engine))

    return put


def test_auto_takes_the_native_engine(tiny, native):
    native(Native)
    engine = open_engine(sprat.open(tiny.file), threads=3, context=9, cache="bf16")
    assert (engine.name, engine.asked, why(engine)) == ("native", (3, 9, "bf16"), "")
    assert open_engine(sprat.open(tiny.file), kind="torch").name == "torch"


def test_auto_falls_back_to_torch_and_says_why(tiny, native):
    def refuse(*_, **__):
        raise UnsupportedError("the native engine does not know 'gpt2'")

    native(refuse)
    engine = open_engine(sprat.open(tiny.file))
    assert (engine.name, why(engine)) == ("torch", "the native engine does not know 'gpt2'")
    with pytest.raises(UnsupportedError, match="gpt2"):
        open_engine(sprat.open(tiny.file), kind="native")


def test_other_failures_of_the_native_engine_are_not_hidden(tiny, native):
    def broken(*_, **__):
        raise SpratError("section 'x' is damaged")

    native(broken)
    with pytest.raises(SpratError, match="damaged"):
        open_engine(sprat.open(tiny.file))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "troch"}, r"unknown engine 'troch' \(did you mean 'torch'\?\): one of auto, native, torch"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
    ],
)
def test_a_wrong_choice_is_refused(tiny, options, message):
    with pytest.raises(SpratError, match=message):
        open_engine(sprat.open(tiny.file), **options)


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_torch_is_not_imported_unless_its_engine_is_chosen(tiny):
    code = f"""
import sys, types
class Native:
    name, vocabulary, context = "native", 320, 64
    def __init__(self, artifact, threads=None, context=None, cache=None, keep=None): pass
sys.modules["sprat.run.native"] = types.SimpleNamespace(NativeEngine=Native)
import sprat, sprat.run.engine, sprat.run.generate, sprat.run.chat, sprat.run.measure
import sprat.run.serve.server, sprat.cli.main
print(sprat.run.engine.open_engine(sprat.open({str(tiny.file)!r})).name)
print([m for m in ("torch", "transformers") if m in sys.modules])
"""
    assert python(code).stdout.split("\n")[:2] == ["native", "[]"]


def test_without_any_engine_it_says_what_to_install(tiny):
    code = f"""
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
from sprat.cli.main import main
from sprat.errors import UnsupportedError
from sprat.run import native
def refuse(*_, **__):
    raise UnsupportedError("the native engine does not serve 'gpt2'")
native.NativeEngine = refuse
print(main(["run", {str(tiny.file)!r}, "the cat"]))
"""
    done = python(code)
    assert done.stdout.strip() == "2"
    assert done.stderr == (
        "sprat: error: no engine can run this file: the native engine does not serve 'gpt2'; "
        "the torch engine needs torch: pip install 'sprat[fit]'\n"
    )


def test_the_reference_is_the_model_that_the_file_stands_for(tiny):
    artifact = sprat.open(tiny.file)
    with torch.no_grad():
        plain = to_torch(artifact)(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(TorchEngine(artifact).all_logits(IDS), plain, atol=1e-5)
