"""Calibration text: from files, and written by the model."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch

from sprat.errors import SourceError
from sprat.source import selftext
from sprat.source.load import load
from sprat.source.text import calibration_ids, spread


@pytest.fixture(scope="module")
def source(tiny):
    return load(tiny.folder, torch.float32)


def test_files_are_cut_into_contexts_spread_over_them(source, tiny):
    made = calibration_ids(source, tiny.text, tokens=100, context=16, seed=1)
    assert made.ids.shape == (7, 16) and made.ids.dtype == np.int64
    whole = source.tokenizer.encode(tiny.text.read_text(encoding="utf-8"), add_special_tokens=False)
    rows = np.array(whole[: len(whole) // 16 * 16]).reshape(-1, 16)
    assert all((rows == row).all(axis=1).any() for row in made.ids)
    same, other = (calibration_ids(source, [str(tiny.text)], 100, 16, seed=s) for s in (1, 2))
    assert same.hash == made.hash != other.hash and made.text_hashes == other.text_hashes


def test_places_are_even():
    places = spread(1000, 10, seed=0)
    assert (places // 100 == np.arange(10)).all() and (spread(7, 7, 3) == np.arange(7)).all()


def test_text_that_cannot_serve(source, tmp_path, monkeypatch):
    short, latin = tmp_path / "short.txt", tmp_path / "latin.txt"
    short.write_text("the cat")
    latin.write_bytes("café".encode("latin-1"))
    with pytest.raises(SourceError, match=r"too short: \d+ tokens .*at least 64 are needed"):
        calibration_ids(source, short, 50, 32)
    with pytest.raises(SourceError, match="not UTF-8"):
        calibration_ids(source, latin, 50, 32)
    with pytest.raises(SourceError, match=r"no calibration text .*did you mean 'short.txt'"):
        calibration_ids(source, tmp_path / "shrt.txt", 50, 32)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match="pip install datasets"):
        calibration_ids(source, "hub:some/data", 50, 32)


def test_standard_input(source, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat sat on the mat. " * 40)))
    assert calibration_ids(source, "-", 64, 32).ids.shape == (2, 32)


def test_the_model_writes_what_a_plain_forward_pass_predicts(source):
    """Every logit that a token was drawn from equals that of a pass without cache."""
    seen = []

    def choose(logits):
        seen.append(logits.clone())
        return selftext.sampler(generator, 1.0, 1.0)(logits)

    generator = torch.Generator().manual_seed(0)
    chat = selftext.chat_format(source.tokenizer)
    assert chat is not None
    sequences = [selftext._Sequence(c, [0], frozenset({0, chat.to_user[0]})) for c in (None, chat, None)]
    ids = selftext.continue_all(source.model, sequences, 24, choose, lambda step: None)
    with torch.no_grad():
        plain = source.model(ids).logits
    assert torch.allclose(torch.stack(seen, 1), plain[:, :-1], atol=1e-4)
    assert source.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "qwen3", "mistral"])
def test_decoding_equals_a_plain_pass_in_other_families(family):
    from test_maps import build

    model = build(family)
    sequences = [selftext._Sequence(None, [1], frozenset()) for _ in range(2)]
    seen = []

    def choose(logits):
        seen.append(logits.clone())
        return logits.argmax(-1)

    ids = selftext.continue_all(model, sequences, 20, choose, lambda step: None)  # beyond the window of 8
    with torch.no_grad():
        assert torch.allclose(torch.stack(seen, 1), model(ids).logits[:, :-1], atol=1e-4)


def test_sampling_follows_the_distribution():
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0, -1e9, 3.0])
    drawn = selftext.sampler(generator, 1.0, 1.0)(logits.repeat(20000, 1))
    share = torch.bincount(drawn, minlength=5) / 20000
    assert torch.allclose(share, logits.softmax(-1), atol=0.02) and share[3] == 0
    cut = selftext.sampler(generator, 1.0, 0.6)(logits.repeat(2000, 1))
    assert set(cut.tolist()) == {4}  # it alone has 64 %


def test_written_text_is_seeded_whole_and_in_the_chat_format(source):
    steps = []
    made = calibration_ids(source, "self", 100, 32, 5, lambda stage, done, total: steps.append((done, total)))
    again, other = (calibration_ids(source, "self", 100, 32, seed) for seed in (5, 6))
    assert made.ids.shape == (4, 32) and made.hash == again.hash != other.hash
    assert steps[-1] == (128, 128) and steps == sorted(steps)
    user = source.tokenizer.convert_tokens_to_ids("<user>")
    assert (made.ids[1::2, 0] == user).all() and (made.ids[0::2, 0] == 0).all()


def test_turns_are_forced_in_the_order_of_the_format():
    chat = selftext.Chat(opening=[1, 2], to_assistant=[9, 3], to_user=[9, 2])
    sequence = selftext._Sequence(chat, [0], frozenset({9}))
    assert [sequence.take(t) for t in (0, 0, 5, 6, 9, 0, 7, 9, 0, 8)] == [1, 2, 5, 6, 9, 3, 7, 9, 2, 8]
    free = selftext._Sequence(None, [0], frozenset({9}))
    assert [free.take(t) for t in (4, 5, 9, 4, 6)] == [0, 5, 9, 0, 6]


def test_the_batch_is_cut_to_the_memory_bound(source, monkeypatch):
    whole = selftext.write(source, 4, 16, seed=0)
    monkeypatch.setattr(selftext, "_CACHE_BYTES", 2 * selftext._cache_bytes(source.model, 16))
    batches = []
    run = selftext.continue_all
    monkeypatch.setattr(
        selftext,
        "continue_all",
        lambda model, group, *rest: batches.append(len(group)) or run(model, group, *rest),
    )
    assert selftext.write(source, 4, 16, seed=0).shape == whole.shape and batches == [2, 2]


@pytest.mark.real
def test_the_real_model_writes_sense(real):
    source = load(real)
    made = calibration_ids(source, "self", 64, 32)
    with torch.no_grad():
        loss = source.model(torch.from_numpy(made.ids), labels=torch.from_numpy(made.ids)).loss
    assert source.original_bytes == 269_030_016 and loss < 6  # chance is 10.8
