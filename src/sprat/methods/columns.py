"""The second-order loop: columns rounded in order, each one's error fed into those behind it, under constraints.

With H⁻¹ = Uᵀ U the error of column j goes on as (w_j - Q_j step_j) / U_jj · U_j,k>j (GPTQ). Zeros are chosen on the
way, with all feedback so far:
    share     the weights of least saliency g_i w_ij² / U_jj², a block of columns at a time (SparseGPT); how many of a
              block, the saliencies before any rounding say for the whole map, so that the share is the map's;
    pattern   N of every M inputs of a row: of all sets S of M - N columns the one whose removal costs least,
              w_S (A_SS)⁻¹ w_Sᵀ, A = U_ggᵀ U_gg, once all columns that are left make up for it (optimal brain surgeon);
              of more sets than are codable, those of the least diagonal saliency.
The columns that make up for a removal are those not yet rounded, in the group and behind it.

Sources: GPTQ (arXiv 2210.17323) section 3; SparseGPT (2301.00774) sections 3.2 and 3.3; Hassibi and Stork, "Optimal
brain surgeon" (NIPS 1992) for the price of a set.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sprat import _core
from sprat.coding.patterns import Pattern, codable
from sprat.coding.tensors import OFFSET
from sprat.errors import StatisticsError
from sprat.methods.metric import Metric
from sprat.sparsity import Sparsity


@dataclass(frozen=True)
class Grid:
    """Where the integers lie and what they cost. step: (n,) float32, in the weights' units; price: (m,) of a bit;

    row_class: (m,), col_class: (n,) and bits: (2, BUCKETS, symbols), the coder's; limit: the most that |Q| may be, 0
    for any; zero: whether Q may be 0.
    """

    step: np.ndarray
    price: np.ndarray
    row_class: np.ndarray
    col_class: np.ndarray
    bits: np.ndarray
    trellis: int = 0
    limit: int = 0
    zero: bool = True


@dataclass(frozen=True)
class Zeros:
    """Which zeros are forced. weight: (m,), √g of the row in the weights' units."""

    sparsity: Sparsity = field(default_factory=Sparsity)
    weight: Tensor = field(default_factory=lambda: torch.ones(1))


NO_ZEROS = Zeros()


def refuse_nan(w: Tensor, metric: Metric) -> None:
    """StatisticsError naming the map where a number is not finite."""
    for what, values in (("weights", w), ("second moments", metric.h), ("row weights", metric.g)):
        if not bool(torch.isfinite(values).all()):
            raise StatisticsError(f"{metric.name}: its {what} hold NaN or infinite values")


def round_columns(
    w: Tensor,
    u: Tensor,
    grid: Grid,
    block: int,
    feedback: bool = True,
    zeros: Zeros = NO_ZEROS,
    threads: int = 1,
) -> tuple[np.ndarray, Pattern | None]:
    """The integers (m, n) int32 for w: (m, n), whose columns are in the order of u: (n, n) upper, `block` at a time.

    Beside them the pattern of zeros, where one was asked for that can be coded: the trellis then stands still where
    nothing is coded.
    """
    m, n = w.shape
    rest = w.contiguous().clone()
    q, mask = np.empty((m, n), np.int32), np.ones((m, n), np.uint8)
    state = np.zeros(m, np.uint8)
    pattern = zeros.sparsity
    if pattern.group:
        block = max(block // pattern.group, 1) * pattern.group
    quota = _quota(rest, u, zeros, block)
    for a in range(0, n, block):
        b = min(a + block, n)
        own = u[a:b, a:b] if feedback else torch.diag(u.diagonal()[a:b])
        diagonal = own.diagonal()
        part, error = np.empty((m, b - a), np.int32), np.empty((m, b - a), np.float32)
        forced = _forced(rest[:, a:b], own, zeros, quota[a // block])
        _core.round_block(
            np.ascontiguousarray(rest[:, a:b].numpy()),
            np.ascontiguousarray((own / diagonal[:, None]).numpy()),
            (1 / diagonal).numpy(),
            np.ascontiguousarray(grid.step[a:b]),
            grid.price,
            grid.row_class,
            np.ascontiguousarray(grid.col_class[a:b]),
            grid.bits,
            OFFSET,
            max(grid.trellis, 1),
            state,
            part,
            error,
            threads,
            **forced,
            limit=grid.limit,
            zero=grid.zero,
        )
        q[:, a:b], mask[:, a:b] = part, forced.get("keep", 1)
        if b < n and feedback:
            rest[:, b:] -= torch.from_numpy(error) @ u[a:b, b:]
    known = codable(pattern.kept, pattern.group)
    return q, Pattern(pattern.kept, pattern.group, mask.astype(bool)) if known else None


def _quota(w: Tensor, u: Tensor, zeros: Zeros, block: int) -> list[int]:
    """How many zeros each block of columns must have at least, from the weights before any rounding."""
    blocks = math.ceil(w.shape[1] / block)
    if not zeros.sparsity or zeros.sparsity.group:
        return [0] * blocks
    saliency = _saliency(w, u.diagonal(), zeros.weight)
    count = math.ceil(zeros.sparsity.share * saliency.numel())
    least = saliency.flatten().kthvalue(count).values
    return [int((part <= least).sum()) for part in saliency.split(block, 1)]


def _saliency(w: Tensor, diagonal: Tensor, weight: Tensor) -> Tensor:
    """√(g_i) |w_ij| / U_jj."""
    return w.abs() * weight.float()[:, None] / diagonal


def _forced(w: Tensor, u: Tensor, zeros: Zeros, quota: int) -> dict:
    """The kernel's arguments for the zeros of one block: w (m, b), u (b, b)."""
    pattern = zeros.sparsity
    if pattern.group:
        removed = pattern.group - pattern.kept
        keep = np.empty(w.shape, np.uint8)  # filled by the kernel
        known = {"keep": keep, "group": pattern.group, "removed": removed}
        if not codable(pattern.kept, pattern.group):
            return known
        sets, inverse = removals(u, pattern.group, removed)
        return {**known, "sets": sets, "inverse": inverse, "compact": True}
    if not quota:
        return {}
    saliency = _saliency(w, u.diagonal(), zeros.weight)
    least = saliency.flatten().kthvalue(quota).values
    return {"keep": (saliency > least).byte().numpy()}


def removals(u: Tensor, group: int, removed: int) -> tuple[np.ndarray, np.ndarray]:
    """All sets of `removed` columns of a group, (sets, removed) int32, and what each costs.

    u: (b, b) upper, of b / group groups; the second: (b / group, sets, removed, removed) float32, (A_SS)⁻¹ of the
    group's A = U_ggᵀ U_gg, the inverse Hessian of the columns from there on.
    """
    sets = torch.tensor(list(itertools.combinations(range(group), removed)))
    starts = range(0, len(u), group)
    ug = torch.stack([u[a : a + group, a : a + group] for a in starts]).double()
    a = ug.mT @ ug
    inverse = torch.linalg.inv(a[:, sets[:, :, None], sets[:, None, :]])
    return sets.int().numpy(), np.ascontiguousarray(inverse.float().numpy())
