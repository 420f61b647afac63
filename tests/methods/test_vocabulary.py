"""Trimmed byte-level BPE tokenizers: every text comes back, nothing dangles, others are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from sprat.coding.tokenizer import pack, unpack
from sprat.errors import RecipeError, SourceError
from sprat.methods.structure import vocabulary


@pytest.fixture(scope="module")
def whole(tiny):
    return vocabulary.read((tiny.folder / "tokenizer.json").read_bytes(), "tiny")


def _kept(whole, count, seed=0, ids=()):
    score = np.random.default_rng(seed).random(len(whole["model"]["vocab"]) + 9)
    return vocabulary.kept_tokens(whole, score, count, vocabulary.needed(whole, ids))


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60), count=st.integers(259, 308), seed=st.integers(0, 3))
def test_every_text_comes_back(whole, text, count, seed):
    kept = _kept(whole, count, seed)
    small = Tokenizer.from_str(json.dumps(vocabulary.trimmed(whole, kept)))
    big = Tokenizer.from_str(json.dumps(whole))
    ids = small.encode(text).ids
    assert len(kept) == count and small.get_vocab_size() == count
    assert small.decode(ids) == big.decode(big.encode(text).ids) == text
    assert max(ids, default=0) < count


def test_what_stays_can_be_made(whole):
    """Every token that stays and was made by a merge is made by one still; merges name tokens that are there."""
    made = {"".join(pair) for pair in whole["model"]["merges"]}
    small = vocabulary.trimmed(whole, _kept(whole, 290))["model"]
    products = {"".join(pair) for pair in small["merges"]}
    assert {t for t in small["vocab"] if t in made} == products
    assert all(part in small["vocab"] for pair in small["merges"] for part in pair)
    assert set(ByteLevel.alphabet()) <= set(small["vocab"])
    assert sorted(small["vocab"].values()) == list(range(290))


def test_the_most_used_stay(whole):
    vocab = whole["model"]["vocab"]
    score = np.zeros(320)
    score[vocab["Ġmat"]] = 1  # which needs Ġm, m, a, t and at or so
    kept = vocabulary.kept_tokens(whole, score, 262, vocabulary.needed(whole, ()))
    assert vocab["Ġmat"] in kept


def test_old_tokens_are_spelled_in_new_ones(whole):
    kept = _kept(whole, 280)
    spelling = vocabulary.spelling(whole, kept, 325)
    small = Tokenizer.from_str(json.dumps(vocabulary.trimmed(whole, kept)))
    big = Tokenizer.from_str(json.dumps(whole))
    for old in range(308):
        assert small.decode(spelling[old], skip_special_tokens=False) == big.decode(
            [old], skip_special_tokens=False
        )
        if old in kept:
            assert spelling[old] == [kept.tolist().index(old)]
    assert spelling[308:] == [[0]] * 17


def test_bytes_that_were_never_there_change_nothing(whole):
    """As in SmolLM's tokenizer, which has no token for a few control characters."""
    model = whole["model"]
    gap = next(
        letter for letter, old in model["vocab"].items() if ByteLevel.alphabet().count(letter) and old > 200
    )
    merges = [pair for pair in model["merges"] if gap not in "".join(pair)]
    vocab = {token: old for token, old in model["vocab"].items() if gap not in token}
    lacking = whole | {"model": model | {"vocab": vocab, "merges": merges}}
    kept = vocabulary.kept_tokens(lacking, np.ones(308), 270, vocabulary.needed(lacking, ()))
    small = Tokenizer.from_str(json.dumps(vocabulary.trimmed(lacking, kept)))
    big = Tokenizer.from_str(json.dumps(lacking))
    text = "".join(map(chr, range(400))) + "🐟"
    assert small.decode(small.encode(text).ids) == big.decode(big.encode(text).ids)


def test_special_tokens_keep_their_meaning(whole, tiny):
    kept = _kept(whole, 270)
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    given_files = {n: (tiny.folder / n).read_bytes() for n in names}
    given_files["generation_config.json"] = b'{"eos_token_id": [0, 2], "pad_token_id": 1, "top_k": 5}'
    files = vocabulary.files(given_files, vocabulary.trimmed(whole, kept), kept)
    small = Tokenizer.from_str(files["tokenizer.json"].decode())
    old = {t["content"]: t["id"] for t in whole["added_tokens"]}
    place = kept.tolist().index
    assert {t: small.token_to_id(t) for t in old} == {t: place(i) for t, i in old.items()}
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [place(0), place(2)]
    assert json.loads(files["generation_config.json"])["top_k"] == 5
    assert unpack(pack(files)).keys() == files.keys()


@pytest.mark.parametrize("count", [100, 258, 309])
def test_impossible_sizes_name_the_possible(whole, count):
    with pytest.raises(RecipeError, match=r"259.*to 308"):
        _kept(whole, count)


def test_other_tokenizers_are_refused(whole):
    for change in ({"model": whole["model"] | {"type": "Unigram"}}, {"pre_tokenizer": None}):
        with pytest.raises(SourceError, match=r"gemma.*no byte-level BPE"):
            vocabulary.read(json.dumps(whole | change).encode(), "gemma")
