"""The container: round trip, ledger, atomic writing, and files that lie."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import format_oracle as oracle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lattices import large, lattices

from sprat.coding import container, records
from sprat.coding.artifact import Artifact
from sprat.coding.tensors import Dense, Entry, expand
from sprat.errors import FormatError, SpratError


def contents() -> dict[str, Any]:
    """A small model: fused maps, a transposed one, norms, a tokenizer."""
    rng = np.random.default_rng(5)
    entries = {}
    for i, trellis in enumerate((0, 4, 8)):
        x, y = large(24, 16, 0.7, trellis, seed=i), large(16, 24, 0.3, trellis, seed=9 + i)
        maps = (f"layers.{i}.q.weight", f"layers.{i}.k.weight")
        entries[f"layers.{i}.qk"] = Entry(maps, (16, 8), x)
        entries[f"layers.{i}.o.weight"] = Entry((f"layers.{i}.o.weight",), (16,), y, transposed=True)
        norm = Dense(rng.normal(1, 0.1, 16).astype(np.float32), ("bf16", "f16", "f32")[i])
        entries[f"layers.{i}.norm.weight"] = Entry((f"layers.{i}.norm.weight",), (16,), norm)
    return {
        "config": {"model_type": "tiny", "naïve": [1, 2.5, None]},
        "entries": entries,
        "recipe": {"level": 1e-4},
        "provenance": {"source": "test"},
        "file_extra": {"tokenizer/tokenizer.json": b'{"a": 1}', "tokenizer/empty": b""},
    }


CONTENTS: dict[str, Any] = contents()
BYTES = b"".join(container.assemble(**CONTENTS).parts)
BODY, FOUND, SECTIONS = oracle.read(BYTES)


def opened(data: bytes) -> Artifact:
    return Artifact(Path("test.sprat"), memoryview(data), len(data))


def sealed(body: dict[str, Any] | bytes, table: list[tuple[int, bytes]], sections: bytes) -> bytes:
    """A file whose digests are right, whatever it says."""
    packed = zlib.compress(body if isinstance(body, bytes) else json.dumps(body).encode(), 9)
    header = packed + b"".join(records.pack_varint(n) + container.digest(data) for n, data in table)
    start = struct.pack("<4sHHII", b"SPRT", 1, 0, len(packed), len(header))
    return start + hashlib.sha256(start + header).digest()[:16] + header + sections


def body_of(**changes: Any) -> dict[str, Any]:
    return {"config": {}, "recipe": {}, "provenance": {}, "tensors": [], "files": []} | changes


def test_round_trip_ledger_and_size(tmp_path: Path) -> None:
    path = tmp_path / "a.sprat"
    ledger = container.write(path, **CONTENTS)
    assert path.read_bytes() == BYTES and list(tmp_path.iterdir()) == [path]
    assert ledger.total == len(BYTES) == container.size(**CONTENTS)
    with container.open(path) as artifact:
        artifact.verify(threads=2)
        assert artifact.ledger() == ledger
        assert (artifact.config, artifact.recipe) == (CONTENTS["config"], CONTENTS["recipe"])
        assert artifact.provenance == CONTENTS["provenance"]
        assert artifact.tokenizer == {"tokenizer.json": b'{"a": 1}', "empty": b""}
        got, want = artifact.entries(), CONTENTS["entries"]
    assert list(got) == list(want)
    for name, entry in want.items():
        assert (got[name].maps, got[name].rows, got[name].transposed) == (
            entry.maps,
            entry.rows,
            entry.transposed,
        )
    for name, array in expand(want).items():
        assert np.array_equal(expand(got)[name], array)
    lattice_lines = [line for line in ledger.lines if line.kind == "lattice"]
    assert all(line.zeros == int((want[line.name].tensor.q == 0).sum()) for line in lattice_lines)
    assert sum(ledger.by_kind().values()) == ledger.to_json()["total"] == len(BYTES)


def test_python_reader_agrees() -> None:
    body, found, sections = BODY, FOUND, SECTIONS
    assert body["config"] == CONTENTS["config"] and sections["tokenizer/tokenizer.json"] == b'{"a": 1}'
    want = {n: e.tensor for n, e in CONTENTS["entries"].items() if not isinstance(e.tensor, Dense)}
    assert list(found) == list(want)
    for name, x in want.items():
        assert found[name]["q"] == x.q.tolist() and found[name]["trellis"] == x.trellis
        assert found[name]["row"] == x.row.index.tolist() and found[name]["col"] == x.col.index.tolist()


@settings(max_examples=40, deadline=None)
@given(lattices(max_side=16, patterns=True))
def test_any_lattice_round_trips_through_a_file(x: Any) -> None:
    kw: dict[str, Any] = CONTENTS | {"entries": {"x": Entry(("x",), (x.shape[0],), x)}}
    assembled = container.assemble(**kw)
    data = b"".join(assembled.parts)
    back: Any = opened(data).entry("x").tensor
    assert np.array_equal(back.dense(), x.dense()) and back.trellis == x.trellis
    assert (back.row_class == x.row_class).all() and (back.col_class == x.col_class).all()
    assert b"".join(container.assemble(**kw).parts) == data and assembled.ledger.total == len(data)


def test_header_stays_small() -> None:
    header = container.assemble(**CONTENTS).ledger.lines[0].nbytes
    assert header < 32 + 250 + 11 * 18


def test_names_are_helped() -> None:
    with pytest.raises(SpratError, match=r"did you mean 'layers.1.qk'"):
        opened(BYTES).entry("layers.1.qx")
    with pytest.raises(SpratError, match="did you mean"):
        opened(BYTES).file("tokenizer/tokeniser.json")


# ---- writing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "expected", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), SpratError, "disk full"),
        (OSError(errno.EIO, "Input/output error"), SpratError, "Input/output error"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_nothing_is_left_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    expected: Any,
    message: str | None,
    call: str,
) -> None:
    def fail(*_: Any) -> None:
        raise failure

    old = tmp_path / "a.sprat"
    old.write_bytes(b"before")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(expected, match=message):
        container.write(old, **CONTENTS)
    assert old.read_bytes() == b"before" and list(tmp_path.iterdir()) == [old]


def test_bad_targets_are_named(tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "missing" / "a.sprat"):
        with pytest.raises(SpratError, match=str(target)):
            container.write(target, **CONTENTS)
    with pytest.raises(SpratError, match="JSON"):
        container.size(**(CONTENTS | {"config": {"x": object()}}))


# ---- hostile files -------------------------------------------------------------------------------------


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 8 * len(BYTES) - 1))
def test_every_flipped_bit_is_found(bit: int) -> None:
    data = bytearray(BYTES)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError):
        opened(bytes(data)).verify()


@settings(max_examples=150, deadline=None)
@given(st.integers(32, len(BYTES) - 1))
def test_every_truncation_is_found(size: int) -> None:
    with pytest.raises(FormatError):
        opened(BYTES[:size])


@pytest.mark.parametrize(
    "data", [b"", b"SPRT", BYTES[:31], b"GGUF" + BYTES[4:], BYTES[:4] + b"\2" + BYTES[5:], BYTES + b"x"]
)
def test_what_is_no_file_of_this_version(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.sprat"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"bad\.sprat.*(too few|not a .sprat|newer|follow)"):
        container.open(path)
    with pytest.raises(FormatError, match="No such file"):
        container.open(tmp_path / "none.sprat")


def test_damage_names_its_section() -> None:
    for name, part in SECTIONS.items():
        if len(part) > 8:
            at = BYTES.index(part)
            data = bytearray(BYTES)
            data[at + len(part) // 2] ^= 16
            with pytest.raises(FormatError, match=f"section '{name}'.*damaged"):
                opened(bytes(data)).verify()


TENSOR = {"maps": ["w"], "rows": [1]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[1, 2]", "no.* object"),
        (b"{" * 100_000, "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"1" * 100_000, "JSON|object"),
        (b'{"config": {}}', "missing"),
        (body_of(tensors=[3]), "no object"),
        (body_of(tensors=[{"maps": []}]), "without maps"),
        (body_of(tensors=[TENSOR | {"rows": [-1]}]), "rows"),
        (body_of(tensors=[TENSOR | {"rows": [True]}]), "rows"),
        (body_of(tensors=[TENSOR | {"dtype": "f64", "shape": [1]}]), "dense type"),
        (body_of(tensors=[TENSOR | {"dtype": [], "shape": [1]}]), "dense type"),
        (body_of(tensors=[TENSOR | {"dtype": "f32", "shape": [2**40]}]), "shape"),
        (body_of(tensors=[TENSOR | {"dtype": "f32", "shape": [0, *[2**31 - 1] * 3]}]), "shape"),
        (body_of(tensors=[TENSOR | {"transposed": 1}]), "truth"),
        (body_of(tensors=[TENSOR, TENSOR]), "listed twice"),
        (body_of(tensors=[TENSOR, TENSOR | {"name": "v"}]), "parameter 'w' is stored twice"),
        (body_of(tensors=[{"maps": ["w", "w"], "rows": [1, 1]}]), "parameter 'w' is stored twice"),
        (body_of(files=["a", "a"]), "once"),
        (body_of(files=["a"]), "section table"),
    ],
)
def test_lying_headers(body: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        opened(sealed(body, [], b""))


def test_lying_section_table() -> None:
    with pytest.raises(FormatError, match="'a' is cut off"):
        opened(sealed(body_of(files=["a"]), [(2**62, b"")], b""))
    with pytest.raises(FormatError, match="follow the last section"):
        opened(sealed(body_of(files=["a"]), [(0, b"")], b"xyz"))
    with pytest.raises(FormatError, match="after the section table"):
        opened(sealed(body_of(), [(0, b"")], b""))


def bombs() -> dict[str, bytes]:
    """Small files with right digests that claim, or inflate to, gigabytes."""
    tables = SECTIONS["tables"]
    zeros = zlib.compress(b"\0" * (1 << 26), 9)

    def one(line: dict[str, Any], parts: list[bytes]) -> bytes:
        return sealed(body_of(tensors=[line]), [(len(p), p) for p in parts], b"".join(parts))

    def claim(m: int, n: int, vectors: list[bytes], integers: bytes) -> bytes:
        numbers = [m, n, 0, *map(len, vectors)]
        head = b"".join(map(records.pack_varint, numbers)) + b"\0\0\0"
        return one(TENSOR | {"rows": [min(m, 2**31 - 1)]}, [tables, head + b"".join(vectors) + integers])

    dense = {"dtype": "f32"}
    return {
        "header": sealed(b" " * (1 << 26), [], b""),
        "dense shape": one(TENSOR | dense | {"shape": [2**30, 2**30]}, [zeros]),
        "dense stream": one(TENSOR | dense | {"shape": [4]}, [zeros]),
        "lattice shape": claim(2**31 - 1, 2**31 - 1, [b""] * 4, b"\0" * 4000),
        "lattice rows": claim(2**30, 1, [b""] * 4, b"\0" * 400_000),
        "lattice columns": claim(1, 2**30, [b""] * 4, b"\1" * 64),
        "lattice size": claim(2**40, 2**40, [b""] * 4, b""),
        "lattice vectors": claim(2, 2, [b"\1" * 60] * 4, b"")[:-200] + b"\1" * 200,
    }


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_without_allocating(name: str) -> None:
    data = bombs()[name]
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            opened(data).verify()
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


def test_bombs_do_not_need_address_space(tmp_path: Path) -> None:
    """tracemalloc cannot see the native side: the same files in a process with a hard limit."""
    for name, data in bombs().items():
        (tmp_path / f"{name}.sprat").write_bytes(data)
    script = (
        "import resource, sys, pathlib\n"
        "from sprat.coding import container\n"
        "from sprat.errors import FormatError\n"
        "used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20),) * 2)\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try:\n"
        "        container.open(path).verify()\n"
        "    except FormatError:\n"
        "        print('refused')\n"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["refused"] * len(bombs()), done.stderr


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_sections_with_right_digests(data: st.DataObject) -> None:
    """Past the digests the parsers stand alone: any section may hold anything."""
    parts = list(SECTIONS.values())
    i = data.draw(st.integers(0, len(parts) - 3))  # the last two are opaque
    part = bytearray(parts[i])
    for _ in range(data.draw(st.integers(1, 3))):
        part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
    part = part[: data.draw(st.integers(0, len(part)))] if data.draw(st.booleans()) else part
    parts[i] = bytes(part) + data.draw(st.binary(max_size=3))
    hostile = sealed(BODY, [(len(p), p) for p in parts], b"".join(parts))
    try:
        opened(hostile).verify()
    except FormatError:
        return


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_noise_after_a_good_start(noise: bytes) -> None:
    for start in (b"", b"SPRT\1\0\0\0", BYTES[:32]):
        if len(start + noise) >= 32:
            with pytest.raises(FormatError):
                opened(start + noise)
