"""The vocabulary of a tokenizer.json in columns, and back: a merge is two indices, a Unigram token has a score.

Most tokens of a BPE vocabulary are what its merges make, in the order in which they make them. So a merge
is stored as the indices of its two parts, and only tokens that no merge explains ("literals") are spelled
out. A decoder replays the merges: one whose text is new makes the next token that is not a literal.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sprat.coding.columns import BROKEN, Reader, column, dump, text_column
from sprat.errors import FormatError


def take_apart(data: bytes) -> tuple[bytes, str, list[bytes]] | None:
    """(what is left as JSON, name of the method, columns); None where no method fits."""
    try:
        frame = json.loads(data)
        model = frame["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            return _take_merges(frame, model, vocabulary)
        if isinstance(vocabulary, list):
            return _take_scores(frame, model, vocabulary)
    except BROKEN:
        pass
    return None


def put_back(data: bytes, method: str, reader: Reader) -> dict[str, Any]:
    """What `take_apart` was given, parsed, from its JSON, the name of its method and its columns, read from `reader`.

    Merges that are pairs come back as tuples.
    """
    return _METHODS[method](json.loads(data), reader)


def _take_merges(frame: Any, model: Any, vocabulary: dict[str, int]) -> tuple[bytes, str, list[bytes]] | None:
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    place = {token: i for i, token in enumerate(tokens)}
    merges = model.get("merges")
    spaced = bool(merges) and isinstance(merges[0], str)
    pairs = [tuple(m.split(" ")) if spaced else tuple(m) for m in merges or ()]
    if not all(len(p) == 2 and p[0] in place and p[1] in place and p[0] + p[1] in place for p in pairs):
        return None
    literal = _literals(tokens, place, pairs)
    ids = [vocabulary[token] for token in tokens]
    order = [place[token] for token in vocabulary]
    spelled = [tokens[i] for i in literal]
    model["vocab"] = len(tokens)
    if merges is not None:
        model["merges"] = "spaced" if spaced else "pairs"
    columns = [
        text_column(spelled),
        column(np.diff(literal, prepend=0)),
        column(np.diff(ids, prepend=0) if ids != list(range(len(ids))) else []),
        column(order if order != list(range(len(order))) else []),
        column([place[a] for a, _ in pairs]),
        column([place[b] for _, b in pairs]),
    ]
    return dump(frame), "merges", columns


def _literals(tokens: list[str], place: dict[str, int], pairs: Sequence[tuple[str, ...]]) -> list[int]:
    """Indices of the tokens that replaying the merges does not bring forth in their order, ascending."""
    made = list(dict.fromkeys(place[a + b] for a, b in pairs))
    ordered = set(_rising(made))
    known = {i for i in range(len(tokens)) if i not in ordered}
    literal = set(known)
    for a, b in pairs:
        for part in (place[a], place[b]):
            if part not in known:  # used before it is made
                known.add(part)
                literal.add(part)
        known.add(place[a + b])
    return sorted(literal)


def _rising(values: list[int]) -> list[int]:
    """A longest increasing subsequence (patience sorting)."""
    tails: list[int] = []
    ends: list[int] = []
    before = [-1] * len(values)
    for i, value in enumerate(values):
        k = bisect_left(tails, value)
        before[i] = ends[k - 1] if k else -1
        tails[k : k + 1], ends[k : k + 1] = [value], [i]
    found: list[int] = []
    i = ends[-1] if ends else -1
    while i >= 0:
        found.append(values[i])
        i = before[i]
    return found[::-1]


def _put_merges(frame: Any, reader: Reader) -> dict[str, Any]:
    model = frame["model"]
    count = model["vocab"]
    spelled = reader.text_column()
    literal = np.cumsum(reader.column())
    ids, order = np.cumsum(reader.column()).tolist(), reader.column().tolist()
    left, right = reader.column().tolist(), reader.column().tolist()
    if (
        type(count) is not int
        or not len(literal) <= count <= len(literal) + len(left)
        or len(left) != len(right)
    ):
        raise FormatError("section 'tokenizer': the numbers of tokens and merges do not fit")
    tokens: list[str | None] = [None] * count
    for i, token in zip(literal.tolist(), spelled, strict=True):
        tokens[i] = token
    vacant = (i for i in range(count) if tokens[i] is None)
    known = set(spelled)
    pairs: list[tuple[str, str]] = []
    room = reader.room
    for l, r in zip(left, right, strict=True):
        a, b = tokens[l], tokens[r]
        if a is None or b is None:
            raise FormatError("section 'tokenizer': a merge of tokens that are not there yet")
        text = a + b
        room -= 2 * len(text)
        if room < 0:
            break
        pairs.append((a, b))
        if text not in known:
            known.add(text)
            if (place := next(vacant, None)) is None:
                raise FormatError("section 'tokenizer': its merges make more tokens than it has")
            tokens[place] = text
    reader.spend(reader.room - room)
    if None in tokens:
        raise FormatError("section 'tokenizer': tokens that nothing makes")
    ids = ids or list(range(count))
    model["vocab"] = {tokens[i]: ids[i] for i in order or range(count)}
    if "merges" in model:
        model["merges"] = [f"{a} {b}" for a, b in pairs] if model["merges"] == "spaced" else pairs
    return frame


def _take_scores(frame: Any, model: Any, vocabulary: list[Any]) -> tuple[bytes, str, list[bytes]]:
    """Unigram: a score for each token."""
    scores = np.array([score for _, score in vocabulary], np.float64)
    single = scores.astype("<f4")
    exact = bool((single.astype(np.float64) == scores).all())
    model["vocab"] = len(vocabulary)
    values = single.view("<u4") if exact else scores.view("<u8")
    return (
        dump(frame),
        "scores",
        [text_column([t for t, _ in vocabulary]), column(values, 4 if exact else 8)],
    )


def _put_scores(frame: Any, reader: Reader) -> dict[str, Any]:
    tokens = reader.text_column()
    values = reader.column(signed=False)
    scores = values.view("<f4" if values.itemsize == 4 else "<f8").astype(np.float64).tolist()
    frame["model"]["vocab"] = [list(pair) for pair in zip(tokens, scores, strict=True)]
    return frame


_METHODS: dict[str, Callable[[Any, Reader], dict[str, Any]]] = {"merges": _put_merges, "scores": _put_scores}
