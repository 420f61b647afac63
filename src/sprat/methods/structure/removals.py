"""What a recipe removes of a model, and what this model does not have or allow."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sprat import sparsity
from sprat.errors import RecipeError, SourceError
from sprat.methods.structure import experts, vocabulary
from sprat.methods.structure.anatomy import Part, attention, feed_forward
from sprat.methods.structure.model import Kept, smaller
from sprat.methods.structure.tokens import always
from sprat.recipe import Recipe
from sprat.source.experts import mixtures
from sprat.source.load import Source
from sprat.source.maps import decoder_layers, groups


def asked(recipe: Recipe) -> dict[str, float]:
    """The recipe's settings that remove something, by name."""
    names = ("remove_layers", "ffn", "kv_heads", "experts", "vocabulary")
    return {name: getattr(recipe, name) for name in names}


def wanted(recipe: Recipe) -> bool:
    """Whether the recipe removes anything."""
    return asked(recipe) != asked(Recipe())


def needs_statistics(recipe: Recipe) -> bool:
    """Whether the choice asks for the original's statistics; layers are chosen without."""
    return wanted(replace(recipe, remove_layers=0))


def neurons(part: Part, recipe: Recipe) -> int:
    """How many of a feed-forward part stay: whole groups of the recipe's pattern of zeros, where it has one."""
    whole, group = part.outer.shape[1], sparsity.parse(recipe.sparsity).group
    group = group if 0 < group <= whole else 1  # a wider one is refused
    return max(1, min(math.floor(recipe.ffn * whole / group + 0.5), whole // group)) * group


def refuse(source: Source, recipe: Recipe) -> None:
    """RecipeError or SourceError for what this model does not have or allow, before anything long begins."""
    model = source.model
    layers = len(decoder_layers(model)[1])
    if recipe.remove_layers >= layers:
        raise RecipeError(
            f"recipe: remove_layers = {recipe.remove_layers} is not allowed: {source.name} has {layers} layers and "
            f"one must stay; it must be 0 to {layers - 1}"
        )
    if recipe.remove_layers and len(mixtures(model)) not in (0, layers):
        raise SourceError(
            f"{type(model).__name__}: {len(mixtures(model))} of its {layers} layers have experts, which its config "
            "tells by their numbers: keep the recipe's `remove_layers` at 0"
        )
    if recipe.experts:
        experts.refuse(model, recipe.experts, source.name)
    kept: dict[str, Any] = {}
    if recipe.ffn < 1:
        part = feed_forward(model)[0]
        kept["neurons"] = dict.fromkeys(range(layers), torch.arange(neurons(part, recipe)))
    if recipe.kv_heads:
        attention(model)
        heads = model.config.get_text_config().num_key_value_heads
        if recipe.kv_heads > heads:
            raise RecipeError(
                f"recipe: kv_heads = {recipe.kv_heads} is not allowed: {source.name} has {heads} key-value heads; it "
                f"must be 1 to {heads}, or 0 for all"
            )
        kept["groups"] = dict.fromkeys(range(layers), torch.arange(recipe.kv_heads))
    left = smaller(model, Kept([0], **kept)) if kept else model  # the family's own rules
    sparsity.parse(recipe.sparsity).check((g.name, g.width) for g in groups(left))
    if recipe.vocabulary:
        tokenizer = vocabulary.read(source.tokenizer_files["tokenizer.json"], source.name)
        none = np.zeros(len(model.get_input_embeddings().weight))  # type: ignore[arg-type]
        vocabulary.kept_tokens(tokenizer, none, recipe.vocabulary, always(source, tokenizer))
