"""What each weight matters: the second moments that the water level needs.

For a group of linear maps y = W x with a common input:
    H = E[x xᵀ]   (n, n)    over calibration tokens,
    G = E[γ γᵀ]   (m, m)    γ = ∂ℓ/∂y, y all maps' outputs, the label sampled from the model itself (the true Fisher),
    g = diag(G)   (m,)      alone, where the outputs are many (WIDE),
so that ½ tr(G ΔW H ΔWᵀ), summed over the groups, approximates the KL divergence in nats per token
(YAQA, arXiv 2505.22988, section 3; GPTQ, 2210.17323, for H alone).

An expert of a mixture serves n of N tokens, and the KL is a mean over all N. What it adds is n/N times the product of
its own tokens' means, so H is the mean over the n and G the sum over them divided by N (both divided by N would weigh
rare experts with (n/N)²). An expert that the text hardly reaches would be free to vanish: the share LENT of each one's
sums is that of its layer's average expert, as rare tokens get a share of the vocabulary's mean (sense/embedding.py).

For the embedding, tied or not, in both of its roles:
    output: H of the final hidden state weighted by Σ_v p_v (1 - p_v), and g_v = E[p_v (1 - p_v)],
    input:  F = E[γ γᵀ] at the embedding's output, and the token frequency, taken as E[p_v] (far smoother than counts).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sprat.errors import StatisticsError
from sprat.progress import Progress, silent
from sprat.sense.cache import Cache
from sprat.sense.walk import Walk, batches
from sprat.source.experts import all_called
from sprat.source.maps import Group, tables

#: Part of the cache's key: raise it when what is measured changes.
VERSION = 5
#: The first token of a context is left out: whatever it is, models park attention there, with activations and
#: gradients hundreds of times larger than any other token's; it would own every average.
SKIP = 1
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


@dataclass(frozen=True)
class GroupStatistics:
    """One group's moments. h: (n, n) float32; fisher: (m, m) float32, all maps' rows stacked, or (0, 0); g: (m,), its
    diagonal; probes: (PROBES, n) bfloat16; tokens: that reached its maps."""

    h: Tensor
    g: Tensor
    fisher: Tensor
    probes: Tensor
    tokens: int


@dataclass(frozen=True)
class TableStatistics:
    """How often a calibration token reads each row of a table: frequency (rows,) float32."""

    frequency: Tensor


@dataclass(frozen=True)
class HeadStatistics:
    """h: (d, d), g: (V,): output role; f: (d, d), frequency: (V,): input role. All float32."""

    h: Tensor
    g: Tensor
    f: Tensor
    frequency: Tensor
    tokens: int


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
class _Moments:
    """Sums of one group while a layer's contexts pass, or those of the `uses` layers that share it.

    The KL of a shared map is a sum over its uses of tr(G_u ΔW H_u ΔWᵀ) / 2, for which the sum of G and the mean of H
    stand."""

    width: int
    rows: list[int]
    uses: int
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
        self.h = torch.zeros(self.width, self.width)
        outputs = sum(self.rows)
        self.g = torch.zeros(outputs)
        self.fisher = torch.zeros(outputs, outputs) if outputs <= WIDE * self.width else torch.zeros(0, 0)

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
            self.probes.append(own.to(torch.bfloat16))

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
        probes = torch.cat(self.probes) if self.probes else torch.zeros(0, self.width, dtype=torch.bfloat16)
        keep = torch.linspace(0, max(len(probes) - 1, 0), min(PROBES, len(probes))).long()
        assert not self.gradients, "a map of the group was not used by the layer"
        uses = self.uses / self.tokens
        h, g, fisher = self.h / ((self.served + self.lent) or 1.0), self.g * uses, self.fisher * uses
        return GroupStatistics(h, g, fisher, probes[keep].clone(), self.served)


def _without_zeros(rows: Tensor) -> Tensor:
    """The rows that are not zero throughout."""
    own = rows.any(1)
    return rows if own.all() else rows[own]


def layer_groups(groups: list[Group]) -> dict[int, list[Group]]:
    """The groups by decoder layer."""
    out: dict[int, list[Group]] = {}
    for group in groups:
        if group.layer is not None:
            out.setdefault(group.layer, []).append(group)
    return out


def measure(
    walk: Walk,
    groups: list[Group],
    cache: Cache,
    *,
    held_out: int,
    batch: int = 4,
    seed: int = 0,
    progress: Progress = silent,
) -> None:
    """Fill `cache` with the statistics of every group ("layer/<i>") and of the embedding ("head").

    The last `held_out` contexts give probes only. One pass forward that keeps the hidden states between layers, one
    backward that visits each layer once and stores its statistics as it leaves it: what is cached already is not
    computed again except for the gradient that has to pass through. Peak memory: model + hidden states (2 bytes x
    tokens x width x (layers + 1), twice the tokens' one boundary for the gradient) + one layer's H.
    """
    by_layer = layer_groups(groups)
    if all(f"layer/{i}" in cache for i in by_layer) and "head" in cache:
        return
    for parameter in walk.model.parameters():
        parameter.requires_grad_(False)
    hidden = walk.boundaries(batch, progress)
    gradient, head = _output_side(walk, hidden.pop(), held_out, seed, progress)
    total = len(walk.layers)
    under_way: dict[str, _Moments] = {}
    for index in reversed(range(total)):
        # A group belongs to the first of the layers that use it, which comes last here.
        wanted = [
            g for i, gs in by_layer.items() for g in gs if f"layer/{i}" not in cache and index in {i, *g.uses}
        ]
        for g in wanted:
            under_way.setdefault(
                g.name, _Moments(g.width, [m.shape[0] for m in g.maps], len({g.layer, *g.uses}))
            )
        moments = [under_way[g.name] for g in wanted]
        x = hidden.pop()
        for part in _split(len(walk.ids), held_out, batch):
            for m in moments:
                m.contexts, m.learning = part.stop - part.start, part.stop <= len(walk.ids) - held_out
            leaf = x[part].detach().requires_grad_()
            with _listen(wanted, moments), all_called(walk.layers[index]), torch.enable_grad():
                walk.call(index, leaf).backward(gradient[part])
            assert leaf.grad is not None
            gradient[part] = leaf.grad
        if done := [g for g in wanted if g.layer == index]:
            _lend(done, under_way)
            named = {g.name: under_way.pop(g.name).finish() for g in done}
            for name, found in named.items():
                _refuse_nonfinite(name, found.h, found.g, found.fisher)
            cache.put(f"layer/{index}", named)
        progress("statistics", total - index, total)
    learning = gradient[: len(gradient) - held_out, SKIP:].flatten(0, 1).float()
    scale = float(getattr(walk.model.get_input_embeddings(), "embed_scale", 1.0))  # type: ignore[operator]
    head["f"] = learning.T @ learning / len(learning) * scale**2
    _refuse_nonfinite("the embedding", *head.values())
    if beside := tables(walk.model):  # type: ignore[arg-type]
        cache.put("tables", _frequencies(beside, walk.ids[: len(walk.ids) - held_out]))
    cache.put("head", {"head": HeadStatistics(**head, tokens=len(learning))})


def _lend(groups: list[Group], moments: dict[str, _Moments]) -> None:
    """The share LENT of every expert's sums becomes that of its layer's average expert."""
    alike: dict[tuple[str, int], list[_Moments]] = {}
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


def _frequencies(tables: dict[str, nn.Embedding], ids: Tensor) -> dict[str, TableStatistics]:
    """Of every row; a table says by `rows` which of them a text reads."""
    counts = {
        name: torch.bincount(table.rows(ids).flatten(), minlength=table.num_embeddings)  # type: ignore[operator]
        for name, table in tables.items()
    }
    return {name: TableStatistics(n.float() / ids.numel()) for name, n in counts.items()}


def _refuse_nonfinite(name: str, *moments: Tensor) -> None:
    """Raise StatisticsError for sums that overflowed, or that hold what a broken model computed."""
    if not all(bool(torch.isfinite(m).all()) for m in moments):
        raise StatisticsError(
            f"{name}: its statistics hold NaN or infinite values: the model computes such numbers"
        )


def _output_side(
    walk: Walk, last: Tensor, held_out: int, seed: int, progress: Progress
) -> tuple[Tensor, dict[str, Tensor]]:
    """∂ℓ/∂(hidden behind the last layer), contexts x context x width, and the head's output statistics."""
    generator = torch.Generator().manual_seed(seed)
    width = walk.model.get_output_embeddings().weight.shape[1]  # type: ignore[operator]
    vocabulary = walk.model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    h, g, frequency = torch.zeros(width, width), torch.zeros(vocabulary), torch.zeros(vocabulary)
    gradient = torch.empty_like(last)
    batch = max(1, 2**26 // (vocabulary * last.shape[1]))
    weight = tokens = 0.0
    for part in _split(len(last), held_out, batch):
        leaf, final, logits = walk.tail(last[part], walk.ids[part])
        p = logits.detach().float().softmax(-1).flatten(0, 1)
        # One uniform number a token, by the inverse of the distribution: torch.multinomial draws one an entry.
        draw = torch.rand(len(p), 1, generator=generator)
        label = torch.searchsorted(p.cumsum(-1), draw).clamp_max_(vocabulary - 1)
        if part.stop <= len(last) - held_out:
            variance = p * (1 - p)
            per_token = variance.sum(1)
            x = final.flatten(0, 1).float()
            h += (x * per_token[:, None]).T @ x
            g += variance.sum(0)
            frequency += p.sum(0)
            weight += float(per_token.sum())
            tokens += len(p)
        p.scatter_add_(1, label, torch.full_like(label, -1, dtype=p.dtype))
        logits.backward(p.view(logits.shape).to(logits.dtype))
        assert leaf.grad is not None
        gradient[part] = leaf.grad
        progress("output distribution", part.stop, len(last))
    return gradient, {"h": h / weight, "g": g / tokens, "frequency": frequency / tokens}


def _split(count: int, held_out: int, batch: int) -> Iterator[slice]:
    """Batches that never mix learning and held-out contexts."""
    learning = count - held_out
    yield from batches(learning, batch)
    for part in batches(held_out, batch):
        yield slice(learning + part.start, learning + part.stop)


@contextmanager
def _listen(groups: list[Group], moments: list[_Moments]) -> Iterator[None]:
    """Hooks that hand each group's input and its maps' output gradients to its moments."""
    hooks = []
    for group, moment in zip(groups, moments, strict=True):

        def enter(_, args: tuple[Tensor, ...], m: _Moments = moment) -> None:
            m.add_input(args[0])

        hooks.append(group.maps[0].module.register_forward_pre_hook(enter))
        for index, linear in enumerate(group.maps):

            def keep(_, __, out: Tensor, m: _Moments = moment, i: int = index) -> None:
                out.register_hook(lambda gradient: m.add_gradient(i, gradient))

            hooks.append(linear.module.register_forward_hook(keep))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
