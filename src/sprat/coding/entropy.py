"""The entropy coder's face: counts, probability tables, costs, and lattices to bytes and back.

A symbol k of a lattice is coded by rANS with the static table of its context (quantizer, bucket): the
quantizer is the trellis state's (0 for plain lattices), the bucket comes from the classes of row and column.
The alphabet of bucket b is -K..K and an escape; buckets of large integers send their low `raw_bits(b)` bits
as they are. docs/format.md says exactly how; csrc/rans.cpp does it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sprat import _core
from sprat.coding.tensors import BUCKETS, OFFSET, ZERO, Lattice
from sprat.errors import FormatError

CELLS = 128
PROB_BITS = 14
#: A byte of the adaptive coder holds at most this many decisions (each costs at least log2(129/128) bits):
#: bounds what a short section can claim. SPARE_BYTES: for what the coder's range still holds at its end.
DECISIONS_PER_BYTE = 720
SPARE_BYTES = 8


def cell_bits(bucket: int) -> int:
    """log2 of the alphabet of a bucket (symbols -K..K and the escape, K = 2 ** (cell_bits - 1) - 1)."""
    return 4 if bucket <= ZERO - 4 else 5 if bucket <= ZERO + 2 else 6 if bucket <= ZERO + 6 else 7


def raw_bits(bucket: int) -> int:
    """Low bits of a symbol that are sent as they are."""
    return 0 if bucket <= ZERO + 14 else (bucket - ZERO - 11) // 4


def bucket_std(bucket: int | np.ndarray) -> float | np.ndarray:
    """The standard deviation, in symbols, of what is rounded in a bucket."""
    return 2.0 ** ((bucket - ZERO) / 4)


@dataclass(frozen=True, eq=False)
class Counts:
    """How often each symbol was seen.

    symbols: (2, BUCKETS, CELLS) uint64; extra: (2, BUCKETS) uint64, bits that escaped symbols add.
    """

    symbols: np.ndarray
    extra: np.ndarray

    @staticmethod
    def none() -> Counts:
        return Counts(np.zeros((2, BUCKETS, CELLS), np.uint64), np.zeros((2, BUCKETS), np.uint64))

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.symbols + other.symbols, self.extra + other.extra)

    def entropies(self) -> np.ndarray:
        """(BUCKETS,): bits of the empirical entropy given (quantizer, bucket), raw bits included."""
        c = self.symbols.astype(np.float64)
        total = c.sum(-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            bits = -np.nansum(c * np.log2(c / total), axis=(0, 2))
        raw = np.array([raw_bits(b) for b in range(BUCKETS)])
        return bits + c[:, :, :-1].sum((0, 2)) * raw + self.extra.sum(0)

    def entropy(self) -> float:
        """Bits of all buckets."""
        return float(self.entropies().sum())


def count(lattices: Iterable[Lattice], threads: int = 1) -> Counts:
    """Symbols of all lattices by context."""
    out = Counts.none()
    for lattice in lattices:
        _core.count(*_operands(lattice), out.symbols, out.extra, threads)
    return out


@dataclass(frozen=True, eq=False)
class Tables:
    """Static distributions, shared by all lattices of an artifact.

    used: (2, BUCKETS) uint8, which contexts have a table;
    levels: (2, BUCKETS, CELLS) uint8, -8 log2 p up to a constant, 127 where a symbol has no slot of its own;
    freq: (2, BUCKETS, CELLS) uint16, derived, sums to 2 ** 14.
    """

    used: np.ndarray
    levels: np.ndarray
    freq: np.ndarray

    @staticmethod
    def from_counts(counts: Counts) -> Tables:
        """Tables that cost least together with what they will code."""
        used, levels = np.zeros((2, BUCKETS), np.uint8), np.zeros((2, BUCKETS, CELLS), np.uint8)
        _core.fit_levels(np.ascontiguousarray(counts.symbols, dtype=np.uint64), used, levels)
        return Tables._derived(used, levels)

    def to_bytes(self) -> bytes:
        return _core.encode_levels(self.used.copy(), self.levels.copy())

    @staticmethod
    def from_bytes(data: bytes | memoryview) -> Tables:
        used, levels = np.zeros((2, BUCKETS), np.uint8), np.zeros((2, BUCKETS, CELLS), np.uint8)
        try:
            _core.decode_levels(np.frombuffer(data, np.uint8), used, levels)
            return Tables._derived(used, levels)
        except ValueError as error:
            raise FormatError(f"probability tables: {error}") from None

    @staticmethod
    def _derived(used: np.ndarray, levels: np.ndarray) -> Tables:
        freq = np.zeros((2, BUCKETS, CELLS), np.uint16)
        _core.frequencies(used, levels, freq)
        return Tables(used, levels, freq)

    @functools.cached_property
    def cell_cost(self) -> np.ndarray:
        """(2, BUCKETS, CELLS) float64: bits of a cell, with raw bits, or the escape where it has no slot."""
        out = np.zeros((2, BUCKETS, CELLS))
        for b in range(BUCKETS):
            cells, raw = 2 ** cell_bits(b), raw_bits(b)
            h = np.arange(cells - 1) - (cells // 2 - 1)
            for z in range(2):
                freq = self.freq[z, b, :cells].astype(np.float64)
                escape = PROB_BITS - math.log2(freq[-1])
                listed = PROB_BITS - np.log2(np.maximum(freq[:-1], 1)) + raw
                out[z, b, : cells - 1] = np.where(freq[:-1] > 0, listed, escape + _escape_bits(h * 2**raw))
                out[z, b, cells - 1] = escape
        return out

    def bits(self, max_symbol: int) -> np.ndarray:
        """(2, BUCKETS, 2 * max_symbol + 1) float32: bits of symbol k at k + max_symbol, all included."""
        k = np.arange(-max_symbol, max_symbol + 1)
        out = np.empty((2, BUCKETS, k.size), np.float32)
        for b in range(BUCKETS):
            middle = 2 ** (cell_bits(b) - 1) - 1
            h = k >> raw_bits(b)
            inside = np.abs(h) <= middle
            cell = np.where(inside, h + middle, 2 * middle + 1)
            out[:, b] = self.cell_cost[:, b, cell] + np.where(inside, 0, _escape_bits(k))
        return out


def cost_bits(lattice: Lattice, tables: Tables, threads: int = 1) -> float:
    """Bits that `encode` will spend: exact but for rounding of the states and the lanes' ends."""
    return cost_of_counts(count([lattice], threads), tables)


def cost_of_counts(counts: Counts, tables: Tables) -> float:
    """Bits of what was counted, under `tables`."""
    return float((counts.symbols * tables.cell_cost).sum() + counts.extra.sum())


def encode(lattice: Lattice, tables: Tables, threads: int = 1) -> bytes:
    """The integers of a lattice, coded. Any int32 can be sent, dearly if unexpected."""
    return _core.encode(*_operands(lattice), tables.freq, threads)


def decode(
    data: bytes | memoryview,
    shape: tuple[int, int],
    dtype: np.dtype | type,
    row_class: np.ndarray,
    col_class: np.ndarray,
    trellis: int,
    tables: Tables,
    threads: int = 1,
) -> np.ndarray:
    """Inverse of encode: (m, n) int16 or int32; FormatError for what encode cannot have written."""
    check_claim(len(data), *shape)
    try:
        out = np.zeros(shape, dtype)  # pages are only touched as chunks prove themselves
        _core.decode(np.frombuffer(data, np.uint8), row_class, col_class, trellis, tables.freq, out, threads)
    except ValueError as error:
        raise FormatError(f"coded integers: {error}") from None
    return out


def check_claim(size: int, rows: int, columns: int) -> None:
    """Refuse a shape that `size` coded bytes cannot hold: a chunk has its length and its lanes' states."""
    chunk = max(1, 131072 // columns)
    chunk -= chunk % 8 if chunk >= 8 else 0
    whole, rest = divmod(rows, chunk)
    least = whole * (4 + 4 * min(8, chunk)) + (4 + 4 * min(8, rest) if rest else 0)
    if size < least:
        raise FormatError(
            f"coded integers: {size} bytes cannot hold {rows} x {columns} weights (at least {least})"
        )


def encode_vector(values: np.ndarray) -> bytes:
    """A short vector of integers (n,) int32: scales, classes.

    The coder leaves out zero bytes at its end, which for a constant vector are nearly all of them; as many
    are put back as a reader needs to believe n.
    """
    data = _core.encode_vector(np.ascontiguousarray(values, dtype=np.int32))
    return data.ljust(_least_vector_bytes(len(values)), b"\0")


def decode_vector(data: bytes | memoryview, size: int) -> np.ndarray:
    """Inverse of encode_vector: (size,) int32."""
    if len(data) < _least_vector_bytes(size):
        raise FormatError(f"vector: {len(data)} bytes cannot hold {size} values")
    out = np.zeros(size, np.int32)
    try:
        _core.decode_vector(np.frombuffer(data, np.uint8), out)
    except ValueError as error:
        raise FormatError(f"vector: {error}") from None
    return out


def _least_vector_bytes(size: int) -> int:
    """Bytes without which a vector of `size` values is not believed; the coder's, with zeros, are more."""
    return max(0, -(-size // DECISIONS_PER_BYTE) - SPARE_BYTES)


def classes(row_std: np.ndarray, col_std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes for expected deviations row_std[i] * col_std[j] of the symbols: (m,) uint8, (n,) uint8."""

    def vector(std: np.ndarray, zero: int) -> np.ndarray:
        steps = np.rint(4 * np.log2(np.maximum(np.asarray(std, np.float64), 2.0**-60)))
        return np.clip(steps + zero, 0, 255).astype(np.uint8)

    return vector(row_std, OFFSET // 2 + ZERO), vector(col_std, OFFSET // 2)


@functools.cache
def prior_tables() -> Tables:
    """Tables before anything was counted: in a bucket lies half a rounded Laplace, half a rounded Gaussian."""
    symbols = np.zeros((2, BUCKETS, CELLS))
    for b in range(BUCKETS):
        spread = float(bucket_std(b))
        reach = np.arange(0, math.ceil(16 * spread) + 8)
        middle = 2 ** (cell_bits(b) - 1) - 1
        h = np.concatenate([-reach[:0:-1], reach]) >> raw_bits(b)
        cell = np.where(np.abs(h) <= middle, h + middle, 2 * middle + 1)
        for z in range(2):
            # Quantizer 1 has its points at 0, ±1/2, ±3/2, ... (in symbols): a narrower zero.
            edge = reach + 0.5 if z == 0 else np.where(reach == 0, 0.25, reach)
            below = _cdf(edge, spread)
            half = np.concatenate([[2 * below[0] - 1], np.diff(below)])
            np.add.at(symbols[z, b], cell, np.concatenate([half[:0:-1], half]))
    counts = np.rint(np.maximum(symbols, 0) * 2**24).astype(np.uint64)
    return Tables.from_counts(Counts(counts, np.zeros((2, BUCKETS), np.uint64)))


def _cdf(x: np.ndarray, std: float) -> np.ndarray:
    """P(X <= x), x >= 0, of the prior's continuous variable."""
    gauss = 1 - 0.5 * np.array([math.erfc(v / (std * math.sqrt(2))) for v in x])
    return 0.5 * gauss + 0.5 * (1 - 0.5 * np.exp(-math.sqrt(2) * x / std))


def _escape_bits(k: np.ndarray) -> np.ndarray:
    """Bits after the escape: length, sign, and the magnitude below its first one."""
    length = np.frexp(np.abs(k).astype(np.float64))[1]
    return 7 + np.maximum(length - 1, 0)


def _operands(lattice: Lattice) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    q, row_class, col_class = map(np.ascontiguousarray, lattice.coded())
    return q, row_class, col_class, lattice.trellis
