"""Bytes of the native engine's run layout as a function of the level, without rounding or packing anything.

The layout stores 256 weights in as many bits each as the largest of them needs (docs/engine.md), and sorting brings
weights together that expect like deviations. So a weight whose integer should deviate by s takes the width that 256
normal integers of deviation s need on average: within 1 % of what is packed without a trellis, 5 % with one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import numpy as np

from sprat.coding.tensors import OFFSET, ZERO
from sprat.level.predict import Spread

#: csrc/engine/layout.hpp: kRows, kPanel, kBuckets, kMaxBlocks.
_ROWS, _PANEL, _BUCKETS, _CHUNK = 16, 16, 16, 192
_ENTRY = _ROWS * _PANEL
_WIDEST = 16
#: log2 of the deviations in the table.
_OCTAVES = np.arange(-8, 20, 0.125)


def predicted_layout(spreads: list[Spread], level: float, trellis: bool) -> float:
    """Bytes of all maps' entries at `level`, their tags included."""
    total = 0.0
    for spread in spreads:
        octaves = (np.arange(spread.histogram.size) - OFFSET - ZERO) / 4 - math.log2(level / spread.level)
        # A trellis stores its integers on a lattice of half the step.
        nbytes = np.interp(octaves + trellis, _OCTAVES, _entry_bytes()) / _ENTRY
        total += float((spread.histogram * nbytes).sum())
    return total


def fixed_layout(shapes: Iterable[tuple[int, int]], threads: int) -> int:
    """Bytes that no level changes, of maps (rows, columns): scales, order, and how many entries there are."""
    total = 0
    for rows, columns in shapes:
        blocks, panels = -(-rows // _ROWS), -(-columns // _PANEL)
        parts = min(threads, blocks)
        chunks = min(-(-max(-(-blocks // _CHUNK), parts) // parts) * parts, blocks)
        total += 6 * rows + 8 * panels * _PANEL + chunks * panels * _BUCKETS
    return total


@functools.cache
def _entry_bytes() -> np.ndarray:
    """(len(_OCTAVES),) bytes of an entry: its bits, and a tag for each of the two planes that it may have."""
    deviations = np.exp2(_OCTAVES)
    fits = [_share(0.5 / deviations)]  # of width 0, 1, ... with an entry's every weight
    fits += [_share((2.0 ** (width - 1) - 0.5) / deviations) for width in range(1, _WIDEST)]
    width = _WIDEST - sum(share**_ENTRY for share in fits)  # the mean of a count of what does not fit
    tags = 2 - fits[0] ** _ENTRY - fits[8] ** _ENTRY
    return width * _ENTRY / 8 + tags


def _share(z: np.ndarray) -> np.ndarray:
    """P(|x| < z) of a standard normal x."""
    return np.array([math.erf(value / math.sqrt(2)) for value in z])
