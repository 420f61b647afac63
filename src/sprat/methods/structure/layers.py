"""Which layers can go: those whose absence moves the output least, one after another.

The importance of a layer is KL(original || model without it) on calibration contexts that the statistics saw as well
(the held-out check keeps its own), measured anew behind every removal among the layers that were cheapest before: the
statistics of single maps say nothing of a whole layer's absence, and neighbours cover for each other.
Refitted, what stays makes up for part of that (REFITTED).
Sources: ShortGPT (arXiv 2403.03853) removes layers by how little they turn their input; Shortened LLaMA (2402.02834)
by the perplexity without them, which is what is done here, for the KL.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sprat.progress import Progress, silent
from sprat.recipe import Recipe
from sprat.sense.cache import Cache
from sprat.sense.walk import Walk
from sprat.source.load import Source
from sprat.source.maps import decoder_layers
from sprat.source.text import Calibration

#: Part of the cache's key: raise it when the order changes.
VERSION = 1
#: So many of the layers that were cheapest in the last round are measured in the next.
CANDIDATES = 8
#: Tokens that a choice is made on.
TOKENS = 512
#: What refitting leaves of the KL of layers' absence on held-out text of the model's own: 0.50 to 0.54 of it for 3, 6
#: and 9 of SmolLM2-135M's 30 layers.
REFITTED = 0.5


@dataclass(frozen=True)
class Order:
    """Layers as they went, (n,) int64, and the KL of the model without all of them up to each, (n,) float64 in nats."""

    layers: Tensor
    kl: Tensor

    def __len__(self) -> int:
        return len(self.layers)


def least_needed(walk: Walk, remove: int, progress: Progress = silent) -> Order:
    """The `remove` layers that can go. Fewer of them are the first ones.

    The walk's contexts pass as one batch; where they are few tokens the choice is cheap, and still far better than the
    noise: the KL of removing layers differs by factors.
    """
    kept, gone, lost = list(range(len(walk.layers))), [], []
    with torch.no_grad():
        original = _distribution(walk, walk.boundaries(len(walk.ids))[-1])
        cost = dict.fromkeys(kept, 0.0)
        for step in range(remove):
            tried = sorted(kept, key=lambda layer: cost[layer])[: CANDIDATES if step else None]
            hidden = walk.embed(walk.ids)
            for place, layer in enumerate(kept):
                if layer in tried:
                    rest = hidden
                    for later in kept[place + 1 :]:
                        rest = walk.call(later, rest)
                    cost[layer] = _divergence(original, _distribution(walk, rest))
                hidden = walk.call(layer, hidden)
                progress("choosing layers", step * len(walk.layers) + place + 1, remove * len(walk.layers))
            gone.append(min(tried, key=lambda layer: cost[layer]))
            lost.append(cost[gone[-1]])
            kept.remove(gone[-1])
    return Order(torch.tensor(gone, dtype=torch.int64), torch.tensor(lost, dtype=torch.float64))


def _distribution(walk: Walk, hidden: Tensor) -> Tensor:
    """log p over the second half of each context: (contexts, positions, vocabulary) in the model's precision."""
    _, _, logits = walk.tail(hidden, walk.ids)
    return logits.detach()[:, walk.ids.shape[1] // 2 :].float().log_softmax(-1)


def _divergence(original: Tensor, other: Tensor) -> float:
    """Mean KL in nats."""
    return float(
        torch.nn.functional.kl_div(other, original, reduction="none", log_target=True).sum(-1).mean()
    )


def layer_order(source: Source, text: Calibration, recipe: Recipe, most: int, progress: Progress) -> Order:
    """At least `most` layers in the order in which they can go, on the part of `text` that is learnt from.

    Kept in the cache: of a longer order fewer layers are the first ones.
    """
    settings = [recipe.held_out, recipe.vocabulary, str(source.model.dtype)]
    cache = Cache({"order": VERSION, "model": source.hash, "text": text.hash, "settings": settings})
    if "order" in cache and len(found := cache.get("order", Order)["layers"]) >= most:
        return found
    ids = torch.as_tensor(text.ids)[: -recipe.held_out]
    rows = min(len(ids), 4)
    order = least_needed(Walk(source.model, ids[:rows, : max(2, TOKENS // rows)]), most, progress)
    cache.put("order", {"layers": order})
    return order


def layer_losses(
    source: Source, text: Calibration, recipe: Recipe, most: int, progress: Progress
) -> list[tuple[float, float]]:
    """For 1 to `most` layers fewer: the KL to expect in nats a token, and the share of the weights that stay."""
    order = layer_order(source, text, recipe, most, progress)
    _, layers = decoder_layers(source.model)
    total, left, found = sum(p.numel() for p in source.model.parameters()), 1.0, []
    for layer, kl in zip(order.layers.tolist(), order.kl.tolist(), strict=True):
        left -= sum(p.numel() for p in layers[layer].parameters()) / total
        found.append((REFITTED * kl, left))
    return found[:most]
