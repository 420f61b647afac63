"""The moments of a group of maps (sense/statistics.py), summed while contexts pass through its layer and back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sprat.sense.statistics import SKIP, GroupStatistics
from sprat.source.maps import Group

CPU = torch.device("cpu")
#: Tokens of held-out contexts whose inputs are kept, to compare predicted with real distortion.
PROBES = 256
#: Of groups with more than so many outputs an input only the diagonal of G is kept: that of a gated feed-forward's two
#: maps, four or five times as wide as the model, costs as much as all other moments and says the least.
WIDE = 2
#: Share of an expert's sums that is the average one's of its layer. (On a small trained mixture at 3 bits a weight,
#: routed as the original, it costs 3 % of the KL to have it; 5 % would cost 14 %.)
LENT = 0.01
#: Block rows of a symmetric product: with 4, ten of sixteen blocks are computed.
GRAM_BLOCKS = 4


def add_gram(h: Tensor, x: Tensor) -> None:
    """h += xᵀ x for x: (tokens, n) float32, the lower triangle in block rows and its mirror.

    Products in bfloat16 would be four times faster, but PyTorch rounds their sums to bfloat16 too: an error of 2⁻⁹ of
    every entry, more than the small eigenvalues that the feedback lives on (correlations above 1 were seen).
    """
    n = h.shape[0]
    edges = [n * i // GRAM_BLOCKS for i in range(GRAM_BLOCKS + 1)]
    for a, b in itertools.pairwise(edges):
        rows = x[:, a:b].T @ x[:, :b]
        h[a:b, :b] += rows
        h[:a, a:b] += rows[:, :a].T


@dataclass
class Moments:
    """Sums of one group while a layer's contexts pass, or those of the `uses` layers that share it.

    The KL of a shared map is a sum over its uses of tr(G_u ΔW H_u ΔWᵀ) / 2, for which the sum of G and the mean of H
    stand."""

    width: int
    rows: list[int]
    uses: int
    device: torch.device = CPU
    """Where all of it lies."""
    h: Tensor = field(init=False)
    g: Tensor = field(init=False)
    fisher: Tensor = field(init=False)
    gradients: dict[int, Tensor] = field(default_factory=dict)
    tokens: int = 0
    served: int = 0
    lent: float = 0.0
    contexts: int = 0
    learning: bool = True
    probes: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.h = torch.zeros(self.width, self.width, device=self.device)
        outputs = sum(self.rows)
        self.g = torch.zeros(outputs, device=self.device)
        full = outputs if outputs <= WIDE * self.width else 0
        self.fisher = torch.zeros(full, full, device=self.device)

    def add_input(self, x: Tensor) -> None:
        """x: (batch, context, n), or (batch · context, n). Held-out contexts only leave their probes.

        Tokens that an expert does not serve are zeros.
        """
        flat = self._tokens(x)
        own = _without_zeros(flat)
        if self.learning:
            add_gram(self.h, own.float())
            self.tokens += len(flat)
            self.served += len(own)
        else:
            self.probes.append(own.to(torch.bfloat16).cpu())

    def _tokens(self, x: Tensor) -> Tensor:
        """(tokens, n) of (batch, context, n), the first of each context left out."""
        return x.detach().reshape(self.contexts, -1, x.shape[-1])[:, SKIP:].flatten(0, 1)

    def add_gradient(self, index: int, gradient: Tensor) -> None:
        """gradient: (batch, context, rows of map `index`), or (batch · context, rows)."""
        if not self.learning:
            return
        # A copy: of a single float32 context this is a view of the gradient that is still on its way.
        flat = self._tokens(gradient).to(torch.float32, copy=True)
        start = sum(self.rows[:index])
        self.g[start : start + self.rows[index]] += flat.square().sum(0)
        if len(self.fisher):
            self.gradients[index] = flat
            if len(self.gradients) == len(self.rows):
                stacked = torch.cat([self.gradients.pop(i) for i in range(len(self.rows))], 1)
                add_gram(self.fisher, _without_zeros(stacked))

    def finish(self) -> GroupStatistics:
        """What is kept, on the CPU."""
        probes = torch.cat(self.probes) if self.probes else torch.zeros(0, self.width, dtype=torch.bfloat16)
        keep = torch.linspace(0, max(len(probes) - 1, 0), min(PROBES, len(probes))).long()
        assert not self.gradients, "a map of the group was not used by the layer"
        uses = self.uses / self.tokens
        h, g, fisher = self.h / ((self.served + self.lent) or 1.0), self.g * uses, self.fisher * uses
        return GroupStatistics(h.cpu(), g.cpu(), fisher.cpu(), probes[keep].clone(), self.served)


def _without_zeros(rows: Tensor) -> Tensor:
    """The rows that are not zero throughout."""
    own = rows.any(1)
    return rows if own.all() else rows[own]


def lend(groups: list[Group], moments: dict[str, Moments]) -> None:
    """The share LENT of every expert's sums becomes that of its layer's average expert."""
    alike: dict[tuple[str, int], list[Moments]] = {}
    for group in groups:
        if group.mixture:  # gate and up of an expert are a group, down is another
            alike.setdefault((group.mixture, len(group.maps)), []).append(moments[group.name])
    for members in alike.values():
        for name in ("h", "g", "fisher"):
            average = sum(getattr(m, name) for m in members) / len(members)
            for m in members:
                getattr(m, name).lerp_(average, LENT)
        tokens = sum(m.served for m in members) / len(members)
        for m in members:
            m.lent = LENT * (tokens - m.served)


@contextmanager
def listen(groups: list[Group], moments: list[Moments]) -> Iterator[None]:
    """Hooks that hand each group's input and its maps' output gradients to its moments."""
    hooks = []
    for group, moment in zip(groups, moments, strict=True):

        def enter(_, args: tuple[Tensor, ...], m: Moments = moment) -> None:
            m.add_input(args[0])

        hooks.append(group.maps[0].module.register_forward_pre_hook(enter))
        for index, linear in enumerate(group.maps):

            def keep(_, __, out: Tensor, m: Moments = moment, i: int = index) -> None:
                out.register_hook(lambda gradient: m.add_gradient(i, gradient))

            hooks.append(linear.module.register_forward_hook(keep))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
