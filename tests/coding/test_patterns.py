"""N:M patterns in a lattice's section: what is coded comes back, at its true cost; hostile sections are refused."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace

import format_oracle as oracle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lattices import PATTERNS, large, lattices, reconstruct

from sprat.coding import choices, entropy, records
from sprat.coding.patterns import Pattern, codable, masks
from sprat.coding.tensors import Lattice, LogScale
from sprat.errors import FormatError


def tables_of(x: Lattice) -> entropy.Tables:
    return entropy.Tables.from_counts(entropy.count([x]))


def pattern_lattice(m: int, n: int, kept: int, group: int, trellis: int = 4, seed: int = 0) -> Lattice:
    """What `large` makes, of the columns that a random pattern leaves."""
    x = large(m, n // group * kept, 0.4, trellis, seed)
    stay = np.random.default_rng(seed).random((m, n // group, group)).argsort(2) < kept
    pattern = Pattern(kept, group, stay.reshape(m, n))
    classes = np.repeat(x.col_class[: n // group], group)
    return Lattice(
        pattern.expand(x.q), x.row, LogScale(np.zeros(n, np.int32), 8), x.row_class, classes, trellis, pattern
    )


@settings(max_examples=80, deadline=None)
@given(lattices(max_side=12, patterns=True))
def test_python_reader_agrees(x: Lattice) -> None:
    tables = tables_of(x)
    data = records.pack_lattice(x, tables)
    back = records.unpack_lattice(data, tables)
    assert (back.q == x.q).all() and (back.pattern is None) == (x.pattern is None)
    if x.pattern is not None and back.pattern is not None:
        assert (back.pattern.mask == x.pattern.mask).all()
    found = oracle.lattice(data, oracle.tables(tables.to_bytes()))
    assert found["q"] == x.q.tolist() and found["trellis"] == x.trellis


@pytest.mark.parametrize(("kept", "group"), PATTERNS[1:])
def test_every_choice_has_its_rank(kept: int, group: int) -> None:
    every = masks(kept, group)
    assert len(np.unique(every, axis=0)) == math.comb(group, kept) == len(every)
    assert (Pattern(kept, group, every).ranks()[:, 0] == np.arange(len(every))).all()


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (4, 8), (1, 4)])
def test_a_pattern_costs_what_its_choices_do(kept: int, group: int) -> None:
    x = pattern_lattice(512, 1152, kept, group)
    assert x.pattern is not None
    bits = 8 * len(choices.encode(x.pattern)) / x.q.size
    assert bits == pytest.approx(math.log2(math.comb(group, kept)) / group, rel=0.005)
    # The integers cost what they do without their zeros.
    coded, rows, columns = x.coded()
    alone = Lattice(coded, x.row, LogScale(np.zeros(coded.shape[1], np.int32), 8), rows, columns, x.trellis)
    whole = len(records.pack_lattice(x, tables_of(x)))
    assert whole == pytest.approx(
        len(records.pack_lattice(alone, tables_of(x))) + bits * x.q.size / 8, rel=0.002
    )


def test_threads_do_not_change_the_bytes() -> None:
    x = pattern_lattice(600, 1024, 2, 4)
    tables = tables_of(x)
    data = records.pack_lattice(x, tables)
    assert records.pack_lattice(x, tables, threads=3) == data
    assert (records.unpack_lattice(data, tables, threads=3).q == x.q).all()


def test_a_pattern_that_the_integers_contradict_is_refused() -> None:
    x = pattern_lattice(8, 16, 2, 4, trellis=0)
    q = x.q.copy()
    q[x.pattern.mask == 0] = 1
    with pytest.raises(ValueError, match="not zero"):
        replace(x, q=q)
    with pytest.raises(ValueError, match="other than 2 of 4"):
        Pattern(2, 4, np.ones((3, 8), bool))
    assert not codable(8, 16) and not codable(4, 4) and not codable(0, 4)


@settings(max_examples=300, deadline=None)
@given(lattices(max_side=8, patterns=True), st.data())
def test_damaged_sections_never_crash(x: Lattice, data: st.DataObject) -> None:
    tables = tables_of(x)
    section = bytearray(records.pack_lattice(x, tables))
    for _ in range(data.draw(st.integers(1, 3))):
        section[data.draw(st.integers(0, min(len(section) - 1, 60)))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(section)))
    try:
        back = records.unpack_lattice(
            bytes(section[:cut]) if data.draw(st.booleans()) else bytes(section), tables
        )
    except FormatError:
        return
    assert back.q.size <= 2**22


@pytest.mark.parametrize(
    ("kept", "group", "size"),
    [(2, 4, 100), (0, 4, 100), (4, 4, 100), (8, 16, 10**6), (2, 5, 10**6), (1, 127, 10)],
)
def test_claims_beyond_the_bytes_are_refused_before_allocating(kept: int, group: int, size: int) -> None:
    m, n = 2**16, 127 * 2**12
    numbers = b"".join(map(records.pack_varint, [m, n, 0, 0, 0, 0, 0]))
    head = numbers + bytes([8, 0, 0, kept, group]) + records.pack_varint(size)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="pattern of zeros"):
            records.unpack_lattice(head + b"\0" * size, entropy.prior_tables())
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


def test_a_choice_that_is_none_is_refused() -> None:
    """The escape of the choices' table can be coded, and says nothing."""
    ranks = np.zeros((8, 4), np.int16) - 63
    ranks[3, 2] = 50
    operands = choices._classes(ranks.shape)
    from sprat import _core

    data = _core.encode(ranks, *operands, 0, choices._frequencies(6), 1)
    with pytest.raises(FormatError, match=r"outside 0\.\.5"):
        choices.decode(data, (8, 16), 2, 4)


def test_symbols_of_what_stays_follow_the_trellis_alone() -> None:
    """A column that is left out does not move the trellis: the same symbols with and without it."""
    k = np.random.default_rng(0).integers(-3, 4, (5, 12))
    x = pattern_lattice(5, 24, 2, 4)
    q = reconstruct(k, 4)
    assert (x.pattern.compact(x.pattern.expand(q)) == q).all()
    made = replace(x, q=x.pattern.expand(q).astype(np.int16))
    assert entropy.count([made]).symbols.sum() == k.size
