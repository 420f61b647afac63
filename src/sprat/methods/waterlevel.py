"""The water level: the step of every weight from one number c, error feedback, rate-constrained rounding.

For y = W x with H = E[xxᵀ], H⁻¹ = Uᵀ U, and G of the outputs, or its diagonal g:
    step of element (i, j):   Δ_ij = c / √g_i · U_jj,     1 / U_jj² the variance of input j given the later inputs,
                                                          g_i the Fisher of output i given the later outputs,
so that every weight costs the same: ½ g_i Δ_ij² / (12 U_jj²) = c²/24 nats. Columns are rounded in order, each one's
error fed into the columns behind it (GPTQ), rows in parts likewise (methods/metric.py); the integer chosen minimises
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
from sprat.methods.metric import Metric, Rows, floored
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
    rows, columns = floored(g.double(), recipe.row_floor).rsqrt(), u_diagonal.double()
    if not recipe.row_steps:
        rows = torch.full_like(rows, float(rows.log().mean().exp()))
    if not recipe.column_steps:
        columns = torch.full_like(columns, float(columns.log().mean().exp()))
    return rows, columns


def fed_rows(metric: Metric, recipe: Recipe) -> Rows:
    """How rows are fed into each other: not without feedback, nor where zeros are forced, which is done for all rows at
    once."""
    if recipe.feedback and recipe.row_feedback and not recipe.sparsity:
        return metric.outputs
    return Metric(metric.h, metric.g).outputs


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
    w: Tensor, metric: Metric, level: float, recipe: Recipe, tables: entropy.Tables, threads: int = 2
) -> Lattice:
    """Round w: (m, n) float32 at `level` (√nats); `tables` price the symbols.

    Raises StatisticsError (naming the map) when the metric cannot be factored or a number is not finite.
    """
    refuse_nan(w, metric)
    w = w.detach().float()
    order, u = torch.arange(w.shape[1]), None
    if recipe.order == "descending":
        order = torch.argsort(metric.h.diagonal(), descending=True, stable=True)
        u = upper_factor(metric.h[order][:, order], metric.name)
    u = metric.inputs if u is None else u
    w, rows = w[:, order], fed_rows(metric, recipe)
    steps = choose_steps(w, u.diagonal(), rows.g, level, recipe)
    scale, column = torch.from_numpy(steps.row.values()), torch.from_numpy(steps.col.values())
    price = (recipe.rate_weight * math.log(2) / 6 * steps.unit**2).astype(np.float32)
    bits, zeros = tables.bits(MAX_SYMBOL), sparsity.parse(recipe.sparsity)
    q, pattern = np.empty(w.shape, np.int32), None

    def one(part: Tensor, target: Tensor) -> Tensor:
        nonlocal pattern
        i = part.numpy()
        grid = Grid(steps.col.values(), price[i], steps.row_class[i], steps.col_class, bits, recipe.trellis)
        forced = Zeros(zeros, rows.g[part].clamp_min(0).sqrt() * scale[part])
        own = scale[part][:, None]
        q[i], pattern = round_columns(target / own, u, grid, recipe.block, recipe.feedback, forced, threads)
        return torch.from_numpy(q[i]).float() * own * column

    rows.round(w, one)
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
