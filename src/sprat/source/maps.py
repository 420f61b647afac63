"""The linear maps of a model, found by its module tree and one tiny forward pass, never by a list of names.

A map is an `nn.Linear` (weight (out, in)) or GPT-2's `Conv1D` (weight (in, out)). Maps whose input is the
very same tensor (q/k/v, gate/up) share their input statistics and form a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sprat.errors import SourceError
from sprat.source.experts import SUPPORTED, all_called, mixtures, router

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Map:
    """One linear map y = W x, W: (out, in)."""

    name: str
    """The Hugging Face name of its weight ("model.layers.0.self_attn.q_proj.weight")."""
    module: nn.Module
    transposed: bool
    """The module keeps its weight as (in, out)."""

    @property
    def parameter(self) -> nn.Parameter:
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        rows, columns = self.parameter.shape
        return (columns, rows) if self.transposed else (rows, columns)

    def weight(self) -> torch.Tensor:
        """W: (out, in), a view of the parameter's own memory without gradient."""
        data = self.parameter.detach()
        return data.T if self.transposed else data

    def set(self, w: torch.Tensor) -> None:
        """Overwrite the weight in place; `w`: (out, in), any dtype."""
        with torch.no_grad():
            self.weight().copy_(w)


@dataclass(frozen=True)
class Group:
    """Maps that read the same input: one H serves them all."""

    maps: tuple[Map, ...]
    layer: int | None
    """The decoder layer they lie in; None outside all layers."""
    uses: tuple[int, ...] = ()
    """The decoder layers whose forward pass calls them: more than one where layers share their maps."""
    mixture: str = ""
    """The mixture whose expert they are of ("model.layers.0.mlp.experts"); "" for none."""
    share: float = 1.0
    """Of all tokens that reach them; of those of an expert, on average over its mixture."""

    @property
    def name(self) -> str:
        return self.maps[0].name

    @property
    def width(self) -> int:
        """in_features"""
        return self.maps[0].shape[1]


@dataclass(frozen=True)
class Head:
    """Where tokens enter and leave a model."""

    output: nn.Module
    output_name: str
    input: nn.Module
    input_name: str
    tied: bool
    """One parameter serves both; its name in the file is `input_name`."""


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The repeated blocks: the ModuleList that holds the most parameters, and its name ("model.layers")."""
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise SourceError(
            f"{_architecture(model)}: no repeated blocks found (no ModuleList in its module tree), "
            "so it is not a decoder that sprat can read"
        )
    return max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))


def head(model: PreTrainedModel) -> Head:
    """The output and the input embedding."""
    output, tokens = model.get_output_embeddings(), model.get_input_embeddings()
    if not isinstance(output, nn.Module) or not isinstance(tokens, nn.Module):
        raise SourceError(f"{_architecture(model)}: no output embedding: it is no causal language model")
    names = {id(module): name for name, module in model.named_modules()}
    return Head(
        output,
        f"{names[id(output)]}.weight",
        tokens,
        f"{names[id(tokens)]}.weight",
        output.weight is tokens.weight,
    )


def linear_maps(model: PreTrainedModel) -> list[Map]:
    """Every linear map that the model's forward pass uses, in forward order, without the output embedding."""
    return [m for group in groups(model) for m in group.maps]


def groups(model: PreTrainedModel) -> list[Group]:
    """The maps by shared input, in forward order.

    Raises `SourceError` for a model whose layers hold weights that are no linear maps (fused experts of another kind
    than source.experts knows, say), or maps that a forward pass does not reach.
    """
    prefix, layers = decoder_layers(model)
    output, shares = head(model).output, {n: m.chosen / len(m) for n, m in mixtures(model).items()}
    # A router is next to nothing of a model, and what it chooses is no smooth function of it: it is not rounded.
    routers = {name for mixture in shares for name in router(model, mixture)}
    maps = {
        name: Map(f"{name}.weight", module, isinstance(module, Conv1D))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output and f"{name}.weight" not in routers
    }
    _refuse_other_weights(model, layers, prefix, maps)
    found: dict[Any, list[Map]] = {}
    uses: dict[str, list[int]] = {}
    for name, key, used in _trace(model, layers, maps):
        found.setdefault(key, []).append(maps[name])
        uses[maps[name].name] = used
    reached = {m.name for members in found.values() for m in members}
    if lost := [m.name for n, m in maps.items() if n.startswith(f"{prefix}.") and m.name not in reached]:
        raise SourceError(
            f"{_architecture(model)}: a forward pass does not reach {_some(lost)}: it chooses between maps in a way of "
            f"its own; {SUPPORTED}"
        )
    return [_group(members, prefix, uses[members[0].name], shares) for members in found.values()]


def layer_groups(groups: list[Group]) -> dict[int, list[Group]]:
    """The groups by decoder layer."""
    out: dict[int, list[Group]] = {}
    for group in groups:
        if group.layer is not None:
            out.setdefault(group.layer, []).append(group)
    return out


def _group(members: list[Map], prefix: str, uses: list[int], shares: dict[str, float]) -> Group:
    name = members[0].name
    parent = name.rsplit(".", 3)[0]
    mixture = parent if parent in shares else ""
    return Group(tuple(members), _layer(name, prefix), tuple(uses), mixture, shares.get(mixture, 1.0))


def tables(model: PreTrainedModel) -> dict[str, nn.Embedding]:
    """Embeddings beside the token's that the model itself wants rounded as such, by the name of their weights."""
    wanted = getattr(model, "rounded_tables", ())
    return {f"{name}.weight": module for name, module in model.named_modules() if name in wanted}  # type: ignore[misc]


def _trace(
    model: PreTrainedModel, layers: nn.ModuleList, maps: dict[str, Map]
) -> list[tuple[str, Any, list[int]]]:
    """(module name, identity of its input, decoder layers that call it) for every map, in the order of first calls."""
    calls: dict[str, tuple[Any, list[int]]] = {}
    alive: list[torch.Tensor] = []  # while an input lives, no other tensor can have its address
    within: list[int] = []

    def hook(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0]
            alive.append(x)
            key = (x.data_ptr(), tuple(x.shape), x.stride(), x._version)
            uses = calls.setdefault(name, (key, []))[1]
            if within[-1:] != uses[-1:]:
                uses += within[-1:]

        return note

    handles = [m.module.register_forward_pre_hook(hook(name)) for name, m in maps.items()]
    for index, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(lambda *_, i=index: within.append(i)))
        handles.append(layer.register_forward_hook(lambda *_: within.clear()))
    try:
        with torch.no_grad(), evaluating(model), all_called(model):
            device = next(model.parameters()).device
            model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [(name, key, uses) for name, (key, uses) in calls.items()]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model without dropout, its mode restored afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _refuse_other_weights(
    model: PreTrainedModel, layers: nn.ModuleList, prefix: str, maps: dict[str, Map]
) -> None:
    """Weights that are no linear map must be few and small (norms, biases, short convolutions)."""
    mapped = {id(m.parameter) for m in maps.values()}
    fused, rest = [], []
    for module_name, module in layers.named_modules(prefix=prefix):
        for name, parameter in module.named_parameters(prefix=module_name, recurse=False):
            if id(parameter) in mapped:
                continue
            rest.append((parameter.numel(), name))
            if parameter.ndim > 2 and not isinstance(module, _CONVOLUTIONS):
                fused.append(name)
    if fused:
        raise SourceError(
            f"{_architecture(model)}: {_some(fused)} hold several maps in one tensor; {SUPPORTED}"
        )
    total = sum(p.numel() for p in layers.parameters())
    if sum(size for size, _ in rest) > total / 2:
        names = [name for _, name in sorted(rest, reverse=True)]
        raise SourceError(
            f"{_architecture(model)}: most of its weights are no linear maps ({_some(names)}); "
            "supported is any causal language model whose maps are nn.Linear or Conv1D"
        )


def _layer(name: str, prefix: str) -> int | None:
    rest = name.removeprefix(f"{prefix}.")
    return int(rest.partition(".")[0]) if rest != name else None


def _architecture(model: nn.Module) -> str:
    return type(model).__name__


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
