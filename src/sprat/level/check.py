"""The model-level check: the KL on calibration text that the statistics never saw, beside the prediction."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sprat.coding.tensors import Entry, expand
from sprat.prove.metrics import compare
from sprat.prove.text import Contexts
from sprat.source.experts import mixtures, routed_like

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound=nn.Module)


def rebuilt(model: Model, entries: Mapping[str, Entry]) -> Model:
    """A copy of `model` with what `entries` stand for in it."""
    out = copy.deepcopy(model)
    parameters = out.state_dict(keep_vars=True)  # buffers that the file holds too
    with torch.no_grad():
        for name in entries:
            for parameter, array in expand({name: entries[name]}).items():
                parameters[parameter].copy_(torch.from_numpy(array))
    return out


def held_out_kl(
    original: PreTrainedModel, entries: Mapping[str, Entry], ids: Tensor, base: PreTrainedModel | None = None
) -> float:
    """KL(original || rounded) in nats per token over the second halves of `ids`: (contexts, context) int64.

    base: the model that `entries` are of, where that is not `original` itself.
    """
    return kl_between(original, rebuilt(base or original, entries), ids)


def routed_kl(original: PreTrainedModel, entries: Mapping[str, Entry], ids: Tensor) -> float | None:
    """As `held_out_kl`, every token routed to the experts that it has in the original; None without experts.

    Which experts a token gets is no smooth function of the weights: no statistics predict what another choice costs.
    """
    if not mixtures(original):
        return None
    other = rebuilt(original, entries)
    with routed_like(original, other):
        return kl_between(original, other, ids)


def kl_between(original: nn.Module, other: nn.Module, ids: Tensor) -> float:
    """KL(original || other) in nats per token over the second halves of `ids`: (contexts, context) int64."""
    contexts = Contexts(ids.numpy(), np.ones(len(ids)), ids.shape[1] // 2)
    return float(compare(original, other, contexts).kl.mean())


@dataclass(frozen=True)
class Passage:
    """Text in one model's tokens. ids: (n,) int64; the `nbytes` bytes of those from `start` on are scored."""

    ids: Tensor
    start: int
    nbytes: int


def bits_per_byte(model: nn.Module, passages: Sequence[Passage]) -> float:
    """What models that cut text into different tokens can be compared by, on passages of the same text."""
    nats = 0.0
    with torch.inference_mode():
        for passage in passages:
            logits = model(input_ids=passage.ids[None], use_cache=False).logits[0, passage.start - 1 : -1]
            logs = logits.float().log_softmax(-1)
            nats -= float(logs.gather(1, passage.ids[passage.start :, None]).sum(dtype=torch.float64))
    return nats / math.log(2) / sum(passage.nbytes for passage in passages)
