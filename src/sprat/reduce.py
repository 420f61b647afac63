"""Structural pruning on one page: the original into a smaller ordinary model, before anything is rounded.

vocabulary → layers → neurons, key-value groups and experts → least squares, all from calibration text and the
original's own statistics. What was chosen is kept in the cache: a second budget starts at once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sprat import sparsity
from sprat.level.check import Passage, held_out_kl
from sprat.methods.structure import removals
from sprat.methods.structure.anatomy import feed_forward
from sprat.methods.structure.choice import choose, refitted
from sprat.methods.structure.layers import layer_order
from sprat.methods.structure.model import Kept, smaller
from sprat.methods.structure.tokens import fewer_tokens
from sprat.progress import Progress
from sprat.recipe import Recipe
from sprat.sense.cache import Cache
from sprat.source.experts import mixtures
from sprat.source.load import Source, config_of
from sprat.source.maps import decoder_layers
from sprat.source.text import Calibration

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Part of the cache's key: raise it when what is chosen, or how it is refitted, changes.
VERSION = 1


@dataclass(frozen=True)
class Stored:
    """A tensor in the cache."""

    value: Tensor


@dataclass(frozen=True)
class Reduced:
    """A smaller model, and what is needed to judge it.

    source: the smaller model; its hash is its own. reference: what it is compared with: the original, or, where tokens
    were removed, the original without their rows. text: the calibration text in the tokens that are left. removed: what
    the file says of it, "kl" among it: what the removal alone costs on held-out text. passages: held-out text, for bits
    per byte; empty where all tokens stay.
    """

    source: Source
    reference: PreTrainedModel
    text: Calibration
    removed: dict[str, Any]
    passages: list[Passage]


def reduce(
    source: Source, text: Calibration, statistics: Cache, recipe: Recipe, seed: int, progress: Progress
) -> Reduced:
    """The smaller model. statistics: the original's, where the choice needs them (`removals.needs_statistics`); the
    last `held_out` contexts of `text` take no part in any choice."""
    removals.refuse(source, recipe)
    settings = [recipe.held_out, recipe.shrinkage, seed, str(source.model.dtype)]
    key = {"reduced": VERSION, "model": source.hash, "text": text.hash, "settings": settings}
    key |= removals.asked(recipe)
    if group := sparsity.parse(recipe.sparsity).group:
        key["group"] = group  # as many neurons stay as it divides
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    removed, passages = dict[str, Any](), list[Passage]()
    if recipe.vocabulary:
        source, text, passages, removed = fewer_tokens(source, text, statistics, recipe)
    model, kept, lost = _smaller(source, text, statistics, recipe, Cache(key), progress)
    removed |= {**_said(source.model, kept), "kl": lost}
    small = replace(source, model=model, hash=digest, config=config_of(model))
    return Reduced(small, source.model, text, removed, passages)


def _smaller(
    source: Source, text: Calibration, statistics: Cache, recipe: Recipe, cache: Cache, progress: Progress
) -> tuple[PreTrainedModel, Kept, float]:
    """The smaller model, what stays in it, and the KL in nats per token that this costs on held-out text."""
    original = source.model
    if "choice" in cache and "weights" in cache:
        choice = {name: stored.value for name, stored in cache.get("choice", Stored).items()}
        kept = _kept(choice)
        model = smaller(original, kept)
        weights = {name: stored.value for name, stored in cache.get("weights", Stored).items()}
        model.load_state_dict(weights, strict=False)
        return model, kept, choice["kl"].item()
    ids = torch.as_tensor(text.ids)
    learning, held_out = ids[: -recipe.held_out], ids[-recipe.held_out :]
    gone = []
    if count := recipe.remove_layers:
        gone = layer_order(source, text, recipe, count, progress).layers[:count].tolist()
    kept = choose(original, gone, statistics, recipe, progress)
    model, weights = refitted(original, kept, statistics, learning, recipe, progress)
    lost = held_out_kl(original, {}, held_out, model)
    choice = {"kl": torch.tensor([lost], dtype=torch.float64), **_flat(kept)}
    cache.put("choice", {name: Stored(value) for name, value in choice.items()})
    cache.put("weights", {name: Stored(value) for name, value in weights.items()})
    return model, kept, lost


def _said(original: PreTrainedModel, kept: Kept) -> dict[str, Any]:
    """What the file says was removed, but for tokens."""
    layers = range(len(decoder_layers(original)[1]))
    said: dict[str, Any] = {}
    if gone := sorted(set(layers) - set(kept.layers)):
        said["layers"] = {"of": len(layers), "removed": gone}
    if kept.neurons:
        of = feed_forward(original)[0].outer.shape[1]
        said["ffn"] = {"of": of, "kept": len(kept.neurons[0])}
    if kept.groups:
        of = original.config.get_text_config().num_key_value_heads
        said["kv_heads"] = {"of": of, "kept": len(kept.groups[0])}
    if kept.experts:
        of = len(next(iter(mixtures(original).values())))
        said["experts"] = {"of": of, "kept": len(next(iter(kept.experts.values())))}
    return said


def _flat(kept: Kept) -> dict[str, Tensor]:
    out = {"layers": torch.tensor(kept.layers)}
    out |= {f"neurons/{layer}": units for layer, units in kept.neurons.items()}
    out |= {f"groups/{layer}": units for layer, units in kept.groups.items()}
    return out | {f"experts/{layer}": units for layer, units in kept.experts.items()}


def _kept(choice: dict[str, Tensor]) -> Kept:
    def of(kind: str) -> dict[int, Tensor]:
        return {int(n.split("/")[1]): units for n, units in choice.items() if n.startswith(f"{kind}/")}

    return Kept(choice["layers"].tolist(), of("neurons"), of("groups"), of("experts"))
