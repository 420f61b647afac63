"""The model-level check: the KL on calibration text that the statistics never saw, beside the prediction."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sprat.coding.tensors import Entry, expand
from sprat.prove.metrics import compare
from sprat.prove.text import Contexts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def rebuilt(model: nn.Module, entries: Mapping[str, Entry]) -> nn.Module:
    """A copy of `model` with what `entries` stand for in it."""
    out = copy.deepcopy(model)
    parameters = dict(out.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name in entries:
            for parameter, array in expand({name: entries[name]}).items():
                parameters[parameter].copy_(torch.from_numpy(array))
    return out


def held_out_kl(original: PreTrainedModel, entries: Mapping[str, Entry], ids: Tensor) -> float:
    """KL(original || rounded) in nats per token over the second halves of `ids`: (contexts, context) int64."""
    return kl_between(original, rebuilt(original, entries), ids)


def kl_between(original: nn.Module, other: nn.Module, ids: Tensor) -> float:
    """KL(original || other) in nats per token over the second halves of `ids`: (contexts, context) int64."""
    contexts = Contexts(ids.numpy(), np.ones(len(ids)), ids.shape[1] // 2)
    return float(compare(original, other, contexts).kl.mean())
