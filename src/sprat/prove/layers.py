"""Which layer the damage comes from: the original with one layer of the compressed model in it at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from sprat.progress import Progress, silent
from sprat.prove.metrics import distribution, divergence, forward_of
from sprat.prove.text import Contexts

if TYPE_CHECKING:
    import torch

#: Contexts that each layer is measured on, where there are so many.
CONTEXTS = 4


def by_layer(
    original: torch.nn.Module,
    compressed: torch.nn.Module,
    contexts: Contexts,
    progress: Progress = silent,
    count: int = CONTEXTS,
) -> list[dict[str, Any]]:
    """[{name, kl}]: mean KL in nats a token where this layer alone is the compressed one.

    "embedding" is what lies in no layer: embedding, head and final norm. Measured on `count` contexts, spread
    evenly. `original` is itself again afterwards.
    """
    import torch

    groups = _groups(original)
    totals = dict.fromkeys(groups, 0.0)
    places = np.unique(np.linspace(0, len(contexts.ids) - 1, count).round().astype(int)).tolist()
    forward, scored = forward_of(original, contexts.skip), contexts.mask.sum(axis=1)
    done, steps = 0, len(places) * len(groups)
    with torch.inference_mode():
        for i in places:
            ids = torch.from_numpy(contexts.ids[i, : contexts.skip + 1 + scored[i]])[None]
            reference = distribution(forward(ids), "original")
            for name, parameters in groups.items():
                with _swapped(original, compressed, parameters):
                    changed = distribution(forward(ids), "compressed")
                totals[name] += float(divergence(reference, changed).sum())
                done += 1
                progress("replacing one layer at a time", done, steps)
    return [{"name": name, "kl": total / int(scored[places].sum())} for name, total in totals.items()]


def _groups(model: torch.nn.Module) -> dict[str, list[str]]:
    """Names of parameters by where they lie, in the order of the model."""
    groups: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        layer = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.", name)
        groups.setdefault(f"layer {layer[1]}" if layer else "embedding", []).append(name)
    return groups


@contextmanager
def _swapped(model: torch.nn.Module, other: torch.nn.Module, names: list[str]) -> Iterator[None]:
    """`model` with the parameters `names` of `other`; no values are copied."""
    theirs = dict(other.named_parameters(remove_duplicate=False))
    kept = {name: model.get_parameter(name).data for name in names}
    try:
        for name in names:
            model.get_parameter(name).data = theirs[name].data
        yield
    finally:
        for name, data in kept.items():
            model.get_parameter(name).data = data
