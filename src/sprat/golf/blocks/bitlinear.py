"""Ternary and binary training: maps whose integers are there from the first step on.

    ternary   W = s Q,   Q = round(clip(V / s, -1, 1)),   s_i = mean_j |V_ij|
    binary    W = s Q,   Q = +1 where V >= 0, else -1,    s_i = mean_j |V_ij|

V is what the optimizer moves, its gradient that of W (straight through: Bengio et al., arXiv 1308.3432). BitNet b1.58
(2402.17764) with a scale a row; binary: XNOR-Net (1603.05279), whose scale this is. Activations are left as they are:
the engine rounds them to 8 bits by itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = ("real", "ternary", "binary")


def rounded(latent: Tensor, weights: str) -> Tensor:
    """V (m, n) -> W (m, n): every row holds -s, 0 and s, or -s and s."""
    scale = latent.abs().mean(1, keepdim=True).clamp_min(1e-12)
    if weights == "binary":
        return torch.where(latent >= 0, scale, -scale)
    return (latent / scale).clamp(-1, 1).round() * scale


class BitLinear(nn.Linear):
    """y = W x; `weight` is V. weights: "ternary" or "binary"."""

    def __init__(self, inputs: int, outputs: int, weights: str):
        super().__init__(inputs, outputs, bias=False)
        self.weights = weights

    def forward(self, input: Tensor) -> Tensor:
        latent = self.weight
        return F.linear(input, latent + (rounded(latent, self.weights) - latent).detach())


def linear(inputs: int, outputs: int, weights: str = "real") -> nn.Linear:
    """A map without bias, of the kind of weights that the recipe asks for."""
    if weights == "real":
        return nn.Linear(inputs, outputs, bias=False)
    return BitLinear(inputs, outputs, weights)


@torch.no_grad()
def stored(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter by name as it is to be stored: W in the place of V."""
    out = {name: p.detach() for name, p in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, BitLinear):
            out[f"{name}.weight"] = rounded(module.weight, module.weights)
    return out
