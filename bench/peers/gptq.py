"""GPTQ: columns rounded in order, each one's error fed into those not yet rounded.

With H⁻¹ = Uᵀ U, U upper triangular:  w_k ← w_k - (w_j - ŵ_j) · U_jk / U_jj  for all k > j.
Source: Frantar et al., arXiv 2210.17323, algorithm 1; damping by 1 % of H's mean diagonal, act-order
(columns by falling diagonal) with the groups' grids fixed beforehand, so that the file needs no permutation
("static groups"). Without act-order a group's grid is set when the group is reached, from its updated
weights.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.packed import Grouped
from bench.peers.rtn import grid, nearest


def quantize(
    w: Tensor,
    h: Tensor,
    bits: int,
    group: int,
    act_order: bool = True,
    damping: float = 0.01,
    block: int = 64,
) -> Grouped:
    """w: (m, n); h: (n, n) second moments of the inputs, as measured. Inputs never active get 0."""
    w = w.detach().float().clone()
    m, n = w.shape
    dead = h.diagonal() <= 0
    w[:, dead] = 0
    order = torch.argsort(h.diagonal(), descending=True, stable=True) if act_order else torch.arange(n)
    u = _upper(h, dead, damping, order)
    groups = -(-n // group)
    scale, zero = np.empty((m, groups), np.float32), np.empty((m, groups), np.uint8)
    if act_order:
        for g in range(groups):
            scale[:, g], zero[:, g] = grid(w[:, g * group : (g + 1) * group].numpy(), bits)
    rest = w[:, order].contiguous()
    q = np.empty((m, n), np.uint8)
    columns = order.numpy()
    for start in range(0, n, block):
        stop = min(start + block, n)
        error = torch.empty(m, stop - start)
        for j in range(start, stop):
            g = int(columns[j]) // group
            if not act_order and j % group == 0:
                # What stands behind this block has not had the block's errors yet.
                ahead = rest[:, j : j + group].clone()
                late = max(stop - j, 0)
                ahead[:, late:] -= error[:, : j - start] @ u[start:j, j + late : j + group]
                scale[:, g], zero[:, g] = grid(ahead.numpy(), bits)
            integers = nearest(rest[:, j].numpy(), scale[:, g], zero[:, g], bits)
            q[:, columns[j]] = integers
            value = torch.from_numpy((integers - zero[:, g].astype(np.float32)) * scale[:, g])
            error[:, j - start] = (rest[:, j] - value) / u[j, j]
            rest[:, j + 1 : stop] -= error[:, j - start, None] * u[j, j + 1 : stop]
        rest[:, stop:] -= error @ u[start:stop, stop:]
    return Grouped(q, scale, zero, bits, group, (m, n))


def _upper(h: Tensor, dead: Tensor, damping: float, order: Tensor) -> Tensor:
    """U: (n, n) float32 of the damped h with its columns in `order`."""
    h = h.double().clone()
    h.diagonal()[dead] = 1
    h, mean = h[order][:, order], float(h.diagonal().mean())
    while True:
        lower, failed = torch.linalg.cholesky_ex(h + damping * mean * torch.eye(len(h), dtype=h.dtype))
        if not failed:
            return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()
        damping *= 10  # as the tools do where 1 % is too little
