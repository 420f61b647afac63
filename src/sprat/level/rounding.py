"""Rounding a whole model at one level, and what its statistics say of the result."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sprat.coding import entropy
from sprat.coding.tensors import Entry, Stored, lattices
from sprat.level.curve import curve
from sprat.level.predict import Spread, echo
from sprat.level.targets import Target, Targets
from sprat.methods import METHODS, SETTLED
from sprat.methods.waterlevel import choose_steps
from sprat.progress import Progress, silent
from sprat.recipe import Recipe

#: Real distortion on held-out inputs over the predicted one, above which a group's statistics are not believed.
DISTRUST = 2.0


@dataclass
class Rounded:
    """The model at one level."""

    entries: dict[str, Entry]
    counts: entropy.Counts
    ratios: dict[str, float] = field(default_factory=dict)
    """Target -> held-out distortion over predicted distortion; 1 where the statistics told the truth."""
    kl: float = 0.0
    """½ Σ tr(G ΔW H ΔWᵀ), nats per token that the statistics predict of what no level changes (methods.SETTLED)."""


def spreads(targets: Targets, level: float, recipe: Recipe, progress: Progress = silent) -> list[Spread]:
    """What `level.predict` needs, from one pass over the targets that a level changes."""
    out = []
    for done, index in enumerate(targets.layers() if recipe.method not in SETTLED else (), 1):
        for target in targets.layer(index):
            out.append(_spread(targets, target, level, recipe))
        progress("step sizes", done, len(targets.layers()))
    out.extend(_spread(targets, target, level, recipe) for target in targets.embeddings())
    return out


def _spread(targets: Targets, target: Target, level: float, recipe: Recipe) -> Spread:
    recipe = target.own(recipe)
    u = targets.factor(target)
    steps = choose_steps(target.w, u.diagonal(), target.g, level, recipe)
    return Spread.of(steps, level, echo(u, steps) if recipe.feedback else 0.0, curve(recipe))


def round_layers(
    targets: Targets, level: float, recipe: Recipe, tables: entropy.Tables, progress: Progress = silent
) -> Rounded:
    """Round every target of the layers on the statistics of the original model."""
    done = Rounded({}, entropy.Counts.none())
    threads = torch.get_num_threads()
    for number, index in enumerate(targets.layers(), 1):
        for target in targets.layer(index):
            round_target(done, target, level, recipe, tables, threads, targets.factor(target))
        progress("rounding", number, len(targets.layers()) + 1)
    return done


def round_model(
    targets: Targets,
    level: float,
    recipe: Recipe,
    tables: entropy.Tables,
    progress: Progress = silent,
    layers: Rounded | None = None,
) -> Rounded:
    """Round every target; layers: as `round_layers` gave them, where no level changes them."""
    if layers is None:
        layers = round_layers(targets, level, recipe, tables, progress)
    done = replace(layers, entries={**layers.entries}, ratios={**layers.ratios})
    for target in targets.embeddings():
        round_target(done, target, level, recipe, tables, torch.get_num_threads(), targets.factor(target))
    total = len(targets.layers()) + 1
    progress("rounding", total, total)
    return done


def round_target(
    done: Rounded,
    target: Target,
    level: float,
    recipe: Recipe,
    tables: entropy.Tables,
    threads: int,
    u: Tensor | None = None,
) -> Stored:
    """Round one target into `done`; where held-out inputs contradict the statistics, again with more shrinkage.

    u: the factor of its metric with the recipe's shrinkage, where that is known.
    """
    recipe = target.own(recipe)
    method = METHODS[recipe.method]
    strength = recipe.shrinkage
    while True:
        h = target.metric(strength)
        stored = method(target.w, h, target.g, level, recipe, tables, target.name, threads, u)
        ratio = distortion_ratio(target, stored, h)
        if ratio <= DISTRUST or strength >= 64 * recipe.shrinkage:
            break
        strength, u = strength * 4, None
    done.entries[target.name] = target.entry(stored)
    done.counts = done.counts + entropy.count(lattices(stored), threads)
    done.ratios[target.name] = ratio
    if recipe.method in SETTLED:
        done.kl += predicted_loss(target, stored, h) / 2
    return stored


def predicted_loss(target: Target, stored: Stored, h: Tensor) -> float:
    """tr(G ΔW H ΔWᵀ) for h: (n, n)."""
    error = (torch.from_numpy(stored.dense()) - target.w) * target.g.clamp_min(0).sqrt()[:, None]
    return float(((error @ h) * error).sum())


def distortion_ratio(target: Target, stored: Stored, h: Tensor) -> float:
    """Σ g ‖ΔW x‖² over held-out inputs, divided by what h says; 1 where nothing was held out."""
    if not len(target.probes):
        return 1.0
    error = (torch.from_numpy(stored.dense()) - target.w) * target.g.sqrt()[:, None]
    real = (target.probes.float() @ error.T).square().sum() / len(target.probes)
    predicted = ((error @ h) * error).sum()
    return float(real / predicted.clamp_min(1e-30))
