"""The inputs' second moments that GPTQ (and llama.cpp, of which it takes the diagonal) works with, as its authors
measure them, on the text that sprat would take.

H = E[x xᵀ] over all tokens, in float32. (sprat's own statistics leave the first token of a context out and are shrunk;
GPTQ brings its own damping, and rounds badly where the first token's massive activations were never seen.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sprat.progress import Progress
from sprat.recipe import Recipe
from sprat.sense.walk import working_dtype
from sprat.source.load import Source, load
from sprat.source.maps import groups
from sprat.source.text import calibration_ids

#: Contexts that pass through the model together.
BATCH = 4


class Moments:
    """H of every linear map by parameter name, and of the head; all in memory (0.4 GB for 135M parameters)."""

    def __init__(self, source: Source, ids: Tensor, progress: Progress):
        """ids: (contexts, context) int64."""
        found = groups(source.model)
        sums = [torch.zeros(group.width, group.width) for group in found]
        hooks = [_listen(group.maps[0].module, h) for group, h in zip(found, sums, strict=True)]
        base = source.model.base_model
        self.head: Tensor = torch.zeros(0)
        try:
            with torch.inference_mode():
                for start in range(0, len(ids), BATCH):
                    last = base(input_ids=ids[start : start + BATCH], use_cache=False).last_hidden_state
                    flat = last.flatten(0, 1).float()
                    self.head = self.head + flat.T @ flat if len(self.head) else flat.T @ flat
                    progress("second moments", min(start + BATCH, len(ids)), len(ids))
        finally:
            for hook in hooks:
                hook.remove()
        self.head = self.head / ids.numel()
        self.of = {m.name: h / ids.numel() for group, h in zip(found, sums, strict=True) for m in group.maps}


def fit_ids(source: Source, text: str, tokens: int, seed: int, progress: Progress) -> Tensor:
    """(contexts, context): the text of sprat's own fit, which its working precision writes.

    text: "self" or a file; tokens: 0 for as many as a default fit of this model takes.
    """
    recipe = Recipe()
    widest = max(group.width for group in groups(source.model))
    wanted = tokens or min(max(8 * widest, 16384), 65536)
    writer = load(source.ref, dtype=working_dtype()) if text == "self" else source
    return torch.as_tensor(calibration_ids(writer, text, wanted, recipe.context, seed, progress).ids)


def _listen(module: nn.Module, total: Tensor) -> torch.utils.hooks.RemovableHandle:
    """Add the second moments of what enters `module` to total: (n, n)."""

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        flat = args[0].flatten(0, -2).float()
        total.addmm_(flat.T, flat)

    return module.register_forward_pre_hook(keep)
