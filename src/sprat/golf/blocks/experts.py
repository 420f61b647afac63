"""A mixture of small feed-forwards, of which a router chooses a few for each token.

    s = sigmoid(R x),   chosen = the k largest of s + b,   y = sum over the chosen e of (s_e / c) FFN_e(x)

c is the sum of the chosen s for k > 1 and 1 for k = 1. Balance without a loss of its own (arXiv 2408.15664): after
every batch b_e rises by `balance` where expert e had less than its share of the tokens and falls where it had more; b
chooses, it does not weigh. Routing: Switch (2101.03961); sigmoid scores: DeepSeek-V3 (2412.19437).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sprat.golf.blocks.bitlinear import linear


class Experts(nn.Module):
    """`count` feed-forwards that `make` builds, `chosen` of them for a token."""

    def __init__(self, width: int, count: int, chosen: int, balance: float, make: Callable[[], nn.Module]):
        super().__init__()
        self.router = linear(width, count)
        self.experts = nn.ModuleList(make() for _ in range(count))
        self.bias = nn.Parameter(torch.zeros(count), requires_grad=False)
        self.chosen, self.balance = chosen, balance

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, context, width)."""
        weight = self.route(x)
        if not self.training:
            # Every expert reads every token, or zeros in its place, which it maps to zeros: then the moments of its
            # input are those of the tokens that it serves.
            parts = (
                expert(x * (w > 0).to(x.dtype)) * w
                for expert, w in zip(self.experts, weight.to(x.dtype).split(1, -1), strict=True)
            )
            return sum(parts, torch.zeros_like(x))
        flat, gates = x.flatten(0, 1), weight.flatten(0, 1)
        out = torch.zeros_like(flat, dtype=torch.float32)
        for index, expert in enumerate(self.experts):
            tokens = gates[:, index].nonzero()[:, 0]
            found = expert(flat[tokens]).float() * gates[tokens, index, None]
            out = out.index_add(0, tokens, found)
        return out.view(x.shape)

    def route(self, x: Tensor) -> Tensor:
        """(batch, context, count) float32: what each expert's output is weighed with, 0 where it is not chosen."""
        score = self.router(x).float().sigmoid()
        chosen = (score.detach() + self.bias.float()).topk(self.chosen, dim=-1).indices
        mask = torch.zeros_like(score).scatter_(-1, chosen, 1.0)
        weight = score * mask
        if self.chosen > 1:
            weight = weight / weight.sum(-1, keepdim=True)
        if self.training:
            load = mask.flatten(0, -2).mean(0)
            with torch.no_grad():
                self.bias.add_((load.mean() - load).sign(), alpha=self.balance)
        return weight
