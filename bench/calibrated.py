"""The inputs' second moments of every map, from sprat's own `sense`: GPTQ is given what sprat works with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sprat.level.targets import Targets
from sprat.progress import Progress
from sprat.recipe import Recipe
from sprat.sense.cache import Cache
from sprat.sense.statistics import HeadStatistics, measure
from sprat.sense.walk import Walk, working_dtype
from sprat.source.load import load
from sprat.source.maps import groups
from sprat.source.text import calibration_ids


class Moments:
    """H of every linear map by parameter name, a layer in memory at a time."""

    def __init__(self, model: str, text: str, tokens: int, seed: int, folder: Path, progress: Progress):
        """text: "self" or a file; tokens: as many as a default fit of this model takes where it is 0."""
        source = load(model, dtype=working_dtype())
        recipe = Recipe()
        widest = max(g.width for g in groups(source.model))
        wanted = (tokens or min(max(8 * widest, 16384), 65536)) + recipe.held_out * recipe.context
        found = calibration_ids(source, text, wanted, recipe.context, seed, progress)
        self.tokens = found.tokens - recipe.held_out * recipe.context
        key = {"model": source.hash, "text": found.hash, "held_out": recipe.held_out, "seed": seed}
        cache = Cache(key, folder / "statistics")
        ids = torch.as_tensor(found.ids)
        measure(
            Walk(source.model, ids),
            groups(source.model),
            cache,
            held_out=recipe.held_out,
            seed=seed,
            progress=progress,
        )
        self.targets = Targets(source, cache, recipe)

    def layers(self) -> range:
        return self.targets.layers()

    def layer(self, index: int) -> list[tuple[tuple[str, ...], Tensor]]:
        """(names of the parameters that share an input, its H as measured) of one layer."""
        return [(target.parameters, target.h) for target in self.targets.layer(index)]

    def head(self) -> Tensor:
        """H of the final hidden states."""
        found: HeadStatistics = self.targets.cache.get("head", HeadStatistics)["head"]
        return found.h
