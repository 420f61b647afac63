"""Structural pruning during training: the feed-forwards begin wide and lose the neurons that do least.

A neuron j of a feed-forward adds h_j down_j to the residual stream, h its activation (silu(gate x) up x, say). Its
saliency is
    mean |h_j| ||down_j||      over the tokens of a batch
and the least are taken out of gate, up and down, with the optimizer's memory of them; training goes on. Sources:
activation times outgoing norm as in Wanda (Sun et al., arXiv 2306.11695), for whole neurons as in Minitron
(2407.14679); here in the middle of training from nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sprat.golf.model import Decoder, FeedForward


def saliency(model: Decoder, ids: Tensor) -> dict[str, Tensor]:
    """Name of each feed-forward -> (inner,), on ids (batch, context)."""
    found: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, FeedForward):

            def hook(down: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                activity = inputs[0].detach().float().abs().flatten(0, -2).mean(0)
                norms = down.weight.detach().float().norm(dim=0)  # type: ignore[operator]
                found[name] = found.get(name, 0) + activity * norms

            hooks.append(module.down_proj.register_forward_pre_hook(hook))  # type: ignore[arg-type]
    with torch.no_grad():
        model(ids)
    for handle in hooks:
        handle.remove()
    return found


def kept(saliencies: Mapping[str, Tensor], inner: int) -> dict[str, Tensor]:
    """Name of each feed-forward -> the places of its `inner` neurons of the most saliency, ascending."""
    return {name: values.topk(inner).indices.sort().values for name, values in saliencies.items()}


def narrowed(name: str, tensor: Tensor, keep: Mapping[str, Tensor]) -> Tensor:
    """What is left of the parameter `name`, or of anything that has its shape, such as its momentum."""
    module, _, projection = name.removesuffix(".weight").rpartition(".")
    if module not in keep:
        return tensor
    return tensor.index_select(1 if projection == "down_proj" else 0, keep[module])
