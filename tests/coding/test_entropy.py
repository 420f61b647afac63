"""The entropy coder: exact, close to the entropy, priced as it says."""

from __future__ import annotations

import dataclasses

import format_oracle as oracle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from lattices import large, lattices

from sprat.coding import entropy, records
from sprat.coding.tensors import BUCKETS, Lattice, LogScale
from sprat.errors import FormatError


def round_trip(x: Lattice, tables: entropy.Tables, data: bytes, threads: int = 1) -> np.ndarray:
    return entropy.decode(data, x.shape, x.q.dtype, x.row_class, x.col_class, x.trellis, tables, threads)


@settings(max_examples=150, deadline=None)
@given(lattices(), st.booleans())
def test_any_lattice_round_trips(x: Lattice, own: bool) -> None:
    tables = entropy.Tables.from_counts(entropy.count([x])) if own else entropy.prior_tables()
    data = entropy.encode(x, tables)
    assert (round_trip(x, tables, data) == x.q).all()
    # 16 bits of start-up a lane and chunk, and rounding of the states.
    lanes = min(8, x.shape[0])
    assert (
        abs(8 * len(data) - 32 - 16 * lanes - entropy.cost_bits(x, tables))
        <= 16 * lanes + 0.02 * x.q.size + 16
    )


@settings(max_examples=40, deadline=None)
@given(lattices(max_side=12), st.booleans())
def test_python_reader_agrees(x: Lattice, own: bool) -> None:
    tables = entropy.Tables.from_counts(entropy.count([x])) if own else entropy.prior_tables()
    freq = oracle.tables(tables.to_bytes())
    for (z, b), f in freq.items():
        assert tables.freq[z, b, : len(f)].tolist() == f and sum(f) == 2**14
    kind = (0, 4, 8).index(x.trellis)
    q = oracle.integers(
        entropy.encode(x, tables), *x.shape, x.row_class.tolist(), x.col_class.tolist(), kind, freq
    )
    assert q == x.q.tolist()


@pytest.mark.parametrize("trellis", [0, 4, 8])
def test_python_reader_agrees_over_chunks(trellis: int) -> None:
    x = large(70, 4096, 0.7, trellis)
    tables = entropy.Tables.from_counts(entropy.count([x]))
    data = entropy.encode(x, tables)
    kind = (0, 4, 8).index(trellis)
    freq = oracle.tables(tables.to_bytes())
    assert (
        oracle.integers(data, *x.shape, x.row_class.tolist(), x.col_class.tolist(), kind, freq)
        == x.q.tolist()
    )
    assert entropy.encode(x, tables, threads=3) == data
    assert (round_trip(x, tables, data, threads=3) == x.q).all()


@pytest.mark.parametrize(("step", "trellis"), [(2.0, 0), (1.0, 8), (0.1, 4)])
def test_coded_size_is_near_the_conditional_entropy(step: float, trellis: int) -> None:
    x = large(7168, 1536, step, trellis)  # 11 M weights
    counts = entropy.count([x])
    tables = entropy.Tables.from_counts(counts)
    data = entropy.encode(x, tables, threads=2)
    total = 8 * (len(data) + len(tables.to_bytes()))
    assert counts.entropy() <= total <= 1.005 * counts.entropy()
    assert entropy.cost_bits(x, tables) == pytest.approx(8 * len(data), rel=0.002)
    assert (round_trip(x, tables, data, threads=2) == x.q).all()


def test_small_artifacts_pay_little_for_tables() -> None:
    x = large(64, 512, 0.7, 8)
    counts = entropy.count([x])
    tables = entropy.Tables.from_counts(counts)
    assert len(tables.to_bytes()) < 250
    assert entropy.cost_bits(x, tables) + 8 * len(tables.to_bytes()) < 1.04 * counts.entropy()


def test_counts_add_and_say_what_was_seen() -> None:
    x, y = large(40, 64, 1.0, 4), large(24, 64, 1.0, 0, seed=1)
    both = entropy.count([x, y], threads=2)
    assert both.symbols.sum() == x.q.size + y.q.size
    again = entropy.count([x]) + entropy.count([y])
    assert (again.symbols == both.symbols).all() and (again.extra == both.extra).all()
    tables = entropy.Tables.from_counts(both)
    parts = entropy.cost_bits(x, tables) + entropy.cost_bits(y, tables)
    assert entropy.cost_of_counts(both, tables) == pytest.approx(parts)


@pytest.mark.parametrize("trellis", [4, 8])
def test_integers_that_the_trellis_cannot_reach_are_refused(trellis: int) -> None:
    x = large(4, 8, 1.0, 0)
    q = np.zeros_like(x.q)
    q[2, 0] = 1  # state 0 has even points only
    bad = dataclasses.replace(x, q=q, trellis=trellis)
    with pytest.raises(ValueError, match="row 2, column 0"):
        entropy.count([bad])
    with pytest.raises(ValueError, match="cannot reach"):
        entropy.encode(bad, entropy.prior_tables())


def test_prior_is_what_rounding_gives() -> None:
    bits = entropy.prior_tables().bits(4000).astype(np.float64)
    k = np.arange(-4000, 4001)
    p = np.exp2(-bits)
    assert np.abs(p.sum(-1) - 1).max() < 0.02
    rng = np.random.default_rng(0)
    draws = np.concatenate([rng.normal(size=200_000), rng.laplace(size=200_000) / np.sqrt(2)])
    for b in range(16, BUCKETS - 1):
        std = 2 ** ((b - 24) / 4)
        near = np.abs(k) <= 6 * std + 1  # beyond lie the escapes, whose price is no probability to speak of
        rounded = np.rint(std * draws)
        rounded = rounded[np.abs(rounded) <= 6 * std + 1]
        assert np.sqrt((p[0, b] * k**2)[near].sum() / p[0, b, near].sum()) == pytest.approx(
            rounded.std(), rel=0.05
        )


def test_bits_price_every_symbol() -> None:
    tables = entropy.Tables.from_counts(entropy.count([large(64, 512, 0.3, 8)]))
    bits = tables.bits(300)
    assert bits.shape == (2, BUCKETS, 601) and bits.dtype == np.float32
    assert np.isfinite(bits).all() and (bits >= 0).all() and bits.max() < 60
    narrow = tables.bits(3)
    assert (narrow == bits[:, :, 297:304]).all()


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.int32, st.integers(1, 300), elements=st.integers(-(2**31), 2**31 - 1)))
def test_any_vector_round_trips(v: np.ndarray) -> None:
    data = entropy.encode_vector(v)
    assert (entropy.decode_vector(data, v.size) == v).all()
    assert oracle.vector(data, v.size) == v.tolist()


@pytest.mark.parametrize("value", [0, 7, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("size", [1, 720, 5760, 5761, 49152, 2**20])
def test_constant_vectors_round_trip(size: int, value: int) -> None:
    """Nearly all bytes of a constant vector are zeros at its end: enough of them stay for the reader."""
    v = np.full(size, value, np.int32)
    data = entropy.encode_vector(v)
    assert (entropy.decode_vector(data, size) == v).all()
    assert len(data) <= 16 + size / 720
    if size <= 5761:
        assert oracle.vector(data, size) == v.tolist()


def test_nearly_constant_vectors_round_trip() -> None:
    v = np.zeros(200_000, np.int32)
    for place in (0, 100_000, 199_999):
        w = v.copy()
        w[place] = 3
        assert (entropy.decode_vector(entropy.encode_vector(w), w.size) == w).all()


def test_a_lattice_of_constant_classes_packs_and_unpacks() -> None:
    m, n = 49_152, 4
    scales = LogScale(np.zeros(m, np.int32), 8), LogScale(np.zeros(n, np.int32), 8)
    x = Lattice(np.zeros((m, n), np.int16), *scales, np.full(m, 76, np.uint8), np.full(n, 86, np.uint8))
    tables = entropy.Tables.from_counts(entropy.count([x]))
    back = records.unpack_lattice(records.pack_lattice(x, tables), tables)
    assert (back.row_class == 76).all() and (back.row.index == 0).all() and (back.q == 0).all()


def test_vectors_cost_about_their_entropy() -> None:
    rng = np.random.default_rng(0)
    scattered = np.rint(rng.normal(100, 4, 3000)).astype(np.int32)
    assert 8 * len(entropy.encode_vector(scattered)) / 3000 < np.log2(4 * 4.133) + 0.12
    smooth = np.rint(100 * np.sin(np.arange(3000) / 200) + rng.normal(0, 0.4, 3000)).astype(np.int32)
    assert 8 * len(entropy.encode_vector(smooth)) / 3000 < 2.2
    assert len(entropy.encode_vector(np.full(4000, 7, np.int32))) < 12


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_noise_as_tables_or_vector(data: bytes) -> None:
    for read in (lambda: entropy.Tables.from_bytes(data), lambda: entropy.decode_vector(data, 500)):
        try:
            read()
        except FormatError:
            continue


@settings(max_examples=200, deadline=None)
@given(lattices(), st.data())
def test_damaged_integers_never_crash(x: Lattice, data: st.DataObject) -> None:
    tables = entropy.Tables.from_counts(entropy.count([x]))
    coded = bytearray(entropy.encode(x, tables))
    for _ in range(data.draw(st.integers(1, 4))):
        coded[data.draw(st.integers(0, len(coded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(coded)))
    try:
        round_trip(x, tables, bytes(coded[:cut]) if data.draw(st.booleans()) else bytes(coded))
    except FormatError:
        return


def test_claims_beyond_the_bytes_are_refused_before_allocating() -> None:
    tables = entropy.prior_tables()
    shape = (2**31 - 1, 2**20)
    with pytest.raises(FormatError, match="cannot hold"):
        entropy.decode(b"\0" * 1000, shape, np.int16, np.zeros(1, np.uint8), np.zeros(1, np.uint8), 0, tables)
    with pytest.raises(FormatError, match="cannot hold"):
        entropy.decode_vector(b"\0" * 10, 2**31)
