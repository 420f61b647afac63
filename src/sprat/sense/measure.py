"""The pass that measures a model's statistics: once forwards, once backwards, a layer in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sprat.errors import StatisticsError
from sprat.progress import Progress, silent
from sprat.sense.cache import Cache
from sprat.sense.moments import Moments, lend, listen
from sprat.sense.statistics import SKIP, HeadStatistics, TableStatistics
from sprat.sense.walk import Walk, batches
from sprat.source.experts import all_called
from sprat.source.maps import Group, layer_groups, tables


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
    tokens x width x (layers + 1), twice the tokens' one boundary for the gradient) + one layer's H. What the model
    computes, and H and G, lie where the model does; hidden states, and what is kept of all, on the CPU.
    """
    by_layer = layer_groups(groups)
    if all(f"layer/{i}" in cache for i in by_layer) and "head" in cache:
        return
    for parameter in walk.model.parameters():
        parameter.requires_grad_(False)
    hidden = walk.boundaries(batch, progress)
    gradient, head = _output_side(walk, hidden.pop(), held_out, seed, progress)
    total = len(walk.layers)
    under_way: dict[str, Moments] = {}
    for index in reversed(range(total)):
        # A group belongs to the first of the layers that use it, which comes last here.
        wanted = [
            g for i, gs in by_layer.items() for g in gs if f"layer/{i}" not in cache and index in {i, *g.uses}
        ]
        for g in wanted:
            under_way.setdefault(
                g.name,
                Moments(g.width, [m.shape[0] for m in g.maps], len({g.layer, *g.uses}), walk.device),
            )
        moments = [under_way[g.name] for g in wanted]
        x = hidden.pop()
        for part in _split(len(walk.ids), held_out, batch):
            for m in moments:
                m.contexts, m.learning = part.stop - part.start, part.stop <= len(walk.ids) - held_out
            leaf = x[part].to(walk.device).detach().requires_grad_()
            with listen(wanted, moments), all_called(walk.layers[index]), torch.enable_grad():
                walk.call(index, leaf).backward(gradient[part].to(walk.device))
            assert leaf.grad is not None
            gradient[part] = leaf.grad
        if done := [g for g in wanted if g.layer == index]:
            lend(done, under_way)
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
    h = torch.zeros(width, width, device=walk.device)
    g, frequency = (torch.zeros(vocabulary, device=walk.device) for _ in range(2))
    gradient = torch.empty_like(last)
    batch = max(1, 2**26 // (vocabulary * last.shape[1]))
    weight = tokens = 0.0
    for part in _split(len(last), held_out, batch):
        leaf, final, logits = walk.tail(last[part].to(walk.device), walk.ids[part])
        p = logits.detach().float().softmax(-1).flatten(0, 1)
        # One uniform number a token, by the inverse of the distribution: torch.multinomial draws one an entry.
        draw = torch.rand(len(p), 1, generator=generator).to(p.device)
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
    found = {"h": h / weight, "g": g / tokens, "frequency": frequency / tokens}
    return gradient, {name: moment.cpu() for name, moment in found.items()}


def _split(count: int, held_out: int, batch: int) -> Iterator[slice]:
    """Batches that never mix learning and held-out contexts."""
    learning = count - held_out
    yield from batches(learning, batch)
    for part in batches(held_out, batch):
        yield slice(learning + part.start, learning + part.stop)
