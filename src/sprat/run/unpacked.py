"""What opening a `.sprat` unpacked, kept in a file: the next opening reads the run layout instead of decoding it.

    magic (8) | key (32) | bytes of the index (u64) | SHA-256 of the index (32) | index | the matrices' entries

    index = bytes of the list (u32), JSON list of [maps, bytes of the head, bytes of the entries], heads back to back

A vector has no entries; its head is its float32 values. The key names the `.sprat` by its digest and all else that the
layout depends on. Nothing in such a file is believed: what is damaged or does not fit is as if it were not there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sprat import _core
from sprat.folders import cache_root

#: One more with every change of the run layout (csrc/engine/layout.hpp), of how it is chosen, or of this file.
VERSION = 2
MAGIC = b"SPRATRUN"
#: magic, key, bytes of the index, its digest
_START = struct.Struct("<8s32sQ32s")
#: All files together take at most this share of what is free on their disk.
_SHARE = 0.1
#: A file that was being written this long ago, in seconds, never will be.
_ABANDONED = 3600

#: The maps that it serves, and a packed matrix or a float32 vector.
Piece = tuple[list[str], Any]


class Unpacked:
    """The file for one `.sprat` (by its digest) and a number of threads, whether it is there or not."""

    def __init__(self, digest: str, threads: int) -> None:
        self._key = hashlib.sha256(f"{VERSION} {digest} {threads}".encode()).digest()
        self.path = cache_root() / "unpacked" / f"{self._key.hex()[:32]}.run"

    def read(self, threads: int) -> list[Piece] | None:
        """What was stored; None where there is no such file or a damaged one."""
        try:
            with self.path.open("rb") as file:
                pieces = self._read(file, threads)
            os.utime(self.path)
            return pieces
        except (OSError, ValueError, TypeError, KeyError, struct.error, MemoryError, RecursionError):
            return None

    def write(self, pieces: Sequence[Piece]) -> None:
        """Store them, if there is room; the files that were used longest ago make way. Failures are silent."""
        with suppress(OSError):
            folder = self.path.parent
            folder.mkdir(parents=True, exist_ok=True)
            room = int(_SHARE * shutil.disk_usage(folder).free)
            if sum(content.nbytes for _, content in pieces) > room:
                return
            handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    self._write(file, pieces)
                Path(name).replace(self.path)
            finally:
                Path(name).unlink(missing_ok=True)
            _make_room(folder, room, self.path)

    def _write(self, file: io.BufferedWriter, pieces: Sequence[Piece]) -> None:
        heads = [
            content.astype("<f4").tobytes() if isinstance(content, np.ndarray) else _core.head(content)
            for _, content in pieces
        ]
        entries = [None if isinstance(content, np.ndarray) else content.entry_bytes for _, content in pieces]
        text = json.dumps(
            [[maps, len(head), size] for (maps, _), head, size in zip(pieces, heads, entries, strict=True)]
        ).encode()
        index = b"".join([struct.pack("<I", len(text)), text, *heads])
        file.write(_START.pack(MAGIC, self._key, len(index), hashlib.sha256(index).digest()))
        file.write(index)
        for _, content in pieces:
            if not isinstance(content, np.ndarray):
                _core.write_entries(content, file)

    def _read(self, file: io.BufferedReader, threads: int) -> list[Piece]:
        magic, key, size, digest = _START.unpack(file.read(_START.size))
        left = os.fstat(file.fileno()).st_size - _START.size
        if magic != MAGIC or key != self._key or size > left:
            raise ValueError("another file")
        index = file.read(size)
        if hashlib.sha256(index).digest() != digest:
            raise ValueError("damaged")
        (text,) = struct.unpack_from("<I", index)
        at, start = 4 + text, _START.size + size
        arena = _core.Arena()

        def piece(maps: list[str], at: int, head: int, start: int, entries: int | None) -> Piece:
            if entries is None:
                return maps, np.frombuffer(index[at : at + head], "<f4")
            with self.path.open("rb") as own:
                own.seek(start)
                return maps, _core.restore(index[at : at + head], own, entries, arena)

        tasks = []
        for maps, head, entries in json.loads(index[4:at]):
            tasks.append((maps, at, head, start, entries))
            at, start = at + head, start + (entries or 0)
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda task: piece(*task), tasks))


def _make_room(folder: Path, room: int, newest: Path) -> None:
    """Remove what was used longest ago until the rest fits into `room` bytes, and what was never finished."""
    now = time.time()
    for part in folder.glob("*.part"):
        if now - part.stat().st_mtime > _ABANDONED:
            part.unlink(missing_ok=True)
    files = sorted(((f.stat().st_mtime, f.stat().st_size, f) for f in folder.glob("*.run")), reverse=True)
    taken = newest.stat().st_size
    for _, size, file in files:
        if file == newest:
            continue
        taken += size
        if taken > room:
            file.unlink(missing_ok=True)
