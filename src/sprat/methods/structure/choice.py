"""What stays of a model, by its own statistics, and what the maps that stay become.

The formulas lie beside: neurons and key-value groups in `units`, experts in `experts`, the residual stream's least
squares in `compensate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from sprat.methods.structure import experts, removals
from sprat.methods.structure.anatomy import Part, attention, feed_forward
from sprat.methods.structure.compensate import compensate
from sprat.methods.structure.model import Kept, smaller, spread
from sprat.methods.structure.units import kept_units, refit
from sprat.progress import Progress
from sprat.recipe import Recipe
from sprat.sense.cache import Cache
from sprat.sense.shrink import shrink
from sprat.sense.statistics import GroupStatistics
from sprat.source import maps
from sprat.source.maps import Map, decoder_layers, layer_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def choose(
    model: PreTrainedModel, gone: Sequence[int], statistics: Cache, recipe: Recipe, progress: Progress
) -> Kept:
    """What stays behind the layers `gone`, by the original's statistics."""
    layers = [layer for layer in range(len(decoder_layers(model)[1])) if layer not in gone]
    neurons = groups = chosen = {}
    if recipe.ffn < 1:
        count = removals.neurons(feed_forward(model)[0], recipe)
        neurons = _units(feed_forward(model), lambda _: 1, count, statistics, recipe, progress)
    if recipe.kv_heads:
        of = model.config.get_text_config().num_key_value_heads
        groups = _units(
            attention(model), lambda p: p.outer.shape[1] // of, recipe.kv_heads, statistics, recipe, progress
        )
    if recipe.experts:
        by_layer = layer_groups(maps.groups(model))
        chosen = {
            layer: experts.kept_experts(
                by_layer[layer], statistics.get(f"layer/{layer}", GroupStatistics), recipe.experts
            )
            for layer in experts.layers_with_experts(model)
        }
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


def refitted(
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
