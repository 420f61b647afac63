"""A `tokenizers.Tokenizer` from a parsed tokenizer.json, without writing and parsing a text of megabytes.

The vocabulary of a BPE model goes to the library as Python objects: half the time and a quarter of the memory of its
own JSON reader, which copies everything several times. Other models take the text.
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

#: Settings of a BPE model that its constructor takes. `None` stands for its default.
_OPTIONS = {
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
}


def build(parsed: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `Tokenizer.from_str` makes of the same JSON; raises what that raises."""
    return _from_parts(parsed) or Tokenizer.from_str(json.dumps(parsed, ensure_ascii=False))


def _from_parts(parsed: dict[str, Any]) -> Tokenizer | None:
    """None where the text has to be read."""
    model, added = parsed["model"], parsed.get("added_tokens") or []
    merges = model.get("merges")
    if model.get("type") != "BPE" or set(model) - _OPTIONS != {"type", "vocab", "merges"}:
        return None
    if not merges or not isinstance(merges[0], tuple):
        return None
    options = {name: value for name, value in model.items() if name in _OPTIONS and value is not None}
    rest = parsed | {"model": model | {"vocab": {}, "merges": []}, "added_tokens": []}
    tokenizer = Tokenizer.from_str(json.dumps(rest, ensure_ascii=False))
    tokenizer.model = models.BPE(vocab=model["vocab"], merges=merges, **options)
    for special, tokens in groupby(added, key=lambda token: token["special"]):
        made = [AddedToken(**{k: v for k, v in token.items() if k != "id"}) for token in tokens]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(made)
    given = {token["id"]: token["content"] for token in added}
    found = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
    return tokenizer if given == found else None
