"""Mixtures of experts: every expert as a small feed-forward of ordinary linear maps.

Transformers keeps the experts of a layer in two tensors, gate_up_proj (E, 2 I, H) and down_proj (E, H, I), and computes
    y = sum over the chosen e of w_e · down_e( act(gate_e x) ⊙ up_e x ).
`unfuse` puts `Experts` in the place of such a module: the same function of the same numbers, with a module and a name
for every map. The names are those that the family's checkpoints have ("experts.3.gate_proj", Mixtral's "experts.3.w1"),
which transformers' own table of conversions tells; the router stays transformers' own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sprat.errors import SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: What every refusal ends with.
SUPPORTED = (
    "supported are mixtures of gated experts without biases, which the family's checkpoints name one by one (Mixtral, "
    "OLMoE, Qwen2-MoE, Qwen3-MoE, DeepSeek-V3 and the like)"
)
#: Of a mixture's forward pass.
ARGUMENTS = ("hidden_states", "top_k_index", "top_k_weights")
#: What configs call the number of experts.
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


class Expert(nn.Module):
    """down(act(gate x) ⊙ up x)"""

    def __init__(self, names: Sequence[str], weights: Sequence[Tensor], activation: nn.Module):
        """names, weights: of gate (I, H), up (I, H) and down (H, I), whose memory is used as it is."""
        super().__init__()
        self.names = tuple(names)
        for name, weight in zip(names, weights, strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(weight)
            self.add_module(name, linear)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (self.get_submodule(name) for name in self.names)
        return down(self.activation(gate(x)) * up(x))


class Experts(nn.ModuleList):
    """The experts of one layer, called as the fused module was."""

    def __init__(self, experts: Sequence[Expert], chosen: int):
        super().__init__(experts)
        self.chosen = chosen
        self.all = False

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states: (tokens, H); top_k_index, top_k_weights: (tokens, chosen)."""
        out = torch.zeros_like(hidden_states)
        if self.all:
            size = len(hidden_states), len(self)
            weights = top_k_weights.new_zeros(size).scatter(1, top_k_index, top_k_weights)
            served = hidden_states.new_zeros(size).scatter(1, top_k_index, 1.0)
            for index, expert in enumerate(self):
                found = expert(hidden_states * served[:, index, None]) * weights[:, index, None]
                out = out + found.to(out.dtype)
            return out
        for index in top_k_index.unique().tolist():
            tokens, place = (top_k_index == index).nonzero(as_tuple=True)
            found = self[index](hidden_states[tokens]) * top_k_weights[tokens, place, None]
            out = out.index_add(0, tokens, found.to(out.dtype))
        return out


@contextmanager
def all_called(model: nn.Module) -> Iterator[None]:
    """Every expert is called with every token, or zeros in its place, which it maps to zeros.

    So each is called once in a pass, gate and up share their input, and sums over what enters it are sums over the
    tokens that it serves. Outside of this an expert computes its own tokens only.
    """
    mixtures = [module for module in model.modules() if isinstance(module, Experts)]
    try:
        for mixture in mixtures:
            mixture.all = True
        yield
    finally:
        for mixture in mixtures:
            mixture.all = False


@contextmanager
def routed_like(original: nn.Module, other: nn.Module) -> Iterator[None]:
    """The mixtures of `other` take the experts, and their weights, that `original` chose in its last pass."""
    hooks = []
    for first, second in zip(mixtures(original).values(), mixtures(other).values(), strict=True):
        routing: dict[str, Tensor] = {}

        def note(_, args: tuple[Any, ...], kwargs: dict[str, Any], to: dict[str, Tensor] = routing) -> None:
            to.update(dict(zip(ARGUMENTS, args, strict=False)) | kwargs)

        def follow(_, args: tuple[Any, ...], kwargs: dict[str, Any], of: dict[str, Tensor] = routing) -> Any:
            given = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
            return (), {**of, "hidden_states": given["hidden_states"]}

        hooks.append(first.register_forward_pre_hook(note, with_kwargs=True))
        hooks.append(second.register_forward_pre_hook(follow, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def unfuse(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with `Experts` for every fused module, in place; one without such modules stays as it is.

    The parameters are views of the fused tensors. SourceError for a mixture whose experts are of another kind.
    """
    fused: list[tuple[str, Any]] = [(n, m) for n, m in model.named_modules() if _fused(m)]
    chosen = getattr(model.config.get_text_config(), "num_experts_per_tok", 1)
    for name, module in fused:
        names = _names(model)
        if names is None or not _plain(module):
            raise SourceError(
                f"{type(model).__name__}: the experts of {name} are not of a supported kind; {SUPPORTED}"
            )
        up, down = module.gate_up_proj.detach(), module.down_proj.detach()
        inner = down.shape[2]
        experts = [
            Expert(names, (u[:inner], u[inner:], d), module.act_fn) for u, d in zip(up, down, strict=True)
        ]
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, Experts(experts, chosen).train(module.training))
    return model


def mixtures(model: nn.Module) -> dict[str, Experts]:
    """The unfused mixtures by the name of their module ("model.layers.0.mlp.experts")."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Experts)}


def router(model: nn.Module, mixture: str) -> dict[str, Tensor]:
    """What chooses the experts of `mixture`: every parameter and buffer beside it with a row or a number for each."""
    stem, count = mixture.rpartition(".")[0], len(mixtures(model)[mixture])
    own = re.compile(r"(gate|router)\.|[^.]*$")  # the block's own, or of its router, not of a shared expert
    return {
        f"{stem}.{name}": tensor
        for name, tensor in model.get_submodule(stem).state_dict(keep_vars=True).items()
        if own.match(name) and tensor.ndim and len(tensor) == count
    }


def hub_names(kind: str) -> Callable[[str], str]:
    """What checkpoints of the model_type `kind` call a parameter of a model with mixtures."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    changes = [c for c in get_checkpoint_conversion_mapping(kind) or [] if isinstance(c, WeightRenaming)]
    back = [change.reverse_transform() for change in reversed(changes)]

    def renamed(name: str) -> str:
        for change in back:
            name, _ = change.rename_source_key(name)
        return name

    return renamed


def _fused(module: nn.Module) -> bool:
    weight = getattr(module, "gate_up_proj", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 3


def _plain(module: Any) -> bool:
    """Whether the fused module holds what `Experts` computes, by what transformers' decorator says of its layout."""
    count, width, inner = module.down_proj.shape
    gate = getattr(type(module), "_apply_gate", None)
    return (
        tuple(module.gate_up_proj.shape) == (count, 2 * inner, width)
        and {name for name, _ in module.named_parameters()} == {"gate_up_proj", "down_proj"}
        and getattr(gate, "__module__", "").startswith("transformers.integrations")  # else the family's own
        and getattr(module, "has_gate", True)
        and getattr(module, "is_concatenated", True)
        and not any(getattr(module, f, False) for f in ("has_bias", "is_transposed", "has_post_expert_norm"))
    )


def _names(model: PreTrainedModel) -> tuple[str, str, str] | None:
    """What the family's checkpoints call gate, up and down of an expert; None where they are not named one by one."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    found: dict[str, list[str]] = {}
    for change in get_checkpoint_conversion_mapping(model.config.get_text_config().model_type) or []:
        for target in change.target_patterns:
            parts = [re.search(r"experts\.\*\.(\w+)\.weight$", source) for source in change.source_patterns]
            found[target.rpartition(".")[2]] = [part[1] for part in parts if part]
    names = [*found.get("gate_up_proj", []), *found.get("down_proj", [])]
    return (names[0], names[1], names[2]) if len(names) == 3 else None
