"""Stored tensors: what they stand for, and what they refuse."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lattices import large

from sprat.coding.tensors import Dense, Entry, Lattice, LogScale, expand


def test_lattice_is_rows_times_integers_times_columns() -> None:
    q = np.array([[1, -2, 0], [3, 0, 5]], np.int16)
    row, col = LogScale(np.array([0, 2], np.int32), 2), LogScale(np.array([-1, 0, 3], np.int32), 1)
    x = Lattice(q, row, col, np.zeros(2, np.uint8), np.zeros(3, np.uint8))
    assert x.dense().tolist() == [[0.5, -2, 0], [3, 0, 80]] and x.dense().dtype == np.float32


@given(hnp.arrays(np.float64, 20, elements=st.floats(1e-15, 1e15)), st.integers(1, 256))
def test_nearest_scale_is_within_half_a_step(values: np.ndarray, resolution: int) -> None:
    got = LogScale.nearest(values, resolution).values().astype(np.float64)
    assert np.abs(np.log2(got / values)).max() <= 0.5001 / resolution + 1e-6


@given(hnp.arrays(np.float32, 30, elements=st.floats(width=32)), st.sampled_from(["f32", "bf16", "f16"]))
def test_dense_rounds_once_to_nearest(array: np.ndarray, dtype: str) -> None:
    once = Dense(array, dtype).dense()
    assert np.array_equal(Dense(once, dtype).dense(), once, equal_nan=True)
    if dtype == "f32":
        assert np.array_equal(once, array, equal_nan=True)
    assert np.array_equal(np.isnan(once), np.isnan(array))
    normal = (np.abs(array) > 1e-4) & (np.abs(array) < 6e4)
    array, once = array[normal], once[normal]
    assert (np.abs(once - array) <= np.abs(array) / (256 if dtype == "bf16" else 2048)).all()


def test_expand_cuts_rows_and_transposes() -> None:
    x = large(6, 4, 1.0, 0)
    norm = Dense(np.arange(4, dtype=np.float32), "f32")
    out = expand({"qk": Entry(("q", "k"), (4, 2), x, transposed=True), "n": Entry(("n",), (4,), norm)})
    assert (out["q"] == x.dense()[:4].T).all() and (out["k"] == x.dense()[4:].T).all()
    assert (out["n"] == norm.array).all() and list(out) == ["q", "k", "n"]


def test_impossible_tensors_are_refused() -> None:
    x = large(6, 4, 1.0, 0)
    for change, message in (
        ({"q": x.q.astype(np.int64)}, "int16 or int32"),
        ({"q": x.q[:0]}, "non-empty"),
        ({"trellis": 5}, "trellis"),
        ({"row": x.col}, "row has shape"),
        ({"col_class": x.col_class.astype(np.int32)}, "uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(x, **change)
    with pytest.raises(ValueError, match="positive finite"):
        LogScale.nearest(np.array([1.0, 0.0]), 8)
    with pytest.raises(ValueError, match="steps an octave"):
        LogScale(np.zeros(2, np.int32), 257)
    with pytest.raises(ValueError, match="do not sum"):
        Entry(("a", "b"), (3, 2), x)
    with pytest.raises(ValueError, match="f32"):
        Dense(np.zeros(3, np.float32), "f64")


def test_nbytes_is_what_it_weighs() -> None:
    x = large(64, 64, 1.0, 8)
    assert 64 * 64 * 1.5 / 8 < x.nbytes < 64 * 64 * 3 / 8 + 300
    assert Dense(np.zeros((3, 5), np.float32), "bf16").nbytes == 30
