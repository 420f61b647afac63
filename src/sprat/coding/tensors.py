"""What can be stored: scales on a logarithmic grid, lattices of integers, products of them, small exact tensors.

A method returns these; the entropy coder and the container write them. `dense()` is what every reader must
reproduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sprat.coding.patterns import Pattern

#: Contexts of the entropy coder: in bucket b values of standard deviation 2 ** ((b - ZERO) / 4) were rounded.
BUCKETS = 64
ZERO = 24
#: bucket of element (i, j) = clip(row_class[i] + col_class[j] - OFFSET, 0, BUCKETS - 1).
OFFSET = 128
TRELLISES = (0, 4, 8)
DENSE_TYPES = ("f32", "bf16", "f16")
#: A product stands for at most this many weights a stored one: what a file claims must not fill the memory.
MAX_EXPANSION = 4096
#: Scales lie within 2 ** ±60, so that the product of two stays finite in float32.
MAX_EXPONENT = 60


@dataclass(frozen=True, eq=False)
class LogScale:
    """A vector of positive scales on a logarithmic grid: value = 2 ** (index / resolution).

    index: (n,) int32 within ±60 octaves; resolution: steps an octave, 1..256.
    """

    index: np.ndarray
    resolution: int

    def __post_init__(self) -> None:
        if self.index.ndim != 1 or self.index.dtype != np.int32 or self.index.size == 0:
            raise ValueError(f"LogScale.index must be a non-empty int32 vector, not {_describe(self.index)}")
        if not 1 <= self.resolution <= 256:
            raise ValueError(f"LogScale.resolution must be 1..256 steps an octave, not {self.resolution}")
        reach = int(np.abs(self.index.astype(np.int64)).max())
        if reach > MAX_EXPONENT * self.resolution:
            raise ValueError(f"LogScale.index reaches {reach}: values must lie within 2 ** ±{MAX_EXPONENT}")

    def values(self) -> np.ndarray:
        """(n,) float32."""
        return np.exp2(self.index.astype(np.float64) / self.resolution).astype(np.float32)

    @staticmethod
    def nearest(values: np.ndarray, resolution: int) -> LogScale:
        """The grid point nearest (in octaves) to each of `values`: (n,), positive and finite."""
        values = np.asarray(values, dtype=np.float64)
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError("LogScale.nearest needs positive finite values")
        index = np.rint(np.log2(values) * resolution)
        limit = MAX_EXPONENT * resolution
        return LogScale(np.clip(index, -limit, limit).astype(np.int32), resolution)


@dataclass(frozen=True, eq=False)
class Lattice:
    """W = diag(row) · Q · diag(col), Q integers.

    q: (m, n) int16 or int32; row: (m,) scale; col: (n,) scale;
    row_class: (m,) uint8 and col_class: (n,) uint8: which bucket (expected deviation of the coded symbol) the
    entropy coder uses, see OFFSET; trellis: 0 plain, or 4 or 8 states of dependent quantization along the coded
    integers of a row; pattern: which those are, where they are not all.
    """

    q: np.ndarray
    row: LogScale
    col: LogScale
    row_class: np.ndarray
    col_class: np.ndarray
    trellis: int = 0
    pattern: Pattern | None = None

    def __post_init__(self) -> None:
        if self.q.ndim != 2 or self.q.dtype not in (np.int16, np.int32) or self.q.size == 0:
            raise ValueError(f"Lattice.q must be a non-empty int16 or int32 matrix, not {_describe(self.q)}")
        if self.trellis not in TRELLISES:
            raise ValueError(f"Lattice.trellis must be one of {TRELLISES}, not {self.trellis}")
        m, n = self.q.shape
        for name, vector, size in (
            ("row", self.row.index, m),
            ("col", self.col.index, n),
            ("row_class", self.row_class, m),
            ("col_class", self.col_class, n),
        ):
            if vector.shape != (size,):
                raise ValueError(f"Lattice.{name} has shape {vector.shape}, q {self.q.shape} needs ({size},)")
        for name, classes in (("row_class", self.row_class), ("col_class", self.col_class)):
            if classes.dtype != np.uint8:
                raise ValueError(f"Lattice.{name} must be uint8, not {classes.dtype}")
        if self.pattern is not None and (
            self.pattern.mask.shape != self.q.shape or self.q[~self.pattern.mask].any()
        ):
            raise ValueError("Lattice.pattern leaves out integers that are not zero")

    def coded(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is coded: integers (m, n), or (m, n N / M) of a pattern, and the classes of their rows and columns."""
        if self.pattern is None:
            return self.q, self.row_class, self.col_class
        return self.pattern.compact(self.q), self.row_class, self.pattern.classes(self.col_class)

    @property
    def shape(self) -> tuple[int, int]:
        return self.q.shape[0], self.q.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes when coded with tables made from this lattice alone (an artifact shares its tables)."""
        from sprat.coding import entropy, records

        return len(records.pack_lattice(self, entropy.Tables.from_counts(entropy.count([self]))))

    def dense(self) -> np.ndarray:
        """(m, n) float32: (q * row) * col, rounded in that order."""
        out = self.q.astype(np.float32)
        out *= self.row.values()[:, None]
        out *= self.col.values()
        return out


@dataclass(frozen=True, eq=False)
class Dense:
    """An exact small tensor: float32 values of any shape, stored as "f32", "bf16" or "f16"."""

    array: np.ndarray
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        if self.dtype not in DENSE_TYPES:
            raise ValueError(f"Dense.dtype must be one of {DENSE_TYPES}, not {self.dtype!r}")
        if self.array.dtype != np.float32 or self.array.ndim > 8:
            raise ValueError(f"Dense.array must be float32 of at most 8 axes, not {_describe(self.array)}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def nbytes(self) -> int:
        return self.array.size * (4 if self.dtype == "f32" else 2)

    def dense(self) -> np.ndarray:
        """The array as it reads back: rounded to the stored type."""
        return unpack_floats(pack_floats(self.array, self.dtype), self.dtype, self.array.shape)


@dataclass(frozen=True, eq=False)
class LowRank:
    """W = left · right + rest: a product of two thin lattices, alone or beside a lattice of the full shape.

    left: (m, r); right: (r, n); rest: (m, n) or None.
    """

    left: Lattice
    right: Lattice
    rest: Lattice | None = None

    def __post_init__(self) -> None:
        (m, r), (inner, n) = self.left.shape, self.right.shape
        if r != inner:
            raise ValueError(f"LowRank: left {self.left.shape} does not meet right {self.right.shape}")
        if self.rest is not None and self.rest.shape != (m, n):
            raise ValueError(f"LowRank: rest has shape {self.rest.shape}, the product ({m}, {n})")
        if m * n > MAX_EXPANSION * r * (m + n):
            raise ValueError(f"LowRank: a product of rank {r} stands for too large a matrix, {m} x {n}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def lattices(self) -> tuple[Lattice, ...]:
        """What is coded, in the order of the file."""
        return (self.left, self.right) if self.rest is None else (self.left, self.right, self.rest)

    @property
    def nbytes(self) -> int:
        return sum(lattice.nbytes for lattice in self.lattices)

    def dense(self) -> np.ndarray:
        """(m, n) float32; the product is summed in float64."""
        product = self.left.dense().astype(np.float64) @ self.right.dense().astype(np.float64)
        return (product if self.rest is None else product + self.rest.dense()).astype(np.float32)


Stored = Lattice | LowRank | Dense


def lattices(tensor: Stored) -> tuple[Lattice, ...]:
    """The lattices that a stored tensor is made of."""
    if isinstance(tensor, Lattice):
        return (tensor,)
    return tensor.lattices if isinstance(tensor, LowRank) else ()


@dataclass(frozen=True, eq=False)
class Entry:
    """One stored tensor and the parameters it serves, stacked by rows.

    maps: parameter names; rows: how many rows each takes (a Dense serves one map, its first axis);
    transposed: the module keeps its weight as (in, out).
    """

    maps: tuple[str, ...]
    rows: tuple[int, ...]
    tensor: Stored
    transposed: bool = False

    def __post_init__(self) -> None:
        if not self.maps or len(self.maps) != len(self.rows):
            raise ValueError(
                f"Entry needs one row count a map: {len(self.maps)} maps, {len(self.rows)} counts"
            )
        if min(self.rows) < 1 and not isinstance(self.tensor, Dense):
            raise ValueError(f"Entry.rows must be positive, not {self.rows}")
        if isinstance(self.tensor, Dense):
            if len(self.maps) != 1:
                raise ValueError(f"a Dense tensor serves one map, not {self.maps}")
        elif sum(self.rows) != self.tensor.shape[0]:
            raise ValueError(
                f"Entry.rows {self.rows} do not sum to the {self.tensor.shape[0]} rows of the lattice"
            )


def expand(entries: Mapping[str, Entry]) -> dict[str, np.ndarray]:
    """Every parameter by name, float32, in its module's own layout."""
    out: dict[str, np.ndarray] = {}
    for entry in entries.values():
        whole = entry.tensor.dense()
        if isinstance(entry.tensor, Dense):
            out[entry.maps[0]] = whole
            continue
        start = 0
        for name, rows in zip(entry.maps, entry.rows, strict=True):
            part = whole[start : start + rows]
            out[name] = np.ascontiguousarray(part.T) if entry.transposed else part
            start += rows
    return out


def pack_floats(array: np.ndarray, dtype: str) -> bytes:
    """Little-endian values; bf16 and f16 round to nearest, ties to even."""
    flat = np.ascontiguousarray(array, dtype="<f4").reshape(-1)
    if dtype == "f32":
        return flat.tobytes()
    if dtype == "f16":
        with np.errstate(over="ignore"):
            return flat.astype("<f2").tobytes()
    bits = flat.view("<u4")
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    rounded[nan] = ((bits[nan] >> 16) | 0x40).astype("<u2")
    return rounded.tobytes()


def unpack_floats(data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Inverse of pack_floats: float32 of `shape`."""
    if dtype == "bf16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(data, "<f4" if dtype == "f32" else "<f2").astype(np.float32).reshape(shape)


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"
