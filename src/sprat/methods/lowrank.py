"""Low rank: W ≈ left · right, alone or with a lattice that holds the rest, every part at the same water level.

What a lattice pays for an element is half the logarithm of its variance in steps, so the subspace that saves most is
the one of largest energy in W measured in its steps, N = W ⊘ Δ (waterlevel's Δ):
    N = U S Vᵀ,     right = (S_r)^½ Vᵀ_r, scaled back by the columns' steps,
and, right being rounded, left is what fits W best in the metric of its inputs, the least squares
    left = W H rightᵀ (right H rightᵀ)⁻¹.
Each is rounded by the water level in the metric that it has inside the map: left sees the inputs right · x, whose
second moments are right H rightᵀ; an error of right passes through left, so its row k weighs Σ_i g_i left_ik². Errors
of both are in W - left · right, which the lattice behind them holds, if there is one.
Sources: truncated SVD, Eckart and Young (Psychometrika 1, 1936); in the inputs' metric SVD-LLM (arXiv 2403.07378);
beside a quantized matrix LQER (2402.02446) and Low-Rank Plus Quantized (LQ-LoRA, 2311.12023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sprat.coding import entropy
from sprat.coding.tensors import Lattice, LowRank
from sprat.errors import RecipeError
from sprat.methods.waterlevel import round_to_level, step_sizes
from sprat.recipe import Recipe
from sprat.sense.shrink import upper_factor


def product(
    w: Tensor,
    h: Tensor,
    g: Tensor,
    level: float,
    recipe: Recipe,
    tables: entropy.Tables,
    name: str = "map",
    threads: int = 2,
    u: Tensor | None = None,
) -> LowRank:
    """w: (m, n) as a product of rank `recipe.rank` and nothing beside it; arguments as `round_to_level` takes them."""
    left, right = _factors(w, h, g, level, recipe, tables, name, threads, u)
    return LowRank(left, right)


def beside_lattice(
    w: Tensor,
    h: Tensor,
    g: Tensor,
    level: float,
    recipe: Recipe,
    tables: entropy.Tables,
    name: str = "map",
    threads: int = 2,
    u: Tensor | None = None,
) -> LowRank:
    """w: (m, n) as a product of rank `recipe.rank` and a lattice of what it leaves."""
    if u is None:
        u = upper_factor(h, name)
    left, right = _factors(w, h, g, level, recipe, tables, name, threads, u)
    rest = w - torch.from_numpy(LowRank(left, right).dense())
    return LowRank(left, right, round_to_level(rest, h, g, level, recipe, tables, name, threads, u))


def _factors(
    w: Tensor,
    h: Tensor,
    g: Tensor,
    level: float,
    recipe: Recipe,
    tables: entropy.Tables,
    name: str,
    threads: int,
    u: Tensor | None,
) -> tuple[Lattice, Lattice]:
    rank = recipe.rank
    if not 1 <= rank <= min(w.shape):
        raise RecipeError(
            f"recipe: rank = {rank} does not suit {name} of {tuple(w.shape)}: 1 to {min(w.shape)} are possible"
        )
    if u is None:
        u = upper_factor(h, name)
    w, h = w.float(), h.float()
    row, column = step_sizes(u.diagonal(), g, recipe)
    normal = w / row.float()[:, None] / column.float()
    left, s, right = torch.linalg.svd(normal, full_matrices=False)
    root = s[:rank].sqrt()
    left = left[:, :rank] * root * row.float()[:, None]
    right = root[:, None] * right[:rank] * column.float()
    weight = (left.square() * g[:, None]).sum(0)
    coded = round_to_level(right, h, weight, level, recipe, tables, name, threads, u)
    right = torch.from_numpy(coded.dense())
    inner = right @ h @ right.T
    # A direction that rounding left without weight has no inputs: a millionth of the mean keeps the solve sound.
    inner.diagonal().add_(1e-6 * float(inner.diagonal().mean()) + 1e-30)
    left = torch.linalg.solve(inner, right @ h @ w.T).T
    return round_to_level(left, inner, g, level, recipe, tables, name, threads), coded
