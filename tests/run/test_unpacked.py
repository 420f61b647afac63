"""What opening unpacked, kept in a file: the same logits, and a file that lies is a file that is not there."""

from __future__ import annotations

import io
import os
import time
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_models import CONFIGS, VOCABULARY, write_model
from test_kernels import matrices, packed, product

import sprat
from sprat import _core
from sprat.run import unpacked
from sprat.run.native import NativeEngine

IDS = np.random.default_rng(5).integers(0, VOCABULARY, 12).tolist()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path))
    monkeypatch.delenv("SPRAT_KEEP_UNPACKED", raising=False)
    return tmp_path / "unpacked"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return sprat.open(write_model("llama", tmp_path_factory.mktemp("kept") / "llama.sprat"))


def kept(folder):
    return sorted(folder.glob("*.run"))


@pytest.mark.parametrize("family", ["llama, tied, biases", "qwen3", "gemma3, untied"])
def test_the_second_opening_decodes_nothing_and_gives_the_same_bits(family, cache, tmp_path, monkeypatch):
    assert family in CONFIGS
    artifact = sprat.open(write_model(family, tmp_path / "model.sprat"))
    expected = NativeEngine(artifact, threads=2).all_logits(IDS)
    assert not cache.exists()
    first = NativeEngine(artifact, threads=2, keep=True)
    assert np.array_equal(first.all_logits(IDS), expected)
    assert len(kept(cache)) == 1 and not list(cache.glob("*.part"))
    monkeypatch.setattr(_core, "pack", None)
    monkeypatch.setenv("SPRAT_KEEP_UNPACKED", "1")
    second = NativeEngine(artifact, threads=2)
    assert np.array_equal(second.all_logits(IDS), expected)
    assert second.resident == first.resident
    with pytest.raises(TypeError):  # another number of threads has another layout
        NativeEngine(artifact, threads=1)


def test_another_file_is_another_key(cache, llama, tmp_path):
    NativeEngine(llama, threads=1, keep=True)
    other = sprat.open(write_model("llama", tmp_path / "other.sprat", steps=20))
    assert other.digest != llama.digest
    NativeEngine(other, threads=1, keep=True)
    assert len(kept(cache)) == 2


@settings(max_examples=60, deadline=None)
@given(matrices, st.integers(1, 3), st.integers(0, 2**32))
def test_matrices_come_back(q, parts, seed):
    rng = np.random.default_rng(seed)
    row, column = (np.exp2(rng.normal(0, 3, n)).astype(np.float32) for n in q.shape)
    matrix = packed(q, row, column, parts=parts)
    file = io.BytesIO()
    _core.write_entries(matrix, file)
    file.seek(0)
    assert matrix.entry_bytes == len(file.getvalue())
    back = _core.restore(_core.head(matrix), file, matrix.entry_bytes, _core.Arena())
    x = rng.standard_normal((5, q.shape[1])).astype(np.float32)
    assert back.nbytes == matrix.nbytes and back.chunks == matrix.chunks
    for tokens in (1, 5):
        assert np.array_equal(product(back, x[:tokens]), product(matrix, x[:tokens]))


@settings(max_examples=300, deadline=None)
@given(matrices, st.data())
def test_heads_that_lie_are_refused_or_harmless(q, data):
    matrix = packed(q, parts=2)
    head = bytearray(_core.head(matrix))
    entries = io.BytesIO()
    _core.write_entries(matrix, entries)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(8, len(head) - 1) | st.integers(8, min(len(head) - 1, 120)))
        head[at] = data.draw(st.integers(0, 255))
    head[32:36] = bytes(4)  # where outputs begin: the model checks that
    cut = data.draw(st.sampled_from([len(head)] * 4 + [len(head) // 2, len(head) - 1, 0]))
    try:
        back = _core.restore(
            bytes(head[:cut]), io.BytesIO(entries.getvalue()), matrix.entry_bytes, _core.Arena()
        )
    except (ValueError, MemoryError):
        return
    # What was changed cannot be told from what was meant; it must stay inside its arrays (under the sanitizers too).
    x = np.ones((5, back.columns), np.float32)
    for tokens in (1, 5):
        product(back, x[:tokens])
    for row in range(back.rows):
        _core.expand_row(back, row, np.empty(back.columns, np.float32))


@pytest.mark.parametrize("change", ["entries", "entries cut", "more than there is"])
def test_entries_that_are_not_theirs_are_refused(change):
    matrix = packed(np.arange(-600, 600, dtype=np.int16).reshape(40, 30))
    file = io.BytesIO()
    _core.write_entries(matrix, file)
    data, most = bytearray(file.getvalue()), matrix.entry_bytes
    if change == "entries":
        data[len(data) // 2] ^= 1
    elif change == "entries cut":
        del data[-1]
    else:
        most -= 1
    with pytest.raises(ValueError, match=r"damaged|cut off"):
        _core.restore(_core.head(matrix), io.BytesIO(bytes(data)), most, _core.Arena())


def test_damaged_files_are_made_again(cache, llama):
    engine = NativeEngine(llama, threads=1, keep=True)
    expected = engine.all_logits(IDS)
    (path,) = kept(cache)
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    places = [0, 8, 45, 60, 90, 95, len(good) - 1, *rng.integers(0, len(good), 12).tolist()]
    for at in places:
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        assert np.array_equal(NativeEngine(llama, threads=1, keep=True).all_logits(IDS), expected)
        assert path.read_bytes() == good
    for size in (0, 50, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        assert np.array_equal(NativeEngine(llama, threads=1, keep=True).all_logits(IDS), expected)
        assert path.read_bytes() == good


@pytest.mark.parametrize(
    "change",
    [
        lambda pieces: pieces[:-1],
        lambda pieces: [*pieces, pieces[0]],
        lambda pieces: [(["nothing"], content) for _, content in pieces],
        lambda pieces: [([], content) for _, content in pieces],
        lambda pieces: [(3, content) for _, content in pieces],
        lambda pieces: [(maps, np.ones(3, np.float32)) for maps, _ in pieces],
        lambda pieces: [
            (maps, content) for (maps, _), (_, content) in zip(pieces, pieces[::-1], strict=True)
        ],
        lambda pieces: [],
    ],
)
def test_a_file_for_another_model_is_made_again(cache, llama, change):
    """Whole, with the right key and digests, and still wrong."""
    expected = NativeEngine(llama, threads=1, keep=True).all_logits(IDS)
    file = unpacked.Unpacked(llama.digest, 1)
    pieces = file.read(1)
    assert pieces
    file.write(change(pieces))
    assert np.array_equal(NativeEngine(llama, threads=1, keep=True).all_logits(IDS), expected)
    again = file.read(1)
    assert again and [maps for maps, _ in again] == [maps for maps, _ in pieces]


def test_the_oldest_make_way(cache, llama, monkeypatch):
    NativeEngine(llama, threads=1, keep=True)
    (first,) = kept(cache)
    size = first.stat().st_size
    usage = types.SimpleNamespace(free=35 * size)  # a tenth of it: three files
    monkeypatch.setattr(unpacked.shutil, "disk_usage", lambda _: usage)
    for i in range(3):
        old = cache / f"{i}.run"
        old.write_bytes(bytes(size))
        os.utime(old, (1000 + i, 1000 + i))
    abandoned, fresh = cache / "a.part", cache / "b.part"
    for part in (abandoned, fresh):
        part.touch()
    os.utime(abandoned, (1000, 1000))
    os.utime(first, (2000, 2000))
    NativeEngine(llama, threads=1, keep=True)  # a hit: used now, nothing is written
    assert first.stat().st_mtime > time.time() - 60 and len(kept(cache)) == 4
    NativeEngine(llama, threads=2, keep=True)
    assert first in kept(cache) and len(kept(cache)) == 3 and cache / "2.run" in kept(cache)
    assert fresh.exists() and not abandoned.exists()
    usage.free = 5 * size
    NativeEngine(llama, threads=3, keep=True)
    assert len(kept(cache)) == 3  # no room for another


def test_a_cache_that_cannot_be_written_is_no_error(llama, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / "file"))
    assert NativeEngine(llama, threads=1, keep=True).all_logits(IDS).shape == (len(IDS), VOCABULARY)
