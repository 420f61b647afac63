"""Structural pruning on one page: the original into a smaller ordinary model, before anything is rounded.

vocabulary → layers → neurons, key-value groups and experts → least squares, all from calibration text and the
original's own statistics. What was chosen is kept in the cache: a second budget starts at once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sprat.errors import RecipeError, SourceError
from sprat.level.check import Passage, held_out_kl
from sprat.methods.structure import experts, vocabulary
from sprat.methods.structure.anatomy import Part, attention, feed_forward
from sprat.methods.structure.compensate import compensate
from sprat.methods.structure.layers import TOKENS, Order, least_needed
from sprat.methods.structure.model import Kept, smaller, spread
from sprat.methods.structure.tokens import always, fewer_tokens
from sprat.methods.structure.units import kept_units, refit
from sprat.progress import Progress
from sprat.recipe import Recipe
from sprat.sense.cache import Cache
from sprat.sense.shrink import shrink
from sprat.sense.statistics import GroupStatistics, layer_groups
from sprat.sense.walk import Walk
from sprat.source import maps
from sprat.source.experts import mixtures
from sprat.source.load import Source, config_of
from sprat.source.maps import Map, decoder_layers
from sprat.source.text import Calibration

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Part of the cache's key: raise it when what is chosen, or how it is refitted, changes; of the layers' order alone.
VERSION = 1
ORDER = 1
#: What refitting leaves of the KL of layers' absence on held-out text of the model's own: 0.50 to 0.54 of it for 3, 6
#: and 9 of SmolLM2-135M's 30 layers.
REFITTED = 0.5


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


def removals(recipe: Recipe) -> tuple[int, float, int, int, int]:
    """What the recipe removes: layers; the share of neurons, key-value heads, experts and tokens that stay (0: all)."""
    return recipe.remove_layers, recipe.ffn, recipe.kv_heads, recipe.experts, recipe.vocabulary


def wanted(recipe: Recipe) -> bool:
    """Whether the recipe removes anything."""
    return removals(recipe) != removals(Recipe())


def needs_statistics(recipe: Recipe) -> bool:
    """Whether the choice asks for the original's statistics; layers are chosen without."""
    return bool(recipe.ffn < 1 or recipe.kv_heads or recipe.experts or recipe.vocabulary)


def refuse(source: Source, recipe: Recipe) -> None:
    """RecipeError or SourceError for what this model does not have or allow, before anything long begins."""
    model = source.model
    layers = len(decoder_layers(model)[1])
    if recipe.remove_layers >= layers:
        raise RecipeError(
            f"recipe: remove_layers = {recipe.remove_layers} is not allowed: {source.name} has {layers} layers and "
            f"one must stay; it must be 0 to {layers - 1}"
        )
    if recipe.remove_layers and len(mixtures(model)) not in (0, layers):
        raise SourceError(
            f"{type(model).__name__}: {len(mixtures(model))} of its {layers} layers have experts, which its config "
            "tells by their numbers: keep the recipe's `remove_layers` at 0"
        )
    if recipe.experts:
        experts.refuse(model, recipe.experts, source.name)
    kept: dict[str, Any] = {}
    if recipe.ffn < 1:
        part = feed_forward(model)[0]
        kept["neurons"] = dict.fromkeys(range(layers), torch.arange(_neurons(part, recipe)))
    if recipe.kv_heads:
        attention(model)
        groups = model.config.get_text_config().num_key_value_heads
        if recipe.kv_heads > groups:
            raise RecipeError(
                f"recipe: kv_heads = {recipe.kv_heads} is not allowed: {source.name} has {groups} key-value heads; it "
                f"must be 1 to {groups}, or 0 for all"
            )
        kept["groups"] = dict.fromkeys(range(layers), torch.arange(recipe.kv_heads))
    if kept:
        smaller(model, Kept([0], **kept))  # the family's own rules
    if recipe.vocabulary:
        tokenizer = vocabulary.read(source.tokenizer_files["tokenizer.json"], source.name)
        none = np.zeros(len(model.get_input_embeddings().weight))  # type: ignore[arg-type]
        vocabulary.kept_tokens(tokenizer, none, recipe.vocabulary, always(source, tokenizer))


def layer_losses(
    source: Source, text: Calibration, recipe: Recipe, most: int, progress: Progress
) -> list[tuple[float, float]]:
    """For 1 to `most` layers fewer: the KL to expect in nats a token, and the share of the weights that stay."""
    learning = torch.as_tensor(text.ids)[: -recipe.held_out]
    order = _order(source.model, learning, _order_cache(source, text, recipe), most, progress)
    _, layers = decoder_layers(source.model)
    total, left, found = sum(p.numel() for p in source.model.parameters()), 1.0, []
    for layer, kl in zip(order.layers.tolist(), order.kl.tolist(), strict=True):
        left -= sum(p.numel() for p in layers[layer].parameters()) / total
        found.append((REFITTED * kl, left))
    return found[:most]


def reduce(
    source: Source, text: Calibration, statistics: Cache, recipe: Recipe, seed: int, progress: Progress
) -> Reduced:
    """The smaller model. statistics: the original's, where `needs_statistics`; the last `held_out` contexts of `text`
    take no part in any choice."""
    refuse(source, recipe)
    asked = {
        "remove_layers": recipe.remove_layers,
        "ffn": recipe.ffn,
        "kv_heads": recipe.kv_heads,
        "experts": recipe.experts,
        "vocabulary": recipe.vocabulary,
    }
    settings = [recipe.held_out, recipe.shrinkage, seed, str(source.model.dtype)]
    key = {"reduced": VERSION, "model": source.hash, "text": text.hash, "settings": settings, **asked}
    cache = Cache(key)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    removed: dict[str, Any] = {}
    reference, passages = source.model, []
    if recipe.vocabulary:
        source, text, passages, said = fewer_tokens(source, text, statistics, recipe)
        reference, removed = source.model, said
    learning = torch.as_tensor(text.ids)[: -recipe.held_out]
    if "choice" in cache and "weights" in cache:
        choice = cache.get("choice", Stored)
        kept = _kept(choice)
        model = smaller(reference, kept)
        refitted = {name: stored.value for name, stored in cache.get("weights", Stored).items()}
        model.load_state_dict(refitted, strict=False)
        lost = choice["kl"].value.item()
    else:
        order = _order_cache(source, text, recipe)
        kept = _choose(reference, learning, statistics, order, recipe, progress)
        model, refitted = _refitted(reference, kept, statistics, learning, recipe, progress)
        held_out = torch.as_tensor(text.ids)[-recipe.held_out :]
        lost = held_out_kl(reference, {}, held_out, model)
        choice = {"kl": torch.tensor([lost], dtype=torch.float64), **_flat(kept)}
        cache.put("choice", {name: Stored(value) for name, value in choice.items()})
        cache.put("weights", {name: Stored(value) for name, value in refitted.items()})
    layers = len(decoder_layers(reference)[1])
    if recipe.remove_layers:
        removed["layers"] = {"of": layers, "removed": sorted(set(range(layers)) - set(kept.layers))}
    if kept.neurons:
        removed["ffn"] = {"of": feed_forward(reference)[0].outer.shape[1], "kept": len(kept.neurons[0])}
    if kept.groups:
        of = reference.config.get_text_config().num_key_value_heads
        removed["kv_heads"] = {"of": of, "kept": len(kept.groups[0])}
    if kept.experts:
        of = len(next(iter(mixtures(reference).values())))
        removed["experts"] = {"of": of, "kept": recipe.experts}
    removed["kl"] = lost
    small = replace(source, model=model, hash=digest, config=config_of(model))
    return Reduced(small, reference, text, removed, passages)


def _order_cache(source: Source, text: Calibration, recipe: Recipe) -> Cache:
    """Where the order of this model's layers on this text is kept."""
    settings = [recipe.held_out, recipe.vocabulary, str(source.model.dtype)]
    return Cache({"order": ORDER, "model": source.hash, "text": text.hash, "settings": settings})


def _order(model: PreTrainedModel, ids: Tensor, cache: Cache, most: int, progress: Progress) -> Order:
    """At least `most` layers in the order in which they can go."""
    if "order" in cache and len(found := cache.get("order", Order)["layers"]) >= most:
        return found
    rows = min(len(ids), 4)
    order = least_needed(Walk(model, ids[:rows, : max(2, TOKENS // rows)]), most, progress)
    cache.put("order", {"layers": order})
    return order


def _choose(
    model: PreTrainedModel,
    ids: Tensor,
    statistics: Cache,
    order: Cache,
    recipe: Recipe,
    progress: Progress,
) -> Kept:
    layers = list(range(len(decoder_layers(model)[1])))
    if recipe.remove_layers:
        gone = _order(model, ids, order, recipe.remove_layers, progress).layers[: recipe.remove_layers]
        layers = [layer for layer in layers if layer not in gone.tolist()]
    neurons = groups = {}
    if recipe.ffn < 1:
        count = _neurons(feed_forward(model)[0], recipe)
        neurons = _units(feed_forward(model), lambda _: 1, count, statistics, recipe, progress)
    if recipe.kv_heads:
        of = model.config.get_text_config().num_key_value_heads
        groups = _units(
            attention(model), lambda p: p.outer.shape[1] // of, recipe.kv_heads, statistics, recipe, progress
        )
    chosen = {}
    if recipe.experts:
        by_layer = layer_groups(maps.groups(model))
        for layer in experts.layers_with_experts(model):
            found = statistics.get(f"layer/{layer}", GroupStatistics)
            chosen[layer] = experts.kept_experts(by_layer[layer], found, recipe.experts)
    return Kept(layers, neurons, groups, chosen)


def _units(
    parts: dict[int, Part],
    size: Callable[[Part], int],
    count: int,
    statistics: Cache,
    recipe: Recipe,
    progress: Progress,
) -> dict[int, Tensor]:
    """The `count` units that stay in each layer."""
    out = {}
    for layer, part in parts.items():
        found: GroupStatistics = statistics.get(f"layer/{layer}", GroupStatistics)[part.outer.name]
        h = shrink(found.h, found.tokens, recipe.shrinkage)
        out[layer] = kept_units(part.outer.weight().float(), h, found.g, size(part), count)
        progress("choosing what stays", len(out), len(parts))
    return out


def _refitted(
    model: PreTrainedModel, kept: Kept, statistics: Cache, ids: Tensor, recipe: Recipe, progress: Progress
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """The smaller model, and those of its weights that are not the original's."""
    small = smaller(model, kept)
    changed: list[Map] = []
    if kept.groups:
        size = attention(model)[0].outer.shape[1] // model.config.get_text_config().num_key_value_heads
        columns = {layer: spread(units, size) for layer, units in kept.groups.items()}
        changed += _local(attention(model), attention(small), columns, kept, statistics, recipe)
    if kept.neurons:
        changed += _local(feed_forward(model), feed_forward(small), kept.neurons, kept, statistics, recipe)
    if kept.neurons or kept.groups or recipe.remove_layers:
        changed += compensate(model, small, kept.layers, ids, recipe.shrinkage, progress)
    return small, {m.name: m.parameter.detach().clone() for m in changed}


def _local(
    before: dict[int, Part],
    after: dict[int, Part],
    columns: Mapping[int, Tensor],
    kept: Kept,
    statistics: Cache,
    recipe: Recipe,
) -> list[Map]:
    """Refit the outer maps on the original's own inputs; which they are."""
    for new, old in enumerate(kept.layers):
        found: GroupStatistics = statistics.get(f"layer/{old}", GroupStatistics)[before[old].outer.name]
        h = shrink(found.h, found.tokens, recipe.shrinkage)
        after[new].outer.set(refit(before[old].outer.weight().float(), h, columns[old]))
    return [part.outer for part in after.values()]


def _neurons(part: Part, recipe: Recipe) -> int:
    return max(1, math.floor(recipe.ffn * part.outer.shape[1] + 0.5))


def _flat(kept: Kept) -> dict[str, Tensor]:
    out = {"layers": torch.tensor(kept.layers)}
    out |= {f"neurons/{layer}": units for layer, units in kept.neurons.items()}
    out |= {f"groups/{layer}": units for layer, units in kept.groups.items()}
    return out | {f"experts/{layer}": units for layer, units in kept.experts.items()}


def _kept(choice: dict[str, Stored]) -> Kept:
    def of(kind: str) -> dict[int, Tensor]:
        return {int(n.split("/")[1]): s.value for n, s in choice.items() if n.startswith(f"{kind}/")}

    return Kept(choice["layers"].value.tolist(), of("neurons"), of("groups"), of("experts"))
