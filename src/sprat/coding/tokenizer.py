"""A Hugging Face tokenizer in few bytes: SmolLM2's 3.5 MB become some 150 kB, and come back as equal JSON.

Most tokens of a BPE vocabulary are what its merges make, in the order in which they make them. So a merge
is stored as the indices of its two parts, and only tokens that no merge explains ("literals") are spelled
out. A decoder replays the merges: one whose text is new makes the next token that is not a literal. What is
left of tokenizer.json is compact JSON. Indices lie in columns, the low and high bytes apart where that helps,
and everything goes through LZMA2. What would not come back exactly is stored as plain compact JSON instead:
`pack` checks by unpacking.

    pack   = version(1) blob(directory: JSON [[name, bytes, model], ...]) blob(the files) columns
    blob   = varint(raw bytes) varint(packed bytes) LZMA2
    column = varint(count) bytes-a-value(1) layout(1: 0 interleaved, 1 planes) blob
"""

from __future__ import annotations

import json
import lzma
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sprat.errors import FormatError

_VERSION = 1
_FILTERS = [
    {
        "id": lzma.FILTER_LZMA2,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": 1 << 24,
        "lc": 3,
        "lp": 0,
        "pb": 0,
    }
]
#: No tokenizer needs more; what a hostile file may make `unpack` allocate is bounded by it.
LIMIT = 1 << 28
_BROKEN = (lzma.LZMAError, ValueError, LookupError, TypeError, RecursionError, OverflowError, EOFError)


def pack(files: dict[str, bytes]) -> bytes:
    """Store the files. JSON comes back equal as parsed, key order included; other files byte for byte."""
    whole = {name: _compact(data) for name, data in files.items()}
    plain = _write(whole, {})
    parts, models = dict(whole), {}
    if "tokenizer.json" in whole and (taken := _take_apart(whole["tokenizer.json"])) is not None:
        parts["tokenizer.json"], models["tokenizer.json"] = taken[0], taken[1:]
    small = _write(parts, models)
    if models and (len(small) >= len(plain) or not _same(unpack_or_none(small), whole)):
        return plain
    return small


def unpack(data: bytes, limit: int = LIMIT) -> dict[str, bytes]:
    """The files of `pack`. Raises `FormatError` for broken data, or more than `limit` bytes of output."""
    try:
        return _read(bytes(data), limit)
    except FormatError:
        raise
    except _BROKEN as error:
        raise FormatError(f"section 'tokenizer': {type(error).__name__}: {error}") from error


def unpack_or_none(data: bytes) -> dict[str, bytes] | None:
    try:
        return unpack(data)
    except FormatError:
        return None


def _same(found: dict[str, bytes] | None, wanted: dict[str, bytes]) -> bool:
    # Both are compact, so equal bytes mean equal JSON with equal order of keys.
    return found == wanted


def _write(files: dict[str, bytes], models: dict[str, tuple[str, list[bytes]]]) -> bytes:
    directory = [[name, len(data), models[name][0] if name in models else ""] for name, data in files.items()]
    columns = [column for _, made in models.values() for column in made]
    head = _blob(_dump(directory)) + _blob(b"".join(files.values()))
    return bytes([_VERSION]) + head + b"".join(columns)


def _read(data: bytes, limit: int) -> dict[str, bytes]:
    reader = _Reader(data, limit)
    if (version := reader.byte()) != _VERSION:
        raise FormatError(f"section 'tokenizer': version {version}, this sprat reads {_VERSION}")
    directory, body = json.loads(reader.blob()), reader.blob()
    files: dict[str, bytes] = {}
    start = 0
    for name, size, model in directory:
        if not isinstance(name, str) or type(size) is not int or not 0 <= size <= len(body) - start:
            raise FormatError("section 'tokenizer': its directory does not fit its files")
        part = body[start : start + size]
        start += size
        if model:
            part = _PUT[model](json.loads(part), reader)
        files[name] = part
    return files


# tokenizer.json


def _take_apart(data: bytes) -> tuple[bytes, str, list[bytes]] | None:
    """(what is left as JSON, name of the method, columns); None where no method fits."""
    try:
        frame = json.loads(data)
        model = frame["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            return _take_merges(frame, model, vocabulary)
        if isinstance(vocabulary, list):
            return _take_scores(frame, model, vocabulary)
    except _BROKEN:
        pass
    return None


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
        _text_column(spelled),
        _column(np.diff(literal, prepend=0)),
        _column(np.diff(ids, prepend=0) if ids != list(range(len(ids))) else []),
        _column(order if order != list(range(len(order))) else []),
        _column([place[a] for a, _ in pairs]),
        _column([place[b] for _, b in pairs]),
    ]
    return _dump(frame), "merges", columns


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


def _put_merges(frame: Any, reader: _Reader) -> bytes:
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
    free = (i for i in range(count) if tokens[i] is None)
    vacant = list(free)
    known = set(spelled)
    pairs: list[tuple[str, str]] = []
    for l, r in zip(left, right, strict=True):
        a, b = tokens[l], tokens[r]
        if a is None or b is None:
            raise FormatError("section 'tokenizer': a merge of tokens that are not there yet")
        reader.spend(2 * (len(a) + len(b)))
        pairs.append((a, b))
        if (text := a + b) not in known:
            known.add(text)
            tokens[vacant[len(known) - len(spelled) - 1]] = text
    if None in tokens:
        raise FormatError("section 'tokenizer': tokens that nothing makes")
    ids = ids or list(range(count))
    model["vocab"] = {tokens[i]: ids[i] for i in order or range(count)}
    if "merges" in model:
        model["merges"] = [f"{a} {b}" for a, b in pairs] if model["merges"] == "spaced" else pairs
    return _dump(frame)


def _take_scores(frame: Any, model: Any, vocabulary: list[Any]) -> tuple[bytes, str, list[bytes]]:
    """Unigram: a score for each token."""
    scores = np.array([score for _, score in vocabulary], np.float64)
    single = scores.astype("<f4")
    exact = bool((single.astype(np.float64) == scores).all())
    model["vocab"] = len(vocabulary)
    values = single.view("<u4") if exact else scores.view("<u8")
    return (
        _dump(frame),
        "scores",
        [_text_column([t for t, _ in vocabulary]), _column(values, 4 if exact else 8)],
    )


def _put_scores(frame: Any, reader: _Reader) -> bytes:
    tokens = reader.text_column()
    values = reader.column(signed=False)
    scores = values.view("<f4" if values.itemsize == 4 else "<f8").astype(np.float64).tolist()
    frame["model"]["vocab"] = [list(pair) for pair in zip(tokens, scores, strict=True)]
    return _dump(frame)


_PUT: dict[str, Callable[[Any, _Reader], bytes]] = {"merges": _put_merges, "scores": _put_scores}


# bytes


class _Reader:
    """Reads what `_write` wrote, allocating nothing that the limit does not cover."""

    def __init__(self, data: bytes, limit: int) -> None:
        self._data, self._at, self._left = data, 0, limit

    def spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise FormatError("section 'tokenizer': it unpacks to more than a tokenizer may")

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 42, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise FormatError("section 'tokenizer': a number that is too long")

    def blob(self) -> bytes:
        raw, packed = self.varint(), self.varint()
        if packed > len(self._data) - self._at:
            raise FormatError("section 'tokenizer': truncated")
        self.spend(raw)
        data = self._data[self._at : self._at + packed]
        self._at += packed
        out = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS).decompress(data, max_length=raw + 1)
        if len(out) != raw:
            raise FormatError("section 'tokenizer': a part is not as long as it says")
        return out

    def column(self, signed: bool = True) -> np.ndarray:
        """(count,) int64, or the unsigned values in their own width."""
        count, width, planes = self.varint(), self.byte(), self.byte()
        if width not in (1, 2, 4, 8):
            raise FormatError(f"section 'tokenizer': a column {width} bytes wide")
        raw = self.blob()
        if len(raw) != count * width:
            raise FormatError("section 'tokenizer': a column is not as long as it says")
        cells = np.frombuffer(raw, np.uint8)
        if planes:
            cells = cells.reshape(width, count).T
        values = np.ascontiguousarray(cells).reshape(-1).view(f"<u{width}")
        if not signed:
            return values
        self.spend(8 * count)
        return (
            (values.astype(np.int64) >> 1) ^ -(values.astype(np.int64) & 1)
            if width == 8
            else values.astype(np.int64)
        )

    def text_column(self) -> list[str]:
        """Strings, each ended by a zero."""
        raw = self.blob()
        self.spend(raw.count(0) * 64)
        return raw.decode("utf-8", "surrogatepass").split("\0")[:-1]


def _column(values: Any, width: int = 0) -> bytes:
    """Numbers without sign in the least width; with sign in eight bytes, folded to even and odd."""
    values = np.asarray(values)
    if not width:
        values = values.astype(np.int64)
        top = int(values.max(initial=0))
        width = 1 if top < 1 << 8 else 2 if top < 1 << 16 else 4
        if values.min(initial=0) < 0 or top >= 1 << 32:
            values, width = (values << 1) ^ (values >> 63), 8
    cells = values.astype(f"<u{width}").view(np.uint8).reshape(-1, width)
    layouts = [_blob(cells.tobytes()), _blob(cells.T.tobytes())]
    planes = int(len(layouts[1]) < len(layouts[0]))
    return _varint(len(values)) + bytes([width, planes]) + layouts[planes]


def _text_column(strings: list[str]) -> bytes:
    if any("\0" in s for s in strings):
        raise ValueError("a token holds a zero")
    return _blob("".join(s + "\0" for s in strings).encode("utf-8", "surrogatepass"))


def _blob(data: bytes) -> bytes:
    # A dictionary no larger than the data finds the same matches; clearing 16 MB for each part took most of the time.
    fitting = {**_FILTERS[0], "dict_size": min(_FILTERS[0]["dict_size"], max(len(data), 1 << 12))}
    packed = lzma.compress(data, lzma.FORMAT_RAW, filters=[fitting])
    return _varint(len(data)) + _varint(len(packed)) + packed


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _compact(data: bytes) -> bytes:
    """JSON without its spaces; anything else as it is."""
    try:
        return _dump(json.loads(data))
    except _BROKEN:
        return data


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
