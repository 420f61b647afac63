"""The water level: the step of every weight from one number c, error feedback, rate-constrained rounding.

For y = W x with H = E[xxᵀ] and row weights g, H⁻¹ = Uᵀ U:
    step of element (i, j):   Δ_ij = c / √g_i · U_jj,     1 / U_jj² the variance of input j given the later inputs,
so that every weight costs the same: ½ g_i Δ_ij² / (12 U_jj²) = c²/24 nats. Columns are rounded in order, each one's
error fed into the columns behind it (GPTQ), and the integer chosen minimises
    (t - Q)² + λ · bits(Q),     λ = rate_weight · ln 2 / 6   (in steps²; the slope of D(R) at high rate),
greedily, or along a trellis (dependent quantization), whose two quantizers have steps 2Δ' on a lattice of step Δ'; with
Δ' = Δ / 2 both cost about the same bits, and the trellis has 0.8 to 1 dB less distortion.
Directions that do not matter get large steps and cost nothing: pruning is what the level does to a weight below it.
Zeros can be forced besides (the recipe's `sparsity`; methods/columns.py says how they are chosen).

Sources: reverse water-filling, Cover & Thomas section 10.3; WaterSIC (arXiv 2603.04956) for the column steps; GPTQ
(2210.17323) section 3; CERWU (2505.18758) for rate-constrained rounding; ISO/IEC 15938-17 for dependent quantization.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sprat import sparsity
from sprat.coding import entropy
from sprat.coding.tensors import Lattice, LogScale
from sprat.methods.columns import Grid, Zeros, refuse_nan, round_columns
from sprat.recipe import Recipe
from sprat.sense.shrink import upper_factor

#: Symbols with a price of their own in the rounding decision; beyond, the price grows slowly.
MAX_SYMBOL = 255


@dataclass(frozen=True)
class Steps:
    """Where a map's lattice lies: Δ_ij = row_i · col_j, and how the symbols will spread."""

    row: LogScale
    col: LogScale
    row_class: np.ndarray
    col_class: np.ndarray
    unit: np.ndarray
    """(m,) float32: the plain step c / √g_i over the row's scale; 1 or 2 but for the grid's rounding."""


def step_sizes(u_diagonal: Tensor, g: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Δ / c of rows (m,) and columns (n,), float64: the step of element (i, j) is c times their product."""
    g = g.double()
    g = g.clamp_min(recipe.row_floor * float(g.mean()) + 1e-30)
    rows, columns = g.rsqrt(), u_diagonal.double()
    if not recipe.row_steps:
        rows = torch.full_like(rows, float(rows.log().mean().exp()))
    if not recipe.column_steps:
        columns = torch.full_like(columns, float(columns.log().mean().exp()))
    return rows, columns


def choose_steps(w: Tensor, u_diagonal: Tensor, g: Tensor, level: float, recipe: Recipe) -> Steps:
    """Scales and classes for w: (m, n) from diag U: (n,) and row weights g: (m,)."""
    rows, columns = step_sizes(u_diagonal, g, recipe)
    symbol = 2 if recipe.trellis else 1  # lattice points a symbol
    row = LogScale.nearest((level / symbol * rows).numpy(), recipe.scale_resolution)
    col = LogScale.nearest(columns.numpy(), recipe.scale_resolution)
    square = (w / torch.from_numpy(col.values())).square()
    row_std = square.mean(1).sqrt().clamp_min(1e-15)  # whose square float32 still holds
    live = (row_std > 1e-15).sum().clamp_min(1)  # rows of zeros say nothing of the columns
    col_std = ((square / row_std.square()[:, None]).sum(0) / live).sqrt()
    row_class, col_class = entropy.classes(row_std.numpy() / row.values() / symbol, col_std.numpy())
    return Steps(row, col, row_class, col_class, (level * rows.numpy() / row.values()).astype(np.float32))


def round_to_level(
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
    """Round w: (m, n) float32 at `level` (√nats) given h: (n, n), positive definite, and g: (m,).

    `tables` price the symbols; `u` is h's upper factor (sense.shrink.upper_factor) where that is known. Raises
    StatisticsError (naming `name`) when h cannot be factored or a number is not finite.
    """
    refuse_nan(name, w, h, g)
    w = w.detach().float()
    n = w.shape[1]
    order = torch.arange(n)
    if recipe.order == "descending":
        order, u = torch.argsort(h.diagonal(), descending=True, stable=True), None
    if u is None:
        u = upper_factor(h[order][:, order], name)
    steps = choose_steps(w[:, order], u.diagonal(), g, level, recipe)
    scale = torch.from_numpy(steps.row.values())
    grid = Grid(
        steps.col.values(),
        (recipe.rate_weight * math.log(2) / 6 * steps.unit**2).astype(np.float32),
        steps.row_class,
        steps.col_class,
        tables.bits(MAX_SYMBOL),
        recipe.trellis,
    )
    zeros = Zeros(sparsity.parse(recipe.sparsity), g.clamp_min(0).sqrt() * scale)
    q, pattern = round_columns(
        w[:, order] / scale[:, None], u, grid, recipe.block, recipe.feedback, zeros, threads
    )
    back = torch.argsort(order).numpy()
    if np.abs(q).max(initial=0) < 2**15:
        q = q.astype(np.int16)
    return Lattice(
        np.ascontiguousarray(q[:, back]),
        steps.row,
        LogScale(np.ascontiguousarray(steps.col.index[back]), steps.col.resolution),
        steps.row_class,
        np.ascontiguousarray(steps.col_class[back]),
        recipe.trellis,
        pattern,
    )
