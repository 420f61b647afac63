"""A Hugging Face tokenizer in few bytes: SmolLM2's 3.5 MB become some 150 kB, and come back as equal JSON.

The vocabulary lies in columns (vocabulary.py); what is left of tokenizer.json is compact JSON, and everything goes
through LZMA2 (columns.py). What would not come back exactly is stored as plain compact JSON instead: `pack` checks by
unpacking.

    pack = version(1) blob(directory: JSON [[name, bytes, method], ...]) blob(the files) columns of each method
"""

from __future__ import annotations

import json
from typing import Any

from sprat.coding.columns import BROKEN, Reader, blob, dump
from sprat.coding.vocabulary import put_back, take_apart
from sprat.errors import FormatError

_VERSION = 1
#: No tokenizer needs more; what a hostile file may make `unpack` allocate is bounded by it.
LIMIT = 1 << 28


def pack(files: dict[str, bytes]) -> bytes:
    """Store the files. JSON comes back equal as parsed, key order included; other files byte for byte."""
    whole = {name: _compact(data) for name, data in files.items()}
    plain = _write(whole, {})
    parts, models = dict(whole), {}
    if "tokenizer.json" in whole and (taken := take_apart(whole["tokenizer.json"])) is not None:
        parts["tokenizer.json"], models["tokenizer.json"] = taken[0], taken[1:]
    small = _write(parts, models)
    if models and (len(small) >= len(plain) or not _same(unpack_or_none(small), whole)):
        return plain
    return small


def unpack(data: bytes, limit: int = LIMIT) -> dict[str, bytes]:
    """The files of `pack`. Raises `FormatError` for broken data, or more than `limit` bytes of output."""
    found = unpack_parsed(data, limit)
    return {name: part if isinstance(part, bytes) else dump(part) for name, part in found.items()}


def unpack_parsed(data: bytes, limit: int = LIMIT) -> dict[str, bytes | dict[str, Any]]:
    """`unpack`, but JSON whose vocabulary lay in columns comes parsed, its merges as tuples."""
    try:
        return _read(bytes(data), limit)
    except FormatError:
        raise
    except BROKEN as error:
        raise FormatError(f"section 'tokenizer': {type(error).__name__}: {error}") from error


def unpack_or_none(data: bytes) -> dict[str, bytes] | None:
    """What `unpack` gives; None for what it refuses."""
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
    head = blob(dump(directory)) + blob(b"".join(files.values()))
    return bytes([_VERSION]) + head + b"".join(columns)


def _read(data: bytes, limit: int) -> dict[str, bytes | dict[str, Any]]:
    reader = Reader(data, limit)
    if (version := reader.byte()) != _VERSION:
        raise FormatError(f"section 'tokenizer': version {version}, this sprat reads {_VERSION}")
    directory, body = json.loads(reader.blob()), reader.blob()
    files: dict[str, bytes | dict[str, Any]] = {}
    start = 0
    for name, size, model in directory:
        if not isinstance(name, str) or type(size) is not int or not 0 <= size <= len(body) - start:
            raise FormatError("section 'tokenizer': its directory does not fit its files")
        part = body[start : start + size]
        start += size
        files[name] = put_back(part, model, reader) if model else part
    return files


def _compact(data: bytes) -> bytes:
    """JSON without its spaces; anything else as it is."""
    try:
        return dump(json.loads(data))
    except BROKEN:
        return data
