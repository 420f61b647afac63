"""A tokenizer built from parsed JSON is the one that the library reads from the text."""

from __future__ import annotations

import copy
import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from sprat.coding.tokenizer import pack, unpack_parsed
from sprat.errors import FormatError
from sprat.run.backend import build
from sprat.run.tokenizer import from_files

TEXT = "the cat sat on the mat, <a> and the Café <eos> was <b>  closed\n<eos>"


@pytest.fixture(scope="module")
def plain() -> dict:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<eos>"], show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.add_tokens([AddedToken("<a>", rstrip=True), "<b>"])
    tokenizer.add_special_tokens(["<last>"])
    tokenizer.enable_truncation(4)
    return json.loads(tokenizer.to_str())


def parsed(value: dict) -> dict:
    """As a `.sprat` gives it back."""
    found = unpack_parsed(pack({"tokenizer.json": json.dumps(value).encode()}))["tokenizer.json"]
    return found if isinstance(found, dict) else json.loads(found)


def changed(value: dict, change: str) -> dict:
    value = copy.deepcopy(value)
    model = value["model"]
    if change == "ids":  # an added token whose id the library would not give
        value["added_tokens"][-1]["id"] += 7
    elif change == "spaced":
        model["merges"] = [" ".join(pair) for pair in model["merges"]]
    elif change == "no merges":
        model["merges"] = []
        model["vocab"] = {token: i for i, token in enumerate(t for t in model["vocab"] if len(t) == 1)}
    elif change == "options":
        model |= {"continuing_subword_prefix": "", "end_of_word_suffix": "", "byte_fallback": True}
    elif change == "no added tokens":
        del value["added_tokens"]
    return value


@pytest.mark.parametrize("change", ["", "ids", "spaced", "no merges", "options", "no added tokens"])
def test_built_is_read(plain, change):
    value = changed(plain, change)
    expected = Tokenizer.from_str(json.dumps(value))
    found = build(parsed(value))
    assert found.to_str() == expected.to_str()
    for special in (True, False):
        assert (
            found.encode(TEXT, add_special_tokens=special).ids
            == expected.encode(TEXT, add_special_tokens=special).ids
        )
    ids = expected.encode(TEXT).ids
    assert found.decode(ids) == expected.decode(ids)


@pytest.mark.parametrize(
    "broken",
    [{"model": {"type": "BPE"}}, {"added_tokens": [{"content": 3}]}, {"pre_tokenizer": {"type": "?"}}],
)
def test_what_is_broken_is_said(plain, broken):
    with pytest.raises(FormatError, match="section 'tokenizer'"):
        from_files({"tokenizer.json": parsed(plain) | broken}, {})
    with pytest.raises(FormatError, match="section 'tokenizer'"):
        from_files({"tokenizer.json": parsed(plain) | {"model": 3}}, {})
