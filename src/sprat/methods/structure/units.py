"""Which inputs of a map can go, and what the others do in their place: closed form, from H and g alone.

Without the inputs outside K, the best that y = W x can do is the least squares
    W' = W H_{:,K} (H_KK)⁻¹,
and what that loses is ½ tr(G ΔW H ΔWᵀ). For one unit B (a neuron's column, or the block of columns of a KV group) with
the others refitted it is ½ tr(G W_B ((H⁻¹)_BB)⁻¹ W_Bᵀ), (H⁻¹)_BB the inverse of B's conditional variance: a neuron that
the others foresee goes for nothing, however loud it is. Units are removed greedily, W and H⁻¹ updated behind each.
Sources: optimal brain surgeon (Hassibi and Stork, 1993); its blocks: ZipLM (arXiv 2302.04089), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: A step of the greedy removal takes at most one in so many units, so that wide maps do not take hours.
SHARE = 128


def refit(w: Tensor, h: Tensor, keep: Tensor) -> Tensor:
    """W': (m, k) for the inputs `keep`: (k,) of w: (m, n), given h: (n, n) positive definite. Float64 inside."""
    h = h.double()
    scale = h.diagonal()[keep].rsqrt()  # solved as a correlation matrix, whose condition the shrinkage bounds
    factor = torch.linalg.cholesky(h[keep][:, keep] * scale[:, None] * scale)
    target = (w.double() @ h[:, keep]) * scale
    return (torch.cholesky_solve(target.T, factor) * scale[:, None]).T.float()


def kept_units(w: Tensor, h: Tensor, g: Tensor, size: int, keep: int) -> Tensor:
    """The `keep` units of `size` inputs each that stay: int64, ascending.

    w: (m, n), its inputs in n / size units one behind the other; h: (n, n) positive definite; g: (m,) row weights.
    Greedy, n / size / 128 units a step (at least one).
    """
    units = w.shape[1] // size
    scale = h.double().diagonal().sqrt()
    inverse = torch.linalg.inv(h.double() / scale[:, None] / scale).float()
    w = w.float() * scale.float()
    alive = torch.ones(units, dtype=torch.bool)
    while (left := int(alive.sum())) > keep:
        cost = _costs(w, inverse, g.float(), size).masked_fill(~alive, torch.inf)
        worst = cost.argsort(stable=True)[: min(max(1, units // SHARE), left - keep)]
        gone = (worst[:, None] * size + torch.arange(size)).flatten()
        # As solved together: the rest takes over what it knows of them, and knows them no more.
        rows = torch.linalg.solve(inverse[gone][:, gone].double(), inverse[gone].double()).float()
        w = w - w[:, gone] @ rows
        inverse = inverse - inverse[:, gone] @ rows
        inverse[gone] = inverse[:, gone] = 0
        inverse[gone, gone] = 1
        w[:, gone] = 0
        alive[worst] = False
    return alive.nonzero().flatten()


def _costs(w: Tensor, inverse: Tensor, g: Tensor, size: int) -> Tensor:
    """½ tr(G W_B ((H⁻¹)_BB)⁻¹ W_Bᵀ) of every unit B: (units,)."""
    if size == 1:
        return 0.5 * (g @ w.square()) / inverse.diagonal()
    units = w.shape[1] // size
    own = inverse.view(units, size, units, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    blocks = (w * g.sqrt()[:, None]).view(len(w), units, size).transpose(0, 1)
    return 0.5 * (blocks.transpose(1, 2) @ blocks * torch.linalg.inv(own.double()).float()).sum((1, 2))
