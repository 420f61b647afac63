"""What stays learns to give what the original gave: least squares along the residual stream, layer by layer.

Two streams of hidden states walk over the calibration text, t through the original, s through the smaller model. Behind
a kept layer the original's stream, further on by every layer that was removed there, is what the smaller one should be,
and the layer's last map y = W x, which adds to the stream, comes nearest with
    W' = W + E[(t - b - W x) xᵀ] (E[x xᵀ] + shrinkage)⁻¹,     b the stream without that map's share,
so that it makes up for neurons and heads that are gone in its layer, for layers gone behind it, and for what the layers
before it could not. Layers whose last map does not simply add to the stream (Gemma's norm stands between; of a mixture
of experts each map serves some tokens only) stay.
Sources: ReplaceMe (arXiv 2505.02819) folds a removed layer's best linear stand-in into the map before it; the
asymmetric target is that of level/sequential.py (GPTAQ, 2504.02692).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sprat.progress import Progress, silent
from sprat.sense.moments import add_gram
from sprat.sense.shrink import shrink
from sprat.sense.statistics import SKIP
from sprat.sense.walk import Walk, batches
from sprat.source.maps import Map, groups, layer_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Contexts that pass a layer at once.
BATCH = 4


def compensate(
    original: PreTrainedModel,
    small: PreTrainedModel,
    layers: Sequence[int],
    ids: Tensor,
    strength: float,
    progress: Progress = silent,
) -> list[Map]:
    """Change the last map of each layer of `small` in place, and say which these are.

    layers: which of the original's the layers are, ascending; ids: (contexts, context) int64; strength: of the
    shrinkage. Peak memory: both models and three boundaries of hidden states.
    """
    whole, cut = Walk(original, ids), Walk(small, ids)
    last = [members[-1] for members in layer_groups(groups(small)).values()]
    target, stream = _embedded(whole), _embedded(cut)
    following = [*layers[1:], len(whole.layers)]
    with torch.no_grad():
        for later in range(layers[0]):
            target = _passed(whole, later, target)
        for index, (layer, end) in enumerate(zip(layers, following, strict=True)):
            for later in range(layer, end):
                target = _passed(whole, later, target)
            if last[index].mixture:
                stream = _passed(cut, index, stream)
            else:
                stream = _refit(cut, index, last[index].maps[-1], stream, target, strength)
            progress("refitting", index + 1, len(layers))
    return [group.maps[-1] for group in last if not group.mixture]


def _refit(walk: Walk, index: int, last: Map, stream: Tensor, target: Tensor, strength: float) -> Tensor:
    """Refit `last`, the last map of layer `index`; what the layer then makes of `stream`."""
    rows, width = last.shape
    a, c, tokens = torch.zeros(width, width), torch.zeros(rows, width), 0
    kept = []
    for part in batches(len(stream), BATCH):
        with _silenced(last.module) as seen:
            base = walk.call(index, stream[part])
        # A walk that was never used runs its first layer before; OPT's maps see a batch's tokens in one row.
        x, y = (t.unflatten(0, base.shape[:2]) if t.ndim == 2 else t for t in seen[-1])
        if not kept and not torch.allclose(base + y, walk.call(index, stream[part]), rtol=0.02, atol=0.1):
            return _passed(walk, index, stream)
        kept.append((base, x))
        short = (target[part].float() - base.float() - y.float())[:, SKIP:].flatten(0, 1)
        inputs = x[:, SKIP:].flatten(0, 1).float()
        add_gram(a, inputs)
        c += short.T @ inputs
        tokens += len(inputs)
    a = shrink(a / tokens, tokens, strength)
    scale = a.diagonal().rsqrt()
    factor = torch.linalg.cholesky(a * scale[:, None] * scale)
    change = torch.cholesky_solve(scale[:, None] * c.T / tokens, factor) * scale[:, None]
    last.set(last.weight().float() + change.T)
    return torch.cat([base + last.module(x) for base, x in kept])


@contextmanager
def _silenced(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Zeros in the place of what `module` gives; its inputs and outputs are kept."""
    seen: list[tuple[Tensor, Tensor]] = []

    def replace(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        seen.append((args[0], out))
        return torch.zeros_like(out)

    hook = module.register_forward_hook(replace)
    try:
        yield seen
    finally:
        hook.remove()


def _embedded(walk: Walk) -> Tensor:
    return torch.cat([walk.embed(walk.ids[part]) for part in batches(len(walk.ids), BATCH)])


def _passed(walk: Walk, index: int, hidden: Tensor) -> Tensor:
    return torch.cat([walk.call(index, hidden[part]) for part in batches(len(hidden), BATCH)])
