"""Ternary and binary maps: W ≈ diag(r) Q diag(k), Q in {-1, 0, 1} or {-1, 1}, chosen in the second-order metric.

What is minimised is tr(G ΔW H ΔWᵀ), by turns:
    Q  given r and k, by the loop of methods/columns.py: columns in order, errors fed forward;
    r  given Q and k, a row at a time:   r_i = (a_i H w_iᵀ) / (a_i H a_iᵀ),   a_i = q_i ⊙ k;
    k  given Q and r, for all rows at once:   [(Qᵀ diag(g r²) Q) ⊙ H] k = Σ_i g_i r_i q_i ⊙ (w_i H).
Both scales are least squares in closed form. Q's rounding is no minimum, so the row scale that is best afterwards is
not the one to round with: each turn tries a few around it, and every row keeps what is best for it. The level plays no
part.

Sources: least squares of scales and signs, XNOR-Net (arXiv 1603.05279) section 3.1 and Ternary Weight Networks
(1605.04711); two-sided scales, OneBit (2402.11295); alternating refits, ARB-LLM (2410.03129); error feedback with few
levels, BiLLM (2402.04291); {-1, 0, 1} as "1.58 bits", BitNet b1.58 (2402.17764).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sprat import sparsity
from sprat.coding import entropy
from sprat.coding.patterns import Pattern, codable
from sprat.coding.tensors import OFFSET, Lattice, LogScale
from sprat.methods.columns import Grid, Zeros, refuse_nan, round_columns
from sprat.methods.metric import Metric, floored
from sprat.recipe import Recipe

#: Row scales that are tried in each turn, by the scale that the last one found.
TURNS = ((0.8, 1.05, 1.4), (0.9, 1.1), (0.95, 1.0))
#: Column scales are at least this share of their median: least squares may ask for none, or a negative one.
LEAST_COLUMN = 0.05


@dataclass(frozen=True)
class _Problem:
    """One map in its metric. w: (m, n), h: (n, n), u: its factor, g: (m,), wh = w h, energy: (m,) of w h wᵀ."""

    w: Tensor
    h: Tensor
    u: Tensor
    g: Tensor
    wh: Tensor
    energy: Tensor


@dataclass(frozen=True)
class _Found:
    """q: (m, n), where it is coded: (m, n), r: (m,), and the loss of each row: (m,), w h wᵀ for a row of zeros."""

    q: Tensor
    coded: Tensor
    r: Tensor
    loss: Tensor


def round_ternary(
    w: Tensor, metric: Metric, level: float, recipe: Recipe, tables: entropy.Tables, threads: int = 2
) -> Lattice:
    """Q in {-1, 0, 1} for w: (m, n); level and tables play no part."""
    return _round(w, metric, recipe, threads, zero=True)


def round_binary(
    w: Tensor, metric: Metric, level: float, recipe: Recipe, tables: entropy.Tables, threads: int = 2
) -> Lattice:
    """Q in {-1, 1}, otherwise as `round_ternary`."""
    return _round(w, metric, recipe, threads, zero=False)


def _round(w: Tensor, metric: Metric, recipe: Recipe, threads: int, zero: bool) -> Lattice:
    refuse_nan(w, metric)
    w, h, g = w.detach().float(), metric.h, floored(metric.g.float(), recipe.row_floor)
    wh = w @ h
    problem = _Problem(w, h, metric.inputs, g, wh, (wh * w).sum(1).clamp_min(0))
    row = w.square().mean(1).sqrt().clamp_min(1e-12)
    k = (w / row[:, None]).square().mean(0).sqrt().clamp_min(1e-6)
    r = row * (1.0 if zero else 0.8)
    best: tuple[float, _Found, Tensor] | None = None
    found: _Found | None = None
    for factors in TURNS:
        k = _grid(k, recipe)
        candidates = [] if found is None else [_refit(problem, found.q, found.coded, k)]
        for factor in factors:
            q, coded = _rounded(problem, r * factor, k, recipe, threads, zero)
            candidates.append(_refit(problem, q, coded, k))
        found = _best(candidates)
        r = found.r
        total = float((problem.g.double() * found.loss.double()).sum())
        if best is None or total < best[0]:
            best = total, found, k
        k = _columns(problem, found)
    assert best is not None
    return _lattice(best[1], best[2], recipe)


def _rounded(
    problem: _Problem, r: Tensor, k: Tensor, recipe: Recipe, threads: int, zero: bool
) -> tuple[Tensor, Tensor]:
    """The integers for row scales r: (m,) and column scales k: (n,), and where they are coded."""
    m, n = problem.w.shape
    none = np.zeros((2, 1, 3), np.float32)  # no symbol is dearer than another
    grid = Grid(
        k.numpy(), np.zeros(m, np.float32), np.zeros(m, np.uint8), np.zeros(n, np.uint8), none, 0, 1, zero
    )
    zeros = Zeros(sparsity.parse(recipe.sparsity), problem.g.sqrt() * r)
    q, pattern = round_columns(
        problem.w / r[:, None], problem.u, grid, recipe.block, recipe.feedback, zeros, threads
    )
    coded = torch.ones(m, n, dtype=torch.bool) if pattern is None else torch.from_numpy(pattern.mask)
    return torch.from_numpy(q).float(), coded


def _refit(problem: _Problem, q: Tensor, coded: Tensor, k: Tensor) -> _Found:
    """The row scales that are best for q and k, on which q then stands; a row that they turn round is turned round."""
    a = q * k
    along = (a * problem.wh).sum(1)
    square = (a @ problem.h * a).sum(1).clamp_min(1e-30)
    r = along / square
    signed = q * torch.where(r < 0, -1.0, 1.0)[:, None]
    return _Found(signed, coded, r.abs().clamp_min(1e-15), problem.energy - r * along)


def _best(candidates: list[_Found]) -> _Found:
    """Of each row the candidate with the least loss."""
    chosen = torch.stack([c.loss for c in candidates]).argmin(0)
    out = candidates[0]
    for index, candidate in enumerate(candidates[1:], 1):
        mine = chosen == index
        out = _Found(
            torch.where(mine[:, None], candidate.q, out.q),
            torch.where(mine[:, None], candidate.coded, out.coded),
            torch.where(mine, candidate.r, out.r),
            torch.where(mine, candidate.loss, out.loss),
        )
    return out


def _columns(problem: _Problem, found: _Found) -> Tensor:
    """The column scales that are best for q and r: (n,), positive."""
    weight = (problem.g * found.r).double()
    q = found.q.double()
    normal = q.T @ (q * (weight * found.r.double())[:, None]) * problem.h.double()
    right = (q * problem.wh.double() * weight[:, None]).sum(0)
    diagonal = normal.diagonal()
    diagonal.add_(1e-6 * float(diagonal.mean()) + 1e-30)
    k = torch.linalg.solve(normal, right).float()
    return k.clamp_min(LEAST_COLUMN * float(k.abs().median()) + 1e-12)


def _grid(scale: Tensor, recipe: Recipe) -> Tensor:
    return torch.from_numpy(LogScale.nearest(scale.numpy(), recipe.scale_resolution).values())


def _lattice(found: _Found, k: Tensor, recipe: Recipe) -> Lattice:
    """Rows with like shares of zeros are coded together, in the contexts of the smallest deviations, which are free."""
    share = found.q.abs().mean(1).numpy()
    row_class = (OFFSET // 2 + np.minimum(np.floor(share * 16), 15)).astype(np.uint8)
    col_class = np.full(found.q.shape[1], OFFSET // 2, np.uint8)
    row = LogScale.nearest(found.r.numpy(), recipe.scale_resolution)
    col = LogScale.nearest(k.numpy(), recipe.scale_resolution)
    zeros = sparsity.parse(recipe.sparsity)
    pattern = None
    if codable(zeros.kept, zeros.group):
        pattern = Pattern(zeros.kept, zeros.group, found.coded.numpy())
    return Lattice(found.q.numpy().astype(np.int16), row, col, row_class, col_class, 0, pattern)
