"""Maps that were trained as integers, kept as they are: every row holds -s and s, or -s, 0 and s, for an s of its own.

W = diag(s) Q exactly, but for the grid of the scales. No statistics and no level play a part; embedding and head are
rounded to the water level as ever. What trains such maps: golf/blocks/bitlinear.py, BitNet b1.58 (arXiv 2402.17764).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from sprat.coding import entropy
from sprat.coding.tensors import OFFSET, Lattice, LogScale
from sprat.errors import SpratError
from sprat.methods.waterlevel import round_to_level
from sprat.recipe import Recipe

#: By how much the magnitudes of a row may differ: half a step of bfloat16, twice.
_TOLERANCE = 2.0**-7
#: A map of at most so many rows that is not of that kind (gates of a memory, a router) is rounded finely instead.
FEW = 64
#: The level of those: hardly a bit is saved by more.
_FINE = 1e-4


def keep(
    w: Tensor,
    h: Tensor,
    g: Tensor,
    level: float,
    recipe: Recipe,
    tables: entropy.Tables,
    name: str = "map",
    threads: int = 2,
    u: Tensor | None = None,
) -> Lattice:
    """w: (m, n). SpratError where a row holds more than one magnitude."""
    magnitude = w.detach().float().abs().numpy()
    scale = magnitude.max(1)
    q = np.sign(w.detach().float().numpy()).astype(np.int16)
    off = np.abs(np.where(q != 0, magnitude, scale[:, None]) - scale[:, None])
    if (off > _TOLERANCE * scale[:, None]).any():
        if len(w) <= FEW:
            return round_to_level(w, h, g, _FINE, recipe, tables, name, threads, u)
        row = int((off.max(1) > _TOLERANCE * scale).argmax())
        raise SpratError(
            f'{name}: row {row} holds more than one magnitude: the method "kept" is for maps trained as ternary or '
            'binary; "ternary" and "binary" make such maps of others'
        )
    # Rows with like shares of zeros are coded together, as in methods/ternary.py.
    share = np.abs(q).mean(1)
    row_class = (OFFSET // 2 + np.minimum(np.floor(share * 16), 15)).astype(np.uint8)
    n = w.shape[1]
    return Lattice(
        q,
        LogScale.nearest(np.maximum(scale, 1e-15), recipe.scale_resolution),
        LogScale(np.zeros(n, np.int32), recipe.scale_resolution),
        row_class,
        np.full(n, OFFSET // 2, np.uint8),
    )
