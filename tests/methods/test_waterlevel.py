"""The water level against a slow reference, and against what theory allows."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from problems import correlated

from sprat.coding import entropy
from sprat.methods.metric import Metric
from sprat.methods.waterlevel import MAX_SYMBOL, round_to_level
from sprat.recipe import Recipe

PRIOR = entropy.prior_tables()
BITS = PRIOR.bits(MAX_SYMBOL)


@pytest.mark.parametrize("level", [0.05, 0.7, 2.5])
@pytest.mark.parametrize("trellis", [0, 4, 8])
@pytest.mark.parametrize(("m", "n", "block"), [(1, 1, 64), (5, 24, 7), (17, 19, 19), (3, 40, 16), (2, 12, 1)])
def test_equals_the_reference(m: int, n: int, block: int, trellis: int, level: float) -> None:
    same_integers(Recipe(trellis=trellis, block=block), level, m, n)


@pytest.mark.parametrize("trellis", [0, 4])
@pytest.mark.parametrize(
    "off",
    [
        {"column_steps": False},
        {"row_steps": False},
        {"feedback": False},
        {"rate_weight": 0.0},
        {"rate_weight": 2.5},
        {"scale_resolution": 1},
        {"row_floor": 1.0},
        {"column_steps": False, "row_steps": False, "feedback": False, "rate_weight": 0.0},
    ],
    ids=str,
)
def test_equals_the_reference_whatever_is_switched_off(off: dict, trellis: int) -> None:
    same_integers(Recipe.from_dict({"trellis": trellis, "block": 10, **off}), 0.6, 6, 23)


def test_equals_the_reference_in_descending_order() -> None:
    same_integers(Recipe(trellis=0, order="descending", block=9), 0.6, 6, 23)


@pytest.mark.parametrize("trellis", [0, 4, 8])
def test_equals_the_reference_past_the_priced_symbols(trellis: int) -> None:
    q = same_integers(Recipe(trellis=trellis, block=5), 2e-3, 3, 12)
    assert np.abs(q).max() > 2 * MAX_SYMBOL


def same_integers(recipe: Recipe, level: float, m: int, n: int) -> np.ndarray:
    w, h, g = correlated(m, n, seed=n)
    got = round_to_level(w, Metric(h, g), level, recipe, PRIOR)
    want = reference.round_to_level(w.numpy(), h.numpy(), g.numpy(), level, recipe, BITS)
    assert got.trellis == recipe.trellis
    assert got.row.values() == pytest.approx(want.row, rel=1e-6)
    assert got.col.values() == pytest.approx(want.col, rel=1e-6)
    assert (got.q == want.q).all(), f"{(got.q != want.q).sum()} of {got.q.size} differ"
    return got.q
