"""Which experts of a mixture can go: those that add the least, over all of the calibration text.

An expert adds W a to the stream of the n tokens that it serves, times the router's weight; W is its last map, a that
map's input. Its importance is the mass that is routed to it times the size of what it says there,
    n √(tr(W H Wᵀ)),     H = E[a aᵀ] over its own tokens (sense/statistics.py),
and the least important ones of each layer go. What they served goes to the next ones by the router's choice.
Sources: dropping whole experts after training, Lu et al. (arXiv 2402.14800), by a layer's output error over all choices
of experts, of which there are too many here; output norm times the router's weight, REAP (2510.13999). The Fisher's own
measure of an expert's silence, ½ tr(G W H Wᵀ), chose far worse on a small trained mixture (docs/mixtures.md): what is
removed is no small change, and the others take over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sprat.errors import RecipeError, SourceError
from sprat.sense.statistics import GroupStatistics
from sprat.source.experts import COUNTS, mixtures, router
from sprat.source.maps import Group, groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layers_with_experts(model: PreTrainedModel) -> dict[int, str]:
    """The mixture of every layer that has one, by its name. SourceError where no expert can be removed."""
    found = {g.layer: g.mixture for g in groups(model) if g.mixture and g.layer is not None}
    grouped = getattr(model.config.get_text_config(), "n_group", None) or 1
    if not found or grouped > 1:
        why = f"its router chooses among {grouped} groups of experts first" if found else "it has no experts"
        raise SourceError(f"{type(model).__name__}: {why}: keep the recipe's `experts` at 0")
    return found


def refuse(model: PreTrainedModel, keep: int, name: str) -> None:
    """SourceError, or RecipeError for a number of experts that this model's layers cannot keep."""
    layers_with_experts(model)
    for mixture in mixtures(model).values():
        if not mixture.chosen <= keep <= len(mixture):
            raise RecipeError(
                f"recipe: experts = {keep} is not allowed: {name} has {len(mixture)} experts a layer and chooses "
                f"{mixture.chosen} for a token; it must be {mixture.chosen} to {len(mixture)}, or 0 for all"
            )


def kept_experts(found: list[Group], statistics: Mapping[str, GroupStatistics], keep: int) -> Tensor:
    """The `keep` experts of one layer that stay: int64, ascending. found: the layer's groups."""
    last = [g for g in found if g.mixture and len(g.maps) == 1]
    important = torch.tensor([importance(g.maps[0].weight().float(), statistics[g.name]) for g in last])
    return important.argsort(descending=True, stable=True)[:keep].sort().values


def importance(w: Tensor, s: GroupStatistics) -> float:
    """n √(tr(W H Wᵀ)) of w: (m, n)."""
    return s.tokens * math.sqrt(max(float(((w @ s.h) * w).sum()), 0.0))


def cut_experts(
    state: dict[str, Tensor], model: PreTrainedModel, kept: Mapping[int, Tensor]
) -> dict[str, Tensor]:
    """`state` with only the experts `kept` of each layer, numbered anew, and the router's rows for them."""
    out = dict(state)
    for layer, mixture in layers_with_experts(model).items():
        if layer not in kept:
            continue
        for name in router(model, mixture):
            out[name] = state[name][kept[layer]]
        new = {str(old): str(index) for index, old in enumerate(kept[layer].tolist())}
        for name in [name for name in out if name.startswith(f"{mixture}.")]:
            number, _, rest = name.removeprefix(f"{mixture}.").partition(".")
            del out[name]
            if number in new:
                out[f"{mixture}.{new[number]}.{rest}"] = state[name]
    return out


def set_count(config: object, model: PreTrainedModel, count: int) -> None:
    """Write into a config how many experts a layer has."""
    old = len(next(iter(mixtures(model).values())))
    for name in COUNTS:
        if getattr(config, name, None) == old:
            setattr(config, name, count)
            return
    raise SourceError(
        f"{type(model).__name__}: its config does not say in one place how many experts a layer has (looked for "
        f"{', '.join(COUNTS)}): keep the recipe's `experts` at 0"
    )
