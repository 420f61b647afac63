"""The smaller model: an ordinary one of the same family, with its config.

Parameters are renumbered and cut, nothing is computed: where the values of what stays should change is for `refit`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sprat.errors import SourceError
from sprat.methods.structure.anatomy import WIDTHS, Part, attention, feed_forward
from sprat.methods.structure.experts import cut_experts, set_count
from sprat.source.experts import unfuse
from sprat.source.maps import decoder_layers, head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Kept:
    """What stays. layers: indices, ascending; neurons, groups, experts: by layer of the original, as many in each;
    empty: all; tokens: (V',) ids of the embedding's rows, None for all."""

    layers: Sequence[int]
    neurons: Mapping[int, Tensor] = field(default_factory=dict)
    groups: Mapping[int, Tensor] = field(default_factory=dict)
    experts: Mapping[int, Tensor] = field(default_factory=dict)
    tokens: Tensor | None = None


def smaller(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """`model` without what is not in `kept`; shares no memory with it. SourceError where its family forbids it."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    state = dict(model.state_dict())
    prefix, layers = decoder_layers(model)
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    if kept.neurons:
        for layer, part in feed_forward(model).items():
            if layer in kept.neurons:
                _cut(state, part, [kept.neurons[layer]] * len(part.inner), kept.neurons[layer])
        _set_width(text, model, len(kept.neurons[kept.layers[0]]))
    if kept.groups:
        _cut_groups(state, model, kept.groups)
        count = len(kept.groups[kept.layers[0]])
        text.head_dim = attention(model)[0].inner[0].shape[0] // text.num_attention_heads
        text.num_attention_heads = text.num_attention_heads // text.num_key_value_heads * count
        text.num_key_value_heads = count
    if kept.experts:
        state = cut_experts(state, model, kept.experts)
        set_count(text, model, len(next(iter(kept.experts.values()))))
    if kept.tokens is not None:
        ends = head(model)
        for name in {ends.input_name, ends.output_name, ends.output_name.replace(".weight", ".bias")}:
            if name in state:
                state[name] = state[name][kept.tokens]
        text.vocab_size = len(kept.tokens)
    if len(kept.layers) < len(layers):
        state = _renumbered(state, prefix, kept.layers)
        for name, value in vars(text).items():
            if "layer" in name and isinstance(value, list) and len(value) == len(layers):
                setattr(text, name, [value[i] for i in kept.layers])
        text.num_hidden_layers = len(kept.layers)
    try:
        if hasattr(text, "validate"):
            text.validate()
        with no_init_weights():
            out = unfuse(AutoModelForCausalLM.from_config(config, dtype=model.dtype))
        out.tie_weights()
        out.load_state_dict(state)
    except Exception as error:  # each family's config has rules of its own, and errors of its own for them
        raise SourceError(
            f"{type(model).__name__} does not allow what would be left: {str(error).strip().splitlines()[-1].strip()}"
        ) from error
    return out.eval()


def _cut(state: dict[str, Tensor], part: Part, rows: Sequence[Tensor], columns: Tensor) -> None:
    """Only `rows` of each inner map and `columns` of the outer one."""
    for m, index in zip(part.inner, rows, strict=True):
        state[m.name] = state[m.name].index_select(1 if m.transposed else 0, index)
        bias = m.name.replace(".weight", ".bias")
        if bias in state:
            state[bias] = state[bias][index]
    state[part.outer.name] = state[part.outer.name].index_select(0 if part.outer.transposed else 1, columns)


def _cut_groups(state: dict[str, Tensor], model: PreTrainedModel, groups: Mapping[int, Tensor]) -> None:
    config = model.config.get_text_config()
    for layer, part in attention(model).items():
        if layer in groups:
            dim = part.inner[1].shape[0] // config.num_key_value_heads
            wide = spread(groups[layer], dim * config.num_attention_heads // config.num_key_value_heads)
            narrow = spread(groups[layer], dim)
            _cut(state, part, [wide, narrow, narrow], wide)


def spread(units: Tensor, size: int) -> Tensor:
    """The places of `units` of `size` each: (units · size,) int64."""
    return (units[:, None] * size + torch.arange(size)).flatten()


def _set_width(config: Any, model: PreTrainedModel, width: int) -> None:
    old = next(iter(feed_forward(model).values())).outer.shape[1]
    for name in WIDTHS:
        # GPT-2 writes None for four times the model's width.
        if hasattr(config, name) and getattr(config, name) in (old, None):
            setattr(config, name, width)
            return
    raise SourceError(
        f"{type(model).__name__}: its config does not say in one place how many neurons a layer has "
        f"(looked for {', '.join(WIDTHS)}): keep the recipe's `ffn` at 1"
    )


def _renumbered(state: dict[str, Tensor], prefix: str, layers: Sequence[int]) -> dict[str, Tensor]:
    out = {}
    new = {str(old): str(index) for index, old in enumerate(layers)}
    for name, tensor in state.items():
        if not name.startswith(f"{prefix}."):
            out[name] = tensor
            continue
        number, _, rest = name.removeprefix(f"{prefix}.").partition(".")
        if number in new:
            out[f"{prefix}.{new[number]}.{rest}"] = tensor
    return out
