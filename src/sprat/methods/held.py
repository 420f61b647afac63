"""What a recipe holds the integers of a lattice to, while they are trained (methods/deep.py).

forced zeros      N:M where the file keeps the pattern: what it leaves out is zero; else every zero stays one, as a
                  file does not say which of them were forced
ternary, binary   |ℓ| ≤ 1, and Q = round(ℓ); of a lattice without zeros Q = ±1, the sign of ℓ
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sprat import sparsity
from sprat.coding.tensors import Lattice
from sprat.recipe import Recipe


@dataclass(frozen=True)
class Held:
    """free: (m, n) bool, where an integer may be other than zero, None for everywhere; few: whether it is at most 1 in
    size; signs: whether none is zero."""

    free: Tensor | None = None
    few: bool = False
    signs: bool = False

    def on(self, device: torch.device) -> Held:
        """The same, for latents that lie there."""
        return self if self.free is None else replace(self, free=self.free.to(device))

    def hold(self, value: Tensor) -> None:
        """value: (m, n) latents, brought back to where they may be."""
        if self.free is not None:
            value.mul_(self.free)
        if self.few:
            value.clamp_(-1, 1)

    def rounded(self, value: Tensor) -> Tensor:
        """(m, n) float32: the integers of latents that are held."""
        return torch.where(value < 0, -1.0, 1.0) if self.signs else value.round()

    def smaller(self, q: Tensor) -> Tensor:
        """(m, n): integers a step nearer to zero, where they may go."""
        return q if self.signs else q - q.sign()


def held(lattice: Lattice, recipe: Recipe) -> Held:
    """What `recipe`, by which `lattice` was rounded, holds its integers to."""
    q, free = torch.from_numpy(lattice.q), None
    if lattice.pattern is not None:
        free = torch.from_numpy(lattice.pattern.mask)
    elif sparsity.parse(recipe.sparsity):
        free = q != 0
    # Of maps that are kept as they were trained, some may be lattices of another kind (methods/kept.py).
    few = recipe.method in ("ternary", "binary") or (recipe.method == "kept" and int(q.abs().max()) <= 1)
    return Held(free, few, few and recipe.method != "ternary" and bool((q != 0).all()))
