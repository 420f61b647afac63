"""Which columns of an N:M pattern are coded: a group's choice is one of C(M, N), at log2 C(M, N) bits.

They go through the coder of integers with a table of their own, equal frequencies, which nobody has to send. Zeros
coded in place would cost the binary entropy of N / M a weight instead: 1 bit, not 0.646, for 2:4.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from sprat import _core
from sprat.coding.entropy import CELLS, PROB_BITS, cell_bits
from sprat.coding.patterns import Pattern, codable, masks
from sprat.coding.tensors import BUCKETS, OFFSET
from sprat.errors import FormatError

#: A bucket with the largest alphabet and no raw bits, and its symbol 0.
_BUCKET, _MIDDLE = 31, 63


def encode(pattern: Pattern, threads: int = 1) -> bytes:
    """The choices, coded."""
    ranks = pattern.ranks()
    return _core.encode(ranks - _MIDDLE, *_classes(ranks.shape), 0, _frequencies(pattern.choices), threads)


def decode(
    data: bytes | memoryview, shape: tuple[int, int], kept: int, group: int, threads: int = 1
) -> Pattern:
    """Inverse of `encode` for an (m, n) mask; FormatError for damage, and for a claim that `check` refuses."""
    check(len(data), shape, kept, group)
    m, n = shape
    choices = math.comb(group, kept)
    ranks = np.zeros((m, n // group), np.int16)
    try:
        _core.decode(
            np.frombuffer(data, np.uint8), *_classes(ranks.shape), 0, _frequencies(choices), ranks, threads
        )
    except ValueError as error:
        raise FormatError(f"pattern of zeros: {error}") from None
    if ranks.min() < -_MIDDLE or ranks.max() >= choices - _MIDDLE:
        raise FormatError(f"pattern of zeros: a choice outside 0..{choices - 1}")
    return Pattern(kept, group, masks(kept, group)[ranks + _MIDDLE].reshape(m, n))


def check(size: int, shape: tuple[int, int], kept: int, group: int) -> None:
    """FormatError for a pattern that is none, or whose choices `size` bytes cannot hold."""
    m, n = shape
    if not codable(kept, group) or n % group:
        raise FormatError(f"pattern of zeros: {kept} of every {group} of {n} columns")
    # No choice takes less than the bits of equal ones, rounded down.
    if 8 * size < m * (n // group) * int(math.log2(math.comb(group, kept))):
        raise FormatError(f"pattern of zeros: {size} bytes cannot hold {m} x {n // group} choices")


def _classes(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.full(shape[0], OFFSET, np.uint8), np.full(shape[1], _BUCKET, np.uint8)


@functools.lru_cache(maxsize=8)
def _frequencies(choices: int) -> np.ndarray:
    """(2, BUCKETS, CELLS) uint16: the choices' as equal as they go, the first ones larger; 1 for the escape."""
    out = np.zeros((2, BUCKETS, CELLS), np.uint16)
    for b in range(BUCKETS):
        out[:, b, 2 ** cell_bits(b) - 1] = 1 << PROB_BITS
    share, rest = divmod((1 << PROB_BITS) - 1, choices)
    out[0, _BUCKET, :choices] = share + (np.arange(choices) < rest)
    out[0, _BUCKET, CELLS - 1] = 1
    return out
