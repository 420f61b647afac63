"""Rounding a target, and not believing statistics that held-out inputs contradict."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sprat.coding import entropy
from sprat.level.rounding import DISTRUST, Rounded, distortion_ratio, round_target
from sprat.level.targets import Target
from sprat.methods import METHODS
from sprat.methods.metric import Metric
from sprat.recipe import Recipe

PRIOR = entropy.prior_tables()


def target(tokens: int, n: int = 96, held_out: int = 256, kind: float = 1.0, m: int = 40) -> Target:
    """White weights over correlated inputs, H from `tokens` of them; held-out ones are `kind` times as large."""
    rng = torch.Generator().manual_seed(0)
    mix = torch.eye(n) + torch.randn(n, n, generator=rng) / 4
    x = torch.randn(tokens, n, generator=rng) @ mix
    probes = kind * torch.randn(held_out, n, generator=rng) @ mix
    w, g = torch.randn(m, n, generator=rng), torch.rand(m, generator=rng) + 0.5
    return Target(
        "map", ("a", "b"), (m // 4, m - m // 4), False, w, x.T @ x / tokens, g, None, probes, tokens, 0
    )


def rounded(t: Target, recipe: Recipe, level: float = 0.5) -> Rounded:
    done = Rounded({}, entropy.Counts.none())
    round_target(done, t, level, recipe, PRIOR, 1, t.metric(recipe))
    return done


def test_statistics_of_many_tokens_tell_the_truth() -> None:
    done = rounded(target(20_000), Recipe(shrinkage=1.0))
    assert done.ratios["map"] == pytest.approx(1, abs=0.1)
    entry = done.entries["map"]
    assert (entry.maps, entry.rows) == (("a", "b"), (10, 30))
    assert done.counts.symbols.sum() == 40 * 96


@pytest.mark.parametrize("tokens", [24, 48, 90])
def test_few_tokens_are_found_out_and_mended(tokens: int) -> None:
    """With almost no shrinkage H is nearly singular and the rounding hides its error where nothing was seen."""
    t = target(tokens)
    believed = Recipe(shrinkage=1e-3)
    h = t.metric(believed).h
    lattice = METHODS["waterlevel"](t.w, Metric(h, t.g), 0.5, believed, PRIOR, 1)
    naive = distortion_ratio(t, lattice, h)
    mended = rounded(t, believed).ratios["map"]
    assert mended < naive / 2 and naive > 4 * DISTRUST
    assert rounded(t, Recipe()).ratios["map"] < DISTRUST


def test_the_ratio_is_what_it_says() -> None:
    t = target(500, kind=3.0)
    recipe = Recipe(trellis=0)
    done = rounded(t, recipe)
    lattice = done.entries["map"].tensor
    error = lattice.dense() - t.w.numpy()
    real = ((t.probes.numpy() @ error.T) ** 2 * t.g.numpy()).sum(1).mean()
    h = t.metric(recipe, 64 * recipe.shrinkage).h.numpy()
    said = float(np.einsum("i,ij,jk,ik->", t.g.numpy(), error, h, error))
    assert done.ratios["map"] == pytest.approx(real / said, rel=1e-3)
    assert done.ratios["map"] > DISTRUST  # inputs of another kind: no shrinkage mends that


def test_nothing_held_out_is_believed() -> None:
    assert rounded(target(30, held_out=0), Recipe()).ratios["map"] == 1.0
