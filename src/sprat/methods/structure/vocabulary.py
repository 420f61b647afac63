"""Fewer tokens: a byte-level BPE tokenizer without the tokens that are hardly used, and everything that counts them.

A byte-level BPE spells any text in its byte tokens, so whatever else goes, every text still goes in and comes out the
same, in more tokens. (Some lack bytes that their training text lacked, SmolLM's 21 of them: what they cannot spell they
still cannot.) A token that stays needs the merge that makes it, and the two tokens which that joins, down to
the bytes; merges whose product is gone go too. Ids are given anew, in the old order.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from sprat.errors import RecipeError, SourceError

Json = dict[str, Any]


def read(data: bytes, name: str) -> Json:
    """A tokenizer.json that can be trimmed. SourceError (naming `name`) for any other."""
    found = json.loads(data)
    model = found["model"]
    bytelike = all("ByteLevel" in json.dumps(found.get(part)) for part in ("pre_tokenizer", "decoder"))
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if model.get("type") != "BPE" or not bytelike or affixes:
        raise SourceError(
            f"{name}: its tokenizer ({model.get('type')}) is no byte-level BPE (GPT-2's, Llama 3's, Qwen's and "
            "SmolLM's kind), so its vocabulary cannot be trimmed: keep the recipe's `vocabulary` at 0"
        )
    return found


def needed(tokenizer: Json, ids: Iterable[int]) -> set[int]:
    """Tokens that always stay: the bytes, added and special tokens, and `ids`, with all that they are made of."""
    vocab = tokenizer["model"]["vocab"]
    always = {vocab[letter] for letter in ByteLevel.alphabet() if letter in vocab}
    always |= {token["id"] for token in tokenizer["added_tokens"]} | set(ids)
    parents = _parents(tokenizer)
    return set().union(*(_closure(parents, token) for token in always))


def kept_tokens(tokenizer: Json, score: np.ndarray, count: int, always: set[int]) -> np.ndarray:
    """`count` ids that stay, ascending int64: those of `always`, then by `score`: (vocabulary,), each with its parts.

    RecipeError where `count` is less than `always` needs, or all there are.
    """
    known = set(tokenizer["model"]["vocab"].values()) | {token["id"] for token in tokenizer["added_tokens"]}
    if not len(always) <= count <= len(known):
        raise RecipeError(
            f"recipe: vocabulary = {count} is not allowed for this model; it must be {len(always)} (bytes and special "
            f"tokens, with what these are made of) to {len(known)}, or 0 for all"
        )
    parents, kept = _parents(tokenizer), set(always)
    for token in np.argsort(-score, kind="stable").tolist():
        if len(kept) == count:
            break
        if token in known and token not in kept:
            more = _closure(parents, token) - kept
            if len(kept) + len(more) <= count:
                kept |= more
    return np.array(sorted(kept), np.int64)


def trimmed(tokenizer: Json, kept: np.ndarray) -> Json:
    """The tokenizer of the tokens `kept` alone, numbered anew."""
    new = {old: index for index, old in enumerate(kept.tolist())}
    out = copy.deepcopy(tokenizer)
    model = out["model"]
    model["vocab"] = {token: new[old] for token, old in model["vocab"].items() if old in new}
    model["merges"] = [
        merge
        for merge in model["merges"]
        if all(t in model["vocab"] for t in (*_pair(merge), "".join(_pair(merge))))
    ]
    out["added_tokens"] = [token | {"id": new[token["id"]]} for token in out["added_tokens"]]
    _renumber(out.get("post_processor"), new)
    if out.get("padding"):
        out["padding"]["pad_id"] = new[out["padding"]["pad_id"]]
    return out


def renumbered(values: Json, new: Mapping[int, int]) -> Json:
    """A config or a generation config with its "..._token_id" numbered anew."""
    out = dict(values)
    for name, value in values.items():
        if name.endswith(("_token_id", "_token_ids")) and isinstance(value, int | list):
            out[name] = [new[v] for v in value] if isinstance(value, list) else new.get(value, value)
    return out


def token_ids(*values: Json) -> set[int]:
    """The ids that configs name."""
    found: set[int] = set()
    for value in values:
        for name, ids in value.items():
            if name.endswith(("_token_id", "_token_ids")) and isinstance(ids, int | list):
                found |= set(ids) if isinstance(ids, list) else {ids}
    return {i for i in found if i >= 0}


def files(original: Mapping[str, bytes], tokenizer: Json, kept: np.ndarray) -> dict[str, bytes]:
    """The tokenizer's files with `tokenizer` (`trimmed`) in the place of its own."""
    new = {old: index for index, old in enumerate(kept.tolist())}
    out = dict(original) | {"tokenizer.json": _dump(tokenizer)}
    if "generation_config.json" in out:
        out["generation_config.json"] = _dump(renumbered(json.loads(out["generation_config.json"]), new))
    if "tokenizer_config.json" in out:
        config = json.loads(out["tokenizer_config.json"])
        if "added_tokens_decoder" in config:
            old = config["added_tokens_decoder"]
            config["added_tokens_decoder"] = {str(new[int(i)]): t for i, t in old.items() if int(i) in new}
        out["tokenizer_config.json"] = _dump(config)
    return out


def spelling(tokenizer: Json, kept: np.ndarray, size: int) -> list[list[int]]:
    """For each of `size` old ids the new ones that spell it: itself where it stays. `tokenizer`: the whole one."""
    new = {old: index for index, old in enumerate(kept.tolist())}
    small = Tokenizer.from_str(json.dumps(trimmed(tokenizer, kept)))
    out = [[new[i]] if i in new else [0] for i in range(size)]  # [0]: rows of the embedding that are no token
    for token, old in tokenizer["model"]["vocab"].items():
        if old not in new:
            out[old] = [part.id for part in small.model.tokenize(token)]
    return out


def _parents(tokenizer: Json) -> dict[int, tuple[int, int]]:
    """Token -> the two that its first merge joins."""
    vocab = tokenizer["model"]["vocab"]
    out: dict[int, tuple[int, int]] = {}
    for merge in tokenizer["model"]["merges"]:
        a, b = _pair(merge)
        out.setdefault(vocab[a + b], (vocab[a], vocab[b]))
    return out


def _closure(parents: Mapping[int, tuple[int, int]], token: int) -> set[int]:
    """`token` and all that it is made of."""
    out, todo = set(), [token]
    while todo:
        one = todo.pop()
        if one not in out:
            out.add(one)
            todo.extend(parents.get(one, ()))
    return out


def _pair(merge: Any) -> tuple[str, str]:
    """Older files write "a b"."""
    a, b = merge.split(" ") if isinstance(merge, str) else merge
    return a, b


def _renumber(value: Any, new: Mapping[int, int]) -> None:
    """Special tokens of a post-processor, which may be a sequence of some, in place."""
    for processor in (value or {}).get("processors", [value] if value else []):
        tokens = processor.get("special_tokens")
        if isinstance(tokens, dict):
            for token in tokens.values():
                token["ids"] = [new[i] for i in token["ids"]]


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
