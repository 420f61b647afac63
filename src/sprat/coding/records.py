"""Sections of a `.sprat`: one lattice, or all dense tensors together, to bytes and back (docs/format.md)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sprat.coding import choices, entropy
from sprat.coding.tensors import DENSE_TYPES, TRELLISES, Dense, Lattice, LogScale, pack_floats, unpack_floats
from sprat.errors import FormatError

#: zlib expands a byte to at most this many.
ZLIB_RATIO = 1032


def pack_varint(value: int) -> bytes:
    """LEB128: seven bits a byte, low first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def unpack_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """(value, position after it); values below 2 ** 63 in their shortest form."""
    value = 0
    for shift in range(0, 63, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if byte == 0 and shift:
                break
            return value, at
    raise FormatError("a length is cut off or longer than 63 bits")


def pack_lattice(lattice: Lattice, tables: entropy.Tables, threads: int = 1) -> bytes:
    """A lattice's section."""
    m, n = lattice.shape
    wide = bool(lattice.q.dtype == np.int32 and np.abs(lattice.q.astype(np.int64)).max() > 32767)
    vectors = [
        entropy.encode_vector(v)
        for v in (lattice.row.index, lattice.col.index, lattice.row_class, lattice.col_class)
    ]
    head = bytearray()
    for value in (m, n, int(m * n - np.count_nonzero(lattice.q)), *(len(v) for v in vectors)):
        head += pack_varint(value)
    pattern = lattice.pattern
    flags = TRELLISES.index(lattice.trellis) | wide << 2 | (pattern is not None) << 3
    head += bytes([flags, lattice.row.resolution - 1, lattice.col.resolution - 1])
    if pattern is not None:
        chosen = choices.encode(pattern, threads)
        head += bytes([pattern.kept, pattern.group]) + pack_varint(len(chosen))
        vectors.append(chosen)
    return b"".join([head, *vectors, entropy.encode(lattice, tables, threads)])


@dataclass(frozen=True)
class LatticeHead:
    """What a lattice's section says before its vectors: shape, zeros, layout."""

    shape: tuple[int, int]
    zeros: int
    vectors: tuple[int, int, int, int]
    trellis: int
    dtype: type
    resolutions: tuple[int, int]
    body: int
    pattern: tuple[int, int, int] = (0, 0, 0)
    """N, M and the bytes of the choices; zeros where all integers are coded."""


def unpack_head(data: bytes | memoryview) -> LatticeHead:
    """Parse and bound-check the head of a lattice's section."""
    values, at = [], 0
    for _ in range(7):
        value, at = unpack_varint(data, at)
        values.append(value)
    if at + 3 > len(data):
        raise FormatError("the head is cut off")
    m, n, zeros, *lengths = values
    flags, row_resolution, col_resolution = data[at], data[at + 1] + 1, data[at + 2] + 1
    body = at + 3
    if m < 1 or n < 1 or max(m, n) >= 2**31 or zeros > m * n:
        raise FormatError(f"impossible shape {m} x {n} with {zeros} zeros")
    if flags & 3 == 3 or flags > 15:
        raise FormatError(f"unknown flags {flags}")
    pattern, coded = (0, 0, 0), n
    if flags & 8:
        if body + 2 > len(data):
            raise FormatError("the head is cut off")
        kept, group = data[body], data[body + 1]
        size, body = unpack_varint(data, body + 2)
        choices.check(size, (m, n), kept, group)
        pattern, coded = (kept, group, size), n // group * kept
    rest = len(data) - body - sum(lengths) - pattern[2]
    if rest < 0:
        raise FormatError("its vectors are longer than the section")
    entropy.check_claim(rest, m, coded)
    row_bytes, col_bytes, row_class, col_class = lengths
    return LatticeHead(
        (m, n),
        zeros,
        (row_bytes, col_bytes, row_class, col_class),
        TRELLISES[flags & 3],
        np.int32 if flags & 4 else np.int16,
        (row_resolution, col_resolution),
        body,
        pattern,
    )


def unpack_lattice(data: bytes | memoryview, tables: entropy.Tables, threads: int = 1) -> Lattice:
    """Inverse of pack_lattice; FormatError for anything that it cannot have written."""
    head = unpack_head(data)
    view = memoryview(data)
    m, n = head.shape
    at, vectors = head.body, []
    for length, size in zip(head.vectors, (m, n, m, n), strict=True):
        vectors.append(entropy.decode_vector(view[at : at + length], size))
        at += length
    row, col, *class_vectors = vectors
    for vector in class_vectors:
        if vector.min() < 0 or vector.max() > 255:
            raise FormatError("a class outside 0..255")
    row_class, col_class = (vector.astype(np.uint8) for vector in class_vectors)
    kept, group, length = head.pattern
    pattern, coded, classes = None, head.shape, col_class
    if group:
        pattern = choices.decode(view[at : at + length], head.shape, kept, group, threads)
        coded, classes = (m, n // group * kept), pattern.classes(col_class)
    q = entropy.decode(
        view[at + length :], coded, head.dtype, row_class, classes, head.trellis, tables, threads
    )
    if pattern is not None:
        q = pattern.expand(q)
    if m * n - np.count_nonzero(q) != head.zeros:
        raise FormatError("the number of zeros is not what its head says")
    try:
        scales = LogScale(row, head.resolutions[0]), LogScale(col, head.resolutions[1])
        return Lattice(q, *scales, row_class, col_class, head.trellis, pattern)
    except ValueError as error:
        raise FormatError(str(error)) from None


def pack_dense(tensors: Sequence[Dense]) -> bytes:
    """All dense tensors, deflated: high bytes of the two-byte values, their low bytes, then f32 values."""
    high, low, full = bytearray(), bytearray(), bytearray()
    for tensor in tensors:
        data = pack_floats(tensor.array, tensor.dtype)
        if tensor.dtype == "f32":
            full += data
        else:
            low += data[0::2]
            high += data[1::2]
    return zlib.compress(bytes(high + low + full), 9)


def unpack_dense(data: bytes | memoryview, layout: Sequence[tuple[str, tuple[int, ...]]]) -> list[Dense]:
    """Inverse of pack_dense; layout: (dtype, shape) of each tensor."""
    sizes = [_elements(shape) for _, shape in layout]
    short = sum(size for size, (dtype, _) in zip(sizes, layout, strict=True) if dtype != "f32")
    full = sum(size for size, (dtype, _) in zip(sizes, layout, strict=True) if dtype == "f32")
    plain = inflate(data, 2 * short + 4 * full)
    halves = np.frombuffer(plain, np.uint8, 2 * short).reshape(2, short)[::-1].T.tobytes()
    out, at, at_full = [], 0, 2 * short
    for size, (dtype, shape) in zip(sizes, layout, strict=True):
        if dtype == "f32":
            array = unpack_floats(plain[at_full : at_full + 4 * size], dtype, shape)
            at_full += 4 * size
        else:
            array = unpack_floats(halves[at : at + 2 * size], dtype, shape)
            at += 2 * size
        out.append(Dense(array, dtype))
    return out


def check_layout(dtype: object, shape: object) -> tuple[str, tuple[int, ...]]:
    """A dense tensor's (dtype, shape) as a header states them."""
    if dtype not in DENSE_TYPES:
        raise FormatError(f"unknown dense type {dtype!r}, not one of {DENSE_TYPES}")
    if (
        not isinstance(shape, list)
        or len(shape) > 8
        or not all(type(s) is int and 0 <= s < 2**31 for s in shape)
    ):
        raise FormatError(f"impossible dense shape {shape!r}")
    # numpy counts the other axes of an empty array too.
    if _elements(tuple(axis or 1 for axis in shape)) >= 2**60:
        raise FormatError(f"impossible dense shape {shape!r}")
    return str(dtype), tuple(shape)


def inflate(data: bytes | memoryview, size: int) -> bytes:
    """Exactly `size` bytes from a zlib stream; the claim is bounded before anything is allocated."""
    if size > ZLIB_RATIO * len(data):
        raise FormatError(f"{len(data)} deflated bytes cannot hold {size}")
    out = inflate_at_most(data, size)
    if len(out) != size:
        raise FormatError(f"inflates to {len(out)} bytes, not {size}")
    return out


def inflate_at_most(data: bytes | memoryview, limit: int) -> bytes:
    """A whole zlib stream of at most `limit` bytes, with nothing after it."""
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise FormatError(f"damaged deflate stream ({error})") from None
    if len(out) > limit:
        raise FormatError(f"inflates to more than {limit} bytes")
    if not stream.eof or stream.unused_data:
        raise FormatError("deflate stream cut off or followed by other bytes")
    return out


def _elements(shape: tuple[int, ...]) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size
