"""Muon: momentum, then the nearest orthogonal matrix as the step. For the matrices inside the layers.

    M = beta M + G,   O = NS5(G + beta M),   W -= rate * sqrt(max(1, m / n)) * O

NS5(X) makes all singular values of X about 1 by five steps of the odd polynomial a X + b X X'X + c X (X'X)^2.
Source: K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024, kellerjordan.github.io/posts/muon),
with its coefficients, and in bf16 as there where the processor multiplies it natively. Matrices of one shape go through
together.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5


class Muon(torch.optim.Optimizer):
    """params: matrices (m, n); rate, momentum beta, and decoupled weight decay (times the rate). dtype: of the products
    in NS5."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        self.dtype = dtype
        # A group of its own: a model without matrices is allowed.
        super().__init__(
            [{"params": list(params)}], {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for w in group["params"]:
                if w.grad is not None:
                    shapes.setdefault(w.shape, []).append(w)
            for shape, weights in shapes.items():
                directions = []
                for w in weights:
                    m = self.state[w].setdefault("momentum", torch.zeros_like(w))
                    m.mul_(group["momentum"]).add_(w.grad)
                    directions.append(w.grad + group["momentum"] * m)
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for w, step in zip(weights, orthogonal(torch.stack(directions), self.dtype), strict=True):
                    w.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=rate)


def orthogonal(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(k, m, n): every matrix with its singular values moved to about 1 (0.7 to 1.2), by products in `dtype`."""
    tall, given = x.shape[-2] > x.shape[-1], x.dtype
    x = x.mT if tall else x
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return (x.mT if tall else x).to(given)
