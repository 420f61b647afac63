"""Which experts of a mixture can go: those whose silence would cost the least.

An expert adds w · W a to the stream of the tokens that it serves, W its last map, a that map's input, w the router's
weight. Without it that sum is gone, which is ΔW = -W: a KL of
    ½ tr(G W H Wᵀ)     nats per token of all text, H over its own tokens, G over all (sense/statistics.py),
so how often it is chosen, with what weight and how large an output, in the one measure of what outputs matter. What the
formula leaves out: its tokens go to the next expert by the router's choice, whose weights are made to sum to one again.
Sources: the second-order loss of a removal is optimal brain damage (LeCun et al., 1989); dropping whole experts after
training: Lu et al. (arXiv 2402.14800), by a layer's output error over all choices of experts; by the router's weight
times the output's norm: REAP (2510.13999).
"""

from __future__ import annotations

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
    cost = torch.tensor([silence(g.maps[0].weight().float(), statistics[g.name]) for g in last])
    return cost.argsort(descending=True, stable=True)[:keep].sort().values


def silence(w: Tensor, s: GroupStatistics) -> float:
    """½ tr(G W H Wᵀ) of w: (m, n), nats per token."""
    out = w @ s.h
    weighed = s.fisher @ w if len(s.fisher) else s.g[:, None] * w
    return float((weighed * out).sum()) / 2


def cut_experts(state: dict[str, Tensor], model: PreTrainedModel, kept: Mapping[int, Tensor]) -> dict[str, Tensor]:
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
