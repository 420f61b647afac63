"""Reading a `.sprat`: mapped, lazy, every section checked against its digest before it is parsed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from sprat.coding import entropy, records
from sprat.coding.ledger import Ledger, Line
from sprat.coding.tensors import Dense, Entry, LowRank, Stored
from sprat.errors import FormatError, SpratError, nearest
from sprat.progress import Progress, silent

MAGIC = b"SPRT"
VERSION = 1
#: magic, version, zero, bytes of deflated JSON, bytes of header; a digest follows.
PREAMBLE = "<4sHHII"
DIGEST = 16
MAX_HEADER = 16 << 20
#: Sections of a tensor that is not dense, by its form: a lattice, a product of two, or both added.
SECTIONS = {"lattice": ("lattice",), "product": ("left", "right"), "sum": ("left", "right", "lattice")}
CODED = SECTIONS["sum"]
T = TypeVar("T")


class Artifact:
    """An open `.sprat`. Close it, or use it as a context manager; arrays that were read stay valid."""

    def __init__(self, path: Path, data: memoryview, size: int) -> None:
        """Parse and check the header of `data`; `size` is the file's."""
        self.path = path
        self._data = data
        self.nbytes = size
        body, table, self._header_size = _parse_header(data)
        #: Of the header, which holds every section's: two files with the same one have the same contents.
        self.digest: str = data[struct.calcsize(PREAMBLE) :][:DIGEST].hex()
        self.config: dict[str, Any] = body["config"]
        self.recipe: dict[str, Any] = body["recipe"]
        self.provenance: dict[str, Any] = body["provenance"]
        self._tensors = {}
        for line in body["tensors"]:
            name, line = _parse_tensor(line)
            if name in self._tensors:
                raise FormatError(f"header: tensor {name!r} is listed twice")
            self._tensors[name] = line
        served = set[str]()
        for parameter in (each for line in self._tensors.values() for each in line["maps"]):
            if parameter in served:  # readers would differ on whose values are the model's
                raise FormatError(f"header: parameter {parameter!r} is stored twice")
            served.add(parameter)
        self._sections = _layout(self._tensors, body["files"], table, self._header_size, size)
        self._checked: set[tuple[str, str]] = set()
        self._tables: entropy.Tables | None = None
        self._dense: dict[str, Dense] | None = None

    @staticmethod
    def open(path: Path) -> Artifact:
        """Map `path`; FormatError when it is no `.sprat` or its header is damaged."""
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                if size < struct.calcsize(PREAMBLE) + DIGEST:
                    raise FormatError(f"{path.name}: {size} bytes are too few for a .sprat")
                data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise FormatError(f"cannot open {path}: {error.strerror or error}") from None
        try:
            return Artifact(path, data, size)
        except FormatError as error:
            raise FormatError(f"{path.name}: {error}") from None

    def close(self) -> None:
        """Let go of the file."""
        mapped = self._data.obj
        self._data.release()
        if isinstance(mapped, mmap.mmap):
            with contextlib.suppress(BufferError):  # a traceback may still hold a slice: freed with it
                mapped.close()

    def release_pages(self) -> None:
        """Give back the memory of what was read; reading again takes it from the file again."""
        mapped = self._data.obj
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)

    def __enter__(self) -> Artifact:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stored tensors, in the order of the file."""
        return tuple(self._tensors)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the opaque files inside ("tokenizer/tokenizer.json")."""
        return tuple(name for kind, name in self._sections if kind == "file")

    def file(self, name: str) -> bytes:
        """An opaque file's bytes."""
        if ("file", name) not in self._sections:
            raise SpratError(f"{self.path.name} holds no file {name!r}{nearest(name, self.files)}")
        return self._read("file", name, bytes)

    @property
    def tokenizer(self) -> dict[str, bytes]:
        """The files under "tokenizer/", by their names inside it."""
        return {n.removeprefix("tokenizer/"): self.file(n) for n in self.files if n.startswith("tokenizer/")}

    def entry(self, name: str, threads: int = 1) -> Entry:
        """One stored tensor, decoded."""
        if name not in self._tensors:
            raise SpratError(f"{self.path.name} holds no tensor {name!r}{nearest(name, self._tensors)}")
        line = self._tensors[name]
        try:
            tensor = self._read_dense()[name] if "dtype" in line else self._coded(name, line["form"], threads)
            return Entry(line["maps"], line["rows"], tensor, line["transposed"])
        except ValueError as error:
            raise FormatError(f"{self.path.name}: tensor {name!r}: {error}") from None

    def entries(self, threads: int = 1, progress: Progress = silent) -> dict[str, Entry]:
        """All stored tensors, decoded."""
        out = {}
        for done, name in enumerate(self._tensors, 1):
            out[name] = self.entry(name, threads)
            progress("decoding weights", done, len(self._tensors))
        return out

    def verify(self, threads: int = 1, progress: Progress = silent) -> None:
        """Check every section's digest and decode every tensor; FormatError names the first that is wrong."""
        for kind, name in self._sections:
            self._read(kind, name, len)
        for done, name in enumerate(self._tensors, 1):
            self.entry(name, threads)
            progress("verifying", done, len(self._tensors))

    def ledger(self) -> Ledger:
        """Bytes by section; they sum to the file's size."""
        lines = [Line("header", "header", self._header_size)]
        for (kind, name), (_, length, _) in self._sections.items():
            if kind in CODED:
                head = self._read(kind, name, records.unpack_head)
                lines.append(Line(name, kind, length, head.shape, head.shape[0] * head.shape[1], head.zeros))
            elif kind == "dense":
                arrays = [tensor.array for tensor in self._read_dense().values()]
                zeros = sum(int((array == 0).sum()) for array in arrays)
                lines.append(Line(name, kind, length, (), sum(array.size for array in arrays), zeros))
            else:
                lines.append(Line(name, kind, length))
        return Ledger(tuple(lines))

    def _read(self, kind: str, name: str, parse: Callable[[memoryview], T]) -> T:
        """Parse a section once its digest is right; every failure names it."""
        label = f"{self.path.name}: section {name!r}" + (f" ({kind})" if kind != name else "")
        start, length, expected = self._sections[kind, name]
        data = self._data[start : start + length]
        if (kind, name) not in self._checked:
            if hashlib.sha256(data).digest()[:DIGEST] != expected:
                raise FormatError(f"{label} is damaged: its bytes do not match their digest")
            self._checked.add((kind, name))
        try:
            return parse(data)
        except FormatError as error:
            raise FormatError(f"{label}: {error}") from None
        except MemoryError:
            raise SpratError(f"{label} does not fit into this machine's memory") from None

    def _coded(self, name: str, form: str, threads: int) -> Stored:
        tables = self._read_tables()
        found = [
            self._read(kind, name, lambda data: records.unpack_lattice(data, tables, threads))
            for kind in SECTIONS[form]
        ]
        return found[0] if form == "lattice" else LowRank(*found)

    def _read_tables(self) -> entropy.Tables:
        if self._tables is None:
            self._tables = self._read("tables", "tables", entropy.Tables.from_bytes)
        return self._tables

    def _read_dense(self) -> dict[str, Dense]:
        if self._dense is None:
            lines = {name: line for name, line in self._tensors.items() if "dtype" in line}
            layout = [(line["dtype"], line["shape"]) for line in lines.values()]
            tensors = self._read("dense", "dense", lambda data: records.unpack_dense(data, layout))
            self._dense = dict(zip(lines, tensors, strict=True))
        return self._dense


def _parse_header(data: memoryview) -> tuple[dict[str, Any], memoryview, int]:
    """(JSON, section table, bytes up to the first section)."""
    fixed = struct.calcsize(PREAMBLE)
    magic, version, zero, packed, length = struct.unpack_from(PREAMBLE, data)
    if magic != MAGIC:
        raise FormatError(f"not a .sprat (it starts with {bytes(magic)!r}, not {MAGIC!r})")
    if version != VERSION:
        raise FormatError(f"format version {version}; this sprat reads version {VERSION}: try a newer sprat")
    start = fixed + DIGEST
    if zero or packed > length or length > min(MAX_HEADER, len(data) - start):
        raise FormatError(
            f"header: claims {length} bytes; the file has {len(data) - start}, {MAX_HEADER} are allowed"
        )
    rest = data[start : start + length]
    check = hashlib.sha256(data[:fixed])
    check.update(rest)
    if check.digest()[:DIGEST] != data[fixed:start]:
        raise FormatError("header is damaged: its bytes do not match their digest")
    try:
        body = json.loads(records.inflate_at_most(rest[:packed], MAX_HEADER))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"header: no valid JSON ({error})") from None
    except FormatError as error:
        raise FormatError(f"header: {error}") from None
    kinds = {"config": dict, "recipe": dict, "provenance": dict, "tensors": list, "files": list}
    if not isinstance(body, dict):
        raise FormatError("header: not a JSON object")
    for key, kind in kinds.items():
        if not isinstance(body.get(key), kind):
            raise FormatError(f"header: {key!r} is missing or no {kind.__name__}")
    return body, rest[packed:], start + length


def _parse_tensor(line: Any) -> tuple[str, dict[str, Any]]:
    """A tensor's name and checked description."""
    if not isinstance(line, dict):
        raise FormatError("header: a tensor's description is no object")
    maps, rows, transposed = line.get("maps"), line.get("rows"), line.get("transposed", False)
    if not (isinstance(maps, list) and maps and all(isinstance(name, str) for name in maps)):
        raise FormatError("header: a tensor without maps")
    name = line.get("name", maps[0])
    if not isinstance(name, str):
        raise FormatError("header: a tensor's name is no text")
    if not (
        isinstance(rows, list)
        and len(rows) == len(maps)
        and all(type(r) is int and 0 <= r < 2**31 for r in rows)
    ):
        raise FormatError(f"header: tensor {name!r} has impossible rows")
    if not isinstance(transposed, bool):
        raise FormatError(f"header: tensor {name!r}: transposed is no truth value")
    out: dict[str, Any] = {"maps": tuple(maps), "rows": tuple(rows), "transposed": transposed}
    if "dtype" in line:
        try:
            out["dtype"], out["shape"] = records.check_layout(line["dtype"], line.get("shape"))
        except FormatError as error:
            raise FormatError(f"header: tensor {name!r}: {error}") from None
    else:
        out["form"] = line.get("form", "lattice")
        if not isinstance(out["form"], str) or out["form"] not in SECTIONS:
            raise FormatError(f"header: tensor {name!r} has the unknown form {out['form']!r}")
    return name, out


def _layout(
    tensors: dict[str, dict[str, Any]], files: list[Any], table: memoryview, start: int, size: int
) -> dict[tuple[str, str], tuple[int, int, bytes]]:
    """(kind, name) → (offset, length, digest): sections lie back to back in this order and fill the file."""
    coded = {name: line["form"] for name, line in tensors.items() if "dtype" not in line}
    keys = [("tables", "tables")] if coded else []
    keys += [(kind, name) for name, form in coded.items() for kind in SECTIONS[form]]
    keys += [("dense", "dense")] if len(coded) < len(tensors) else []
    if not all(isinstance(name, str) for name in files) or len(set(files)) != len(files):
        raise FormatError("header: file names must be texts, each once")
    keys += [("file", name) for name in files]
    out, at = {}, 0
    for key in keys:
        try:
            length, at = records.unpack_varint(table, at)
        except FormatError as error:
            raise FormatError(f"header: section table: {error}") from None
        expected, at = bytes(table[at : at + DIGEST]), at + DIGEST
        if at > len(table):
            raise FormatError("header: section table is cut off")
        if length > size - start:
            raise FormatError(
                f"section {key[1]!r} is cut off: {length} bytes claimed, {size - start} left in the file"
            )
        out[key] = (start, length, expected)
        start += length
    if at != len(table):
        raise FormatError("header: bytes after the section table")
    if start != size:
        raise FormatError(f"{size - start} bytes follow the last section")
    return out
