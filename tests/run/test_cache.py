"""Attention over a session's cache: against numpy, every kernel against the portable one, and whole models."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_models import VOCABULARY, write_model

import sprat
from sprat import _core
from sprat.errors import RequestError, SpratError
from sprat.run.architecture import CACHES
from sprat.run.native import NativeEngine

KERNELS = _core.kernels()
IDS = np.random.default_rng(5).integers(0, VOCABULARY, 90).tolist()


def filled(precision: str, keys: np.ndarray, values: np.ndarray, capacity: int = 0):
    """A cache of one layer with two heads, of which the second holds keys, values: (positions, dimension)."""
    cache = _core.Cache(1, 2, keys.shape[1], capacity or len(keys), precision)
    for at, (key, value) in enumerate(zip(keys, values, strict=True)):
        cache.put(0, 1, at, key, value)
    return cache


def attend(cache, q, first, last, scale: float = 1.0, kernel: str = "auto") -> np.ndarray:
    out = np.full(q.shape, np.nan, np.float32)
    cache.attend(0, 1, scale, q, np.array(first, np.int32), np.array(last, np.int32), kernel, out)
    return out


def exact(keys, values, q, first, last, scale: float = 1.0) -> np.ndarray:
    out = []
    for row, begin, end in zip(q.astype(np.float64), first, last, strict=True):
        score = keys[begin:end].astype(np.float64) @ row * scale
        share = np.exp(score - score.max())
        out.append(share / share.sum() @ values[begin:end])
    return np.array(out)


def rounded(x: np.ndarray, width: int) -> np.ndarray:
    """x (n, m) to int8 with a scale for each `width` numbers of a row, and back."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, -x.shape[1] % width))).reshape(len(x), -1, width)
    scale = np.abs(padded).max(-1, keepdims=True) / 127
    back = np.rint(padded / np.where(scale > 0, scale, 1)) * scale
    return back.reshape(len(x), -1)[:, : x.shape[1]]


def spread(x: np.ndarray) -> np.ndarray:
    """Each 32 dimensions times the orthonormal Hadamard matrix."""
    matrix = np.ones((1, 1))
    for _ in range(5):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]) / np.sqrt(2)
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % 32)))
    return (padded.reshape(-1, 32) @ matrix).reshape(padded.shape)


def in_int8(keys, values, q, first, last, scale: float = 1.0) -> np.ndarray:
    """What docs/engine.md says of the int8 cache, in float64."""
    keys, q = spread(keys), rounded(spread(q), 16)
    key, value = rounded(keys, keys.shape[1]), rounded(values, values.shape[1])
    value_scale = np.abs(values).max(1) / 127
    units = value / np.where(value_scale > 0, value_scale, 1)[:, None]
    out = []
    for row, begin, end in zip(q, first, last, strict=True):
        score = key[begin:end] @ row * scale
        weight = np.zeros(len(keys))
        weight[begin:end] = np.exp(score - score.max())
        weight = rounded((weight / weight.sum() * value_scale)[None], 16)[0]
        out.append(weight @ units)
    return np.array(out)


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dimension = draw(st.sampled_from([2, 6, 16, 30, 32, 40, 64, 80]))
    length, count = draw(st.integers(1, 150)), draw(st.integers(1, 8))
    # A few dimensions far larger than the others, and tokens of very different size.
    size = np.exp2(rng.normal(0, 1.5, dimension)) * np.exp2(rng.normal(0, 1, (length, 1)))
    keys = (rng.standard_normal((length, dimension)) * size).astype(np.float32)
    values = (rng.standard_normal((length, dimension)) * np.exp2(rng.normal(0, 2, (length, 1)))).astype(
        np.float32
    )
    q = rng.standard_normal((count, dimension)).astype(np.float32)
    last = rng.integers(1, length + 1, count)
    return keys, values, q, (last * rng.random(count) * draw(st.booleans())).astype(int), last


@settings(max_examples=80, deadline=None)
@given(problems(), st.sampled_from(["float32", "bf16", "int8"]))
def test_attention_is_numpys(problem, precision):
    keys, values, q, first, last = problem
    scale = 1 / np.sqrt((keys.astype(np.float64) ** 2).sum(1).mean())
    expected = exact(*problem, scale)
    found = attend(filled(precision, keys, values), q, first, last, scale)
    tolerance = {"float32": 1e-5, "bf16": 0.03, "int8": 0.1}[precision]
    assert np.abs(found - expected).max() <= tolerance * np.abs(values).max()


@settings(max_examples=80, deadline=None)
@given(problems())
def test_int8_rounds_as_it_says(problem):
    """Closer to the rounding written down in numpy than any other granularity of scales would be."""
    keys, values, q, first, last = problem
    scale = 1 / np.sqrt((keys.astype(np.float64) ** 2).sum(1).mean())
    found = attend(filled("int8", keys, values), q, first, last, scale)
    expected = in_int8(*problem, scale)
    # Float32 may round a number in the middle between two integers the other way: 1 / 254 of a weight at most.
    assert np.abs(found - expected).max() <= 5e-3 * np.abs(values).max()
    assert np.median(np.abs(found - expected)) <= 1e-4 * np.abs(values).max()


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_every_kernel_gives_the_portable_ones_bits(kernel, problem):
    keys, values, q, first, last = problem
    cache = filled("int8", keys, values)
    assert np.array_equal(
        attend(cache, q, first, last, 0.3, kernel), attend(cache, q, first, last, 0.3, "portable")
    )


@pytest.mark.parametrize("precision", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30])
def test_what_is_not_seen_changes_nothing(precision, junk):
    """What was rewound, and in int8 what lies before a window too, whatever it is."""
    rng = np.random.default_rng(3)
    keys, values = rng.standard_normal((2, 70, 40)).astype(np.float32)
    q, first, last = rng.standard_normal((3, 40)).astype(np.float32), [5, 33, 40], [50, 52, 52]
    expected = attend(filled(precision, keys, values), q, first, last)
    before = 5 if precision == "int8" else 0
    keys[:before], values[:before], keys[52:], values[52:] = junk, junk, junk, junk
    cache = filled(precision, keys, values, 100)
    cache.rewind(52)
    assert np.array_equal(attend(cache, q, first, last), expected)
    keys[45] = np.nan
    assert np.isnan(attend(filled(precision, keys, values, 100), q[:1], [5], [50])).all()


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-33, 1e18])
def test_sizes_at_the_ends_of_float32(size):
    rng = np.random.default_rng(4)
    keys, values = (rng.standard_normal((2, 40, 16)) * size).astype(np.float32)
    q = (rng.standard_normal((2, 16)) / max(size, 1e-18)).astype(np.float32)
    found = attend(filled("int8", keys, values), q, [0, 20], [40, 40])
    expected = exact(keys, values, q, [0, 20], [40, 40])
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= max(0.1 * np.abs(values).max(), 2e-28)


def test_caches_that_cannot_be_are_refused():
    for sizes in (
        (0, 1, 8, 9),
        (1, 0, 8, 9),
        (1, 1, 0, 9),
        (1, 1, 8, 0),
        (1, 1, 4097, 9),
        (1, 1, 8, 2**30 + 1),
    ):
        with pytest.raises(ValueError, match="a cache that cannot be"):
            _core.Cache(*sizes, "int8")
    with pytest.raises(ValueError, match="no cache of int9: float32, bf16 or int8"):
        _core.Cache(1, 1, 8, 9, "int9")
    with pytest.raises(MemoryError):
        _core.Cache(4096, 2**16, 4096, 2**30, "int8")
    cache = filled("int8", *np.ones((2, 9, 8), np.float32))
    row = np.ones(8, np.float32)
    for arguments in ((1, 0, 0, row), (0, 2, 0, row), (0, 0, 9, row), (0, 0, -1, row), (0, 0, 0, row[:7])):
        with pytest.raises(ValueError, match="put: out of range"):
            cache.put(*arguments, row)
    for q, first, last in (((1, 8), [3], [3]), ((1, 8), [-1], [3]), ((1, 8), [0], [10])):
        with pytest.raises(ValueError, match="positions that are not there"):
            attend(cache, np.ones(q, np.float32), first, last)
    for q, first, last in (((9, 8), [0] * 9, [9] * 9), ((1, 7), [0], [9]), ((2, 8), [0], [9])):
        with pytest.raises(ValueError, match="shapes that do not fit"):
            attend(cache, np.ones(q, np.float32), first, last)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Sliding windows on some layers, heads of 8 dimensions."""
    return sprat.open(write_model("gemma3", tmp_path_factory.mktemp("cache") / "gemma3.sprat"))


@pytest.mark.parametrize("cache", CACHES)
def test_whole_models_stay_near_the_exact_cache(cache, model, monkeypatch):
    reference = NativeEngine(model, threads=1, activations="float").all_logits(IDS)
    engine = NativeEngine(model, threads=1, cache=cache)
    found = engine.all_logits(IDS)
    assert np.sqrt(np.mean((found - reference) ** 2)) < 0.15 * reference.std()
    monkeypatch.setenv("SPRAT_KERNEL", "portable")
    assert np.array_equal(NativeEngine(model, threads=3, cache=cache).all_logits(IDS), found)


@pytest.mark.parametrize("cache", CACHES)
def test_steps_rewinds_and_batches_give_what_one_step_gives(cache, model):
    engine = NativeEngine(model, threads=2, cache=cache)
    whole = engine.all_logits(IDS)
    session, other, at = engine.session(), engine.session(), 0
    for length in (1, 3, 40, 1, 9):
        engine.step([session, other], [IDS[at : at + length], IDS[::-1][at : at + length]])
        at += length
        row = engine.step([session], [IDS[at : at + 1]])
        session.rewind(at)
        # Int8 inputs differ where a sum was added in another order: far less than a wrong position would.
        assert np.sqrt(np.mean((row[0] - whole[at]) ** 2)) < 0.02 * whole.std()
        assert np.array_equal(engine.step([session], [IDS[at : at + 1]]), row)
        session.rewind(at)


@pytest.mark.parametrize(("cache", "bytes_of_head"), [("int8", 32 + 4), ("bf16", 64)])
def test_its_bytes(cache, bytes_of_head, model):
    engine = NativeEngine(model, threads=1, cache=cache)
    session = engine.session()
    engine.step([session], [IDS[:7]])
    assert engine.resident["cache"] == 7 * engine.cache_bytes_per_token == 7 * 2 * 3 * 2 * bytes_of_head


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_caches_that_come_and_go_hold_what_was_written_alone():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    vector, dice, live, before = np.ones(64, np.float32), random.Random(0), [], resident()
    for _ in range(40):
        while len(live) < 8:
            live.append(_core.Cache(30, 3, 64, 2048, "int8"))  # 25 MB, of which one position is written
            for layer in range(30):
                live[-1].put(layer, 0, 0, vector, vector)
        for _ in range(dice.randint(1, 6)):
            live.pop(dice.randrange(len(live)))
    # Eight whole caches are 200 MB; 30 layers write to at most 6 pages each.
    assert resident() - before < 8 * 30 * 6 * os.sysconf("SC_PAGE_SIZE") + 10_000_000
    written = resident()
    live.clear()
    assert resident() <= written


def test_an_unknown_cache_is_refused(model):
    with pytest.raises(RequestError, match=r"unknown cache 'int4' \(did you mean 'int8'\?\): int8 or bf16"):
        NativeEngine(model, cache="int4")
    with pytest.raises(SpratError, match="float activations keep a cache of float32, not int8"):
        NativeEngine(model, activations="float", cache="int8")
