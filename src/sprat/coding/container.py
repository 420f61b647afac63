"""The `.sprat` container: assemble and write it, open and check it (docs/format.md).

preamble 32 B | header: deflated JSON, then a length and a digest a section | sections, back to back
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sprat.coding import entropy, records
from sprat.coding.artifact import DIGEST, MAGIC, MAX_HEADER, PREAMBLE, SECTIONS, VERSION, Artifact
from sprat.coding.ledger import Ledger, Line
from sprat.coding.tensors import Dense, Entry, Lattice, LowRank, lattices
from sprat.errors import SpratError
from sprat.progress import Progress, silent

__all__ = ["Artifact", "Assembled", "Ledger", "assemble", "open", "size", "write"]


@dataclass(frozen=True, eq=False)
class Assembled:
    """A file that is not on disk yet: its parts in order and what each weighs."""

    parts: tuple[bytes, ...]
    ledger: Ledger

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.parts))

    def save(self, path: str | os.PathLike[str]) -> Ledger:
        """Write atomically: `path` holds the whole file or what it held before."""
        target = Path(path)
        try:
            _replace(target, self.parts)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise SpratError(
                    f"disk full: {target} needs {self.nbytes:,} bytes; no part of it was left"
                ) from error
            raise SpratError(f"cannot write {target}: {error.strerror or error}") from error
        return self.ledger


def assemble(
    *,
    config: Mapping[str, Any],
    entries: Mapping[str, Entry],
    recipe: Mapping[str, Any],
    provenance: Mapping[str, Any],
    file_extra: Mapping[str, bytes] | None = None,
    tables: entropy.Tables | None = None,
    threads: int = 1,
    progress: Progress = silent,
) -> Assembled:
    """Every byte of the file. `tables` defaults to the ones made for these lattices' own counts."""
    coded = [(kind, name, x) for name, e in entries.items() for kind, x in _coded(e)]
    dense = {name: e.tensor for name, e in entries.items() if isinstance(e.tensor, Dense)}
    files = dict(file_extra or {})
    sections: list[tuple[Line, bytes]] = []

    def add(name: str, kind: str, data: bytes, *shape_weights_zeros: Any) -> None:
        sections.append((Line(name, kind, len(data), *shape_weights_zeros), data))

    if coded:
        if tables is None:
            tables = entropy.Tables.from_counts(entropy.count([x for _, _, x in coded], threads))
        add("tables", "tables", tables.to_bytes())
        total = sum(x.q.size for _, _, x in coded)
        done = 0
        for kind, name, lattice in coded:
            data = records.pack_lattice(lattice, tables, threads)
            head = records.unpack_head(data)
            add(name, kind, data, lattice.shape, lattice.q.size, head.zeros)
            done += lattice.q.size
            progress("coding weights", done, total)
    if dense:
        weights = sum(x.array.size for x in dense.values())
        zeros = sum(int((x.array == 0).sum()) for x in dense.values())
        add("dense", "dense", records.pack_dense(list(dense.values())), (), weights, zeros)
    for name, data in files.items():
        add(name, "file", bytes(data))

    body = {
        "config": dict(config),
        "recipe": dict(recipe),
        "provenance": dict(provenance),
        "tensors": [_describe(name, entry) for name, entry in entries.items()],
        "files": list(files),
    }
    head = _header(body, [data for _, data in sections])
    lines = (Line("header", "header", len(head)), *(line for line, _ in sections))
    return Assembled((head, *(data for _, data in sections)), Ledger(lines))


def _coded(entry: Entry) -> list[tuple[str, Lattice]]:
    """An entry's lattices, each with the kind of its section."""
    found = lattices(entry.tensor)
    return list(zip(SECTIONS[_form(entry)], found, strict=True)) if found else []


def _form(entry: Entry) -> str:
    """The key in SECTIONS of what an entry is stored as."""
    if not isinstance(entry.tensor, LowRank):
        return "lattice"
    return "product" if entry.tensor.rest is None else "sum"


def write(path: str | os.PathLike[str], **contents: Any) -> Ledger:
    """Assemble (see `assemble` for the arguments) and save."""
    return assemble(**contents).save(path)


def size(**contents: Any) -> int:
    """The exact number of bytes that `write` would produce."""
    return assemble(**contents).nbytes


def open(path: str | os.PathLike[str]) -> Artifact:
    """Map a file and check its header; sections are checked when they are read."""
    return Artifact.open(Path(path))


def _describe(name: str, entry: Entry) -> dict[str, Any]:
    """An entry's line in the JSON, terse: it counts against the budget."""
    out: dict[str, Any] = {} if name == entry.maps[0] else {"name": name}
    out |= {"maps": list(entry.maps), "rows": list(entry.rows)}
    if entry.transposed:
        out["transposed"] = True
    if isinstance(entry.tensor, Dense):
        out |= {"dtype": entry.tensor.dtype, "shape": list(entry.tensor.shape)}
    elif (form := _form(entry)) != "lattice":
        out["form"] = form
    return out


def _header(body: dict[str, Any], sections: list[bytes]) -> bytes:
    try:
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise SpratError(f"config, recipe or provenance cannot be written as JSON: {error}") from None
    packed = zlib.compress(text, 9)
    table = b"".join(records.pack_varint(len(data)) + digest(data) for data in sections)
    if max(len(text), len(packed) + len(table)) > MAX_HEADER:
        raise SpratError(f"config, recipe and provenance are too long for a header of {MAX_HEADER >> 20} MiB")
    start = struct.pack(PREAMBLE, MAGIC, VERSION, 0, len(packed), len(packed) + len(table))
    return start + digest(start + packed + table) + packed + table


def digest(data: bytes | memoryview) -> bytes:
    """The first 16 bytes of SHA-256."""
    return hashlib.sha256(data).digest()[:DIGEST]


def _replace(target: Path, parts: tuple[bytes, ...]) -> None:
    """Write beside `target`, flush to the disk, rename over it; leave nothing behind on any failure."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder")
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        os.replace(name, target)  # noqa: PTH105  the call that tests make fail
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
