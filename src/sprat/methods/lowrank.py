"""Low rank: W ≈ left · right, alone or with a lattice that holds the rest.

Alone, the product nearest in the metric is the truncated SVD of G^½ W U⁻¹, H⁻¹ = Uᵀ U. Beside a lattice, which pays
half the logarithm of an element's variance in steps, it is the subspace of largest energy in W measured in its steps,
N = W ⊘ Δ (waterlevel's Δ), that saves most. Either way gives right (r, n); that being rounded, left is what fits W
best in the metric of its inputs, the least squares
    left = W H rightᵀ (right H rightᵀ)⁻¹.
Each is rounded by the water level in the metric that it has inside the map: left sees the inputs right · x, whose
second moments are right H rightᵀ; an error of right passes through left, so its row k weighs Σ_i g_i left_ik². Errors
of both are in W - left · right, which the lattice behind them holds, if there is one.
Sources: Eckart and Young (Psychometrika 1, 1936); in the inputs' metric SVD-LLM (arXiv 2403.07378); beside a quantized
matrix LQER (2402.02446) and Low-Rank Plus Quantized (LQ-LoRA, 2311.12023).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from sprat.coding import entropy
from sprat.coding.tensors import Lattice, LowRank
from sprat.errors import RecipeError
from sprat.methods.metric import Metric
from sprat.methods.waterlevel import round_to_level, step_sizes
from sprat.recipe import Recipe

#: Share of a product's loss that its rounding adds.
FINE = 0.05


def product(
    w: Tensor, metric: Metric, level: float, recipe: Recipe, tables: entropy.Tables, threads: int = 2
) -> LowRank:
    """w: (m, n) as a product of rank `recipe.rank` and nothing beside it; arguments as `round_to_level` takes them.

    What it costs is what the rank leaves out, and no level changes that: `level` is not looked at. The factors are
    rounded so finely that they add FINE of it, every stored number c²/24.
    """
    h, g, u = metric.h, metric.g, metric.inputs
    inside = torch.linalg.solve_triangular(u, w, upper=True, left=False)
    right = _right(g.sqrt()[:, None] * inside, recipe, metric.name) @ u
    left, _ = _least_squares(w, h, right)
    error = left @ right - w
    loss = float((((error @ h) * error).sum(1) * g).sum()) / 2
    stored = left.numel() + right.numel()
    level = math.sqrt(24 * FINE * max(loss, 1e-12) / stored)
    return LowRank(*_rounded(w, metric, right, level, recipe, tables, threads))


def beside_lattice(
    w: Tensor, metric: Metric, level: float, recipe: Recipe, tables: entropy.Tables, threads: int = 2
) -> LowRank:
    """w: (m, n) as a product of rank `recipe.rank` and a lattice of what it leaves."""
    row, column = (side.float() for side in step_sizes(metric.inputs.diagonal(), metric.g, recipe))
    right = _right(w / row[:, None] / column, recipe, metric.name) * column
    left, right = _rounded(w, metric, right, level, recipe, tables, threads)
    rest = w - torch.from_numpy(LowRank(left, right).dense())
    return LowRank(left, right, round_to_level(rest, metric, level, recipe, tables, threads))


def _right(x: Tensor, recipe: Recipe, name: str) -> Tensor:
    """(r, n): the right half of the product of rank `recipe.rank` that is nearest to x: (m, n)."""
    rank = recipe.rank
    if not 1 <= rank <= min(x.shape):
        raise RecipeError(
            f"recipe: rank = {rank} does not suit {name} of {tuple(x.shape)}: 1 to {min(x.shape)} are possible"
        )
    _, s, right = torch.linalg.svd(x, full_matrices=False)
    return s[:rank].sqrt()[:, None] * right[:rank]


def _least_squares(w: Tensor, h: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """left: (m, r), and the second moments (r, r) of its inputs."""
    inner = right @ h @ right.T
    # A direction that rounding left without weight has no inputs: a millionth of the mean keeps the solve sound.
    inner.diagonal().add_(1e-6 * float(inner.diagonal().mean()) + 1e-30)
    return torch.linalg.solve(inner, right @ h @ w.T).T, inner


def _rounded(
    w: Tensor,
    metric: Metric,
    right: Tensor,
    level: float,
    recipe: Recipe,
    tables: entropy.Tables,
    threads: int,
) -> tuple[Lattice, Lattice]:
    """Both factors at `level`: right in the metric that left gives it, then left refitted to what right became."""
    left, _ = _least_squares(w, metric.h, right)
    weight = (left.square() * metric.g[:, None]).sum(0)
    through = replace(metric, g=weight, fisher=None, u=metric.inputs, known=None)
    coded = round_to_level(right, through, level, recipe, tables, threads)
    left, inner = _least_squares(w, metric.h, torch.from_numpy(coded.dense()))
    return round_to_level(left, replace(metric, h=inner, u=None), level, recipe, tables, threads), coded
