"""Products in the run layout against numpy, and every kernel against the portable one, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprat import _core

PANEL = 16
KERNELS = _core.kernels()


def packed(q: np.ndarray, row=None, column=None, output: int = 0, parts: int = 1):
    row = np.ones(len(q), np.float32) if row is None else row
    column = np.ones(q.shape[1], np.float32) if column is None else column
    return _core.pack(q, row, column, output, parts, _core.Arena())


def product(
    matrix, x: np.ndarray, kernel: str = "auto", threads: int = 1, exact: bool = False, rows: int = 0
):
    y = np.full((len(x), rows or matrix.rows), np.nan, np.float32)
    _core.Product(matrix, threads, kernel, exact).multiply(x, y)
    return y


def random_integers(rng: np.random.Generator, rows: int, columns: int, spread: float, top: int) -> np.ndarray:
    """Heavy tails, rows and columns of very different size, columns and rows of zeros among them."""
    size = np.exp2(rng.normal(0, 1.5, rows))[:, None] * np.exp2(rng.normal(0, 1.5, columns)) * spread
    size[rng.random(rows) < 0.1] = 0
    size[:, rng.random(columns) < 0.1] = 0
    q = np.clip(np.rint(rng.standard_t(3, (rows, columns)) * size), -top, top)
    return q.astype(np.int16 if top < 2**15 else np.int32)


matrices = st.builds(
    random_integers,
    st.integers(0, 2**32).map(np.random.default_rng),
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([0.0, 0.3, 2.0, 30.0, 1e4]),
    st.sampled_from([1, 127, 32639, 32767, 2**31 - 1]),
)


@settings(max_examples=60, deadline=None)
@given(matrices, st.integers(1, 3), st.integers(0, 2**32))
def test_exact_products_are_those_of_the_matrix(q, parts, seed):
    rng = np.random.default_rng(seed)
    row, column = (np.exp2(rng.normal(0, 3, n)).astype(np.float32) for n in q.shape)
    x = rng.standard_normal((3, q.shape[1])).astype(np.float32)
    dense = q.astype(np.float64) * row[:, None] * column
    expected = x @ dense.T
    found = product(packed(q, row, column, parts=parts), x, exact=True)
    assert np.all(np.abs(found - expected) <= 1e-5 * (np.abs(x) @ np.abs(dense).T) + 1e-30)


@settings(max_examples=60, deadline=None)
@given(matrices)
def test_rows_come_back_as_they_were(q):
    matrix = packed(q)
    out, found = np.empty(q.shape[1], np.float32), []
    for row in range(len(q)):
        _core.expand_row(matrix, row, out)
        found.append(out.copy())
    assert np.array_equal(found, q.astype(np.float32))


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=60, deadline=None)
@given(matrices, st.sampled_from([1, 2, 3, 4, 7, 16, 21, 40]), st.integers(0, 2**32))
def test_every_kernel_gives_the_portable_ones_bits(kernel, q, tokens, seed):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((tokens, q.shape[1])) * np.exp2(rng.normal(0, 4, (tokens, 1)))).astype(
        np.float32
    )
    x[rng.random(x.shape) < 0.05] = 0
    matrix = packed(q, parts=2)
    assert np.array_equal(product(matrix, x, kernel), product(matrix, x, "portable"))


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_width_at_its_extremes(kernel):
    # Each panel's largest integers, with activations at their largest: sums that a narrow product would saturate.
    for width in range(1, 17):
        low, high = -(2 ** (width - 1)), 2 ** (width - 1) - 1
        low, high = max(low, -32639), min(high, 32639)
        q = np.tile(np.array([[low], [high]], np.int32), (9, 37))
        for sign in (1, -1):
            x = np.full((5, 37), float(sign), np.float32)
            x[1::2, ::2] *= -1
            expected = x.astype(np.float64) @ q.T
            for tokens in (1, 5):
                found = product(packed(q), x[:tokens], kernel)
                assert np.allclose(found, expected[:tokens], rtol=1e-6, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_activations_are_rounded_by_panels(kernel):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 50)).astype(np.float32)
    q = np.full((20, 50), 7, np.int16)  # columns of one size keep their order: panels are runs of 16
    padded = np.pad(x, ((0, 0), (0, 14))).reshape(6, 4, PANEL)
    scale = np.abs(padded).max(-1, keepdims=True).astype(np.float64) / 127
    rounded = (np.rint(padded / scale) * scale).reshape(6, 64)[:, :50]
    error = np.abs(product(packed(q), x, kernel) - rounded @ q.T)
    assert error.max() < 1e-4


@pytest.mark.parametrize("kernel", KERNELS)
def test_numbers_that_are_not_finite_are_not_lost(kernel):
    q = np.ones((3, 20), np.int16)
    for value in (np.nan, np.inf, -np.inf):
        for tokens in (1, 6):
            x = np.ones((tokens, 20), np.float32)
            x[0, 18] = value
            found = product(packed(q), x, kernel)
            assert not np.isfinite(found[0]).any()
            assert np.allclose(found[1:], 20)


def test_threads_and_chunks_change_nothing():
    rng = np.random.default_rng(1)
    q = random_integers(rng, 700, 130, 3.0, 32767)
    x = rng.standard_normal((9, 130)).astype(np.float32)
    one = product(packed(q, parts=1), x, threads=1)
    for threads in (2, 5):
        assert np.array_equal(product(packed(q, parts=1), x, threads=threads), one)
        near = product(packed(q, parts=threads), x, threads=threads)
        assert np.allclose(near, one, rtol=1e-4, atol=1e-3 * np.abs(one).max())


def test_results_go_behind_the_rows_before_them():
    q = np.arange(12, dtype=np.int16).reshape(4, 3)
    y = product(packed(q, output=5), np.ones((1, 3), np.float32), exact=True, rows=9)
    assert np.isnan(y[0, :5]).all()
    assert np.array_equal(y[0, 5:], q.sum(1))


def test_small_integers_take_few_bits():
    rng = np.random.default_rng(2)
    for top, most in ((0, 0.2), (1, 2.5), (3, 3.5), (7, 4.5)):
        q = rng.integers(-top, top + 1, (640, 640)).astype(np.int16)
        assert packed(q).nbytes * 8 / q.size < most


@pytest.mark.parametrize("kernel", ["sse9", ""])
def test_an_unknown_kernel_is_refused(kernel):
    with pytest.raises(ValueError, match=r"no kernel .*: auto.*portable"):
        _core.Product(packed(np.ones((1, 1), np.int16)), 1, kernel, False)


def test_shapes_that_do_not_fit_are_refused():
    q, one = np.ones((4, 3), np.int16), np.ones(3, np.float32)
    with pytest.raises(ValueError, match="not as long"):
        _core.pack(q, one, one, 0, 1, _core.Arena())
    with pytest.raises(ValueError, match="parts"):
        packed(q, parts=0)
    with pytest.raises(ValueError, match="impossible shape"):
        packed(np.ones((0, 3), np.int16))
    with pytest.raises(ValueError, match="do not fit"):
        product(packed(q), np.ones((1, 4), np.float32))
    with pytest.raises(ValueError, match="out of range"):
        _core.expand_row(packed(q), 4, one)


def test_memory_is_measured():
    rate = _core.read_bandwidth(8 << 20, 2, 3)
    assert 1e8 < rate < 1e13
    with pytest.raises(ValueError, match="read_bandwidth"):
        _core.read_bandwidth(0, 1, 1)
