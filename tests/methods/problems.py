"""Small rounding problems."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprat.recipe import Recipe


def correlated(
    m: int, n: int, seed: int = 0, spread: float = 1.0, rho: float = 0.8
) -> tuple[Tensor, Tensor, Tensor]:
    """w: (m, n) white, h: (n, n) of an autoregressive input with a scale a channel, g: (m,)."""
    rng = np.random.default_rng(seed)
    scale = np.exp(spread * rng.normal(size=n) / 2)
    h = rho ** np.abs(np.subtract.outer(np.arange(n), np.arange(n))) * np.outer(scale, scale)
    w, g = rng.normal(size=(m, n)), np.exp(spread * rng.normal(size=m))
    return torch.tensor(w).float(), torch.tensor(h).float(), torch.tensor(g).float()


def distortion(w: Tensor, dense: np.ndarray, h: Tensor, g: Tensor) -> float:
    """tr(G ΔW H ΔWᵀ) in float64."""
    error = (torch.from_numpy(dense) - w).double()
    return float((((error @ h.double()) * error).sum(1) * g.double()).sum())


def water_filling(powers: np.ndarray, distortion: float) -> float:
    """Bits that Gaussian components of these variances need for a total distortion (C & T 10.3)."""
    low, high = 0.0, float(powers.max())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(powers, middle).sum() < distortion else (low, middle)
    return float(0.5 * np.log2(np.maximum(powers / high, 1)).sum())


def recipe_of(name: str, rank: int, **settings: Any) -> Recipe:
    """A recipe for the method `name`; rank: where that stores a product."""
    return Recipe(method=name, rank=rank if "lowrank" in name else 0, **settings)
