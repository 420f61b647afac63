"""Rate and distortion of a recipe's own rounding, measured on white data of every deviation that the coder knows.

A formula for both exists where steps are fine (h(s) bits, 1/12 of a squared step); where most weights become zero,
along a trellis that weighs bits, it does not. So samples of each bucket's distribution are rounded, once a recipe and
process.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from sprat import sparsity
from sprat.coding import entropy
from sprat.coding.tensors import BUCKETS, lattices
from sprat.methods import METHODS, SETTLED
from sprat.methods.metric import Metric
from sprat.recipe import Recipe

#: Samples of a bucket: rows of a map, and its columns, at most.
_ROWS, _COLUMNS = 32, 256


@dataclass(frozen=True, eq=False)
class Curve:
    """By bucket, (BUCKETS,) each: bits a weight, and squared error in squared steps."""

    bits: np.ndarray
    distortion: np.ndarray


@functools.lru_cache(maxsize=8)
def curve(recipe: Recipe) -> Curve:
    """The curve of `recipe`, from one map whose rows have the deviation of every bucket in turn."""
    if recipe.method in SETTLED:  # what a level changes is the embedding
        return curve(recipe.unconstrained())
    if recipe.rank:  # what lies beside a product is a lattice like any other
        return curve(replace(recipe, method="waterlevel", rank=0))
    std = np.repeat(np.asarray(entropy.bucket_std(np.arange(BUCKETS))), _ROWS)
    columns = _COLUMNS - _COLUMNS % max(sparsity.parse(recipe.sparsity).group, 1)  # whole groups of a pattern
    w = torch.from_numpy(np.tile(_draws()[:, :columns], (BUCKETS, 1)) * std[:, None]).float()
    white, even = torch.eye(columns), torch.ones(len(w))
    # A share of zeros is a map's: rows of one deviation must not take those of another's.
    maps = w.chunk(BUCKETS if recipe.sparsity else 1)
    found = [
        METHODS[recipe.method](
            part, Metric(white, even[: len(part)], None, white), 1.0, recipe, entropy.prior_tables(), 1
        )
        for part in maps
    ]
    counts = entropy.count([lattice for stored in found for lattice in lattices(stored)])
    bits = counts.entropies() / np.maximum(counts.symbols.sum((0, 2)), 1)
    if (pattern := lattices(found[0])[0].pattern) is not None:
        bits = (bits * pattern.kept + math.log2(pattern.choices)) / pattern.group
    dense = np.concatenate([stored.dense() for stored in found])
    error = (torch.from_numpy(dense) - w).square().reshape(BUCKETS, -1).mean(1).double().numpy()
    return Curve(np.maximum.accumulate(bits), np.maximum.accumulate(error))


def _draws() -> np.ndarray:
    """(rows, columns) of unit deviation, half Gaussian and half Laplace: quantiles, to leave little to chance."""
    half = _ROWS * _COLUMNS // 2
    p = (torch.arange(half, dtype=torch.float64) + 0.5) / half
    gauss = torch.special.ndtri(p).numpy()
    laplace = np.sign(p.numpy() - 0.5) * -np.log(1 - np.abs(2 * p.numpy() - 1))
    both = np.concatenate([gauss / gauss.std(), laplace / laplace.std()])
    return np.random.default_rng(0).permutation(both).reshape(_ROWS, _COLUMNS)
