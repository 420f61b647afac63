"""What the run layout is said to take, against what is packed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_predict import problem

from sprat import _core
from sprat.coding import entropy
from sprat.level.layout import fixed_layout, predicted_layout
from sprat.level.predict import Spread
from sprat.methods.metric import Metric
from sprat.methods.waterlevel import choose_steps, round_to_level
from sprat.recipe import Recipe
from sprat.sense.shrink import upper_factor


def packed_bytes(q: np.ndarray, threads: int = 1) -> int:
    row, column = (np.ones(n, np.float32) for n in q.shape)
    return _core.pack(np.ascontiguousarray(q), row, column, 0, threads, _core.Arena()).nbytes


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 70), st.integers(1, 20))
def test_what_no_level_changes_is_exact(rows, columns, threads):
    assert fixed_layout([(rows, columns)], threads) == packed_bytes(
        np.zeros((rows, columns), np.int16), threads
    )


@pytest.mark.parametrize("trellis", [0, 4])
@pytest.mark.parametrize("level", [0.002, 0.01, 0.1, 0.4, 0.8])
def test_predicted_against_packed(level, trellis):
    """Small maps whose deviations vary much: an entry has unlike weights in it, the widest of which decides."""
    w, h, g = problem(512, 384)
    recipe = Recipe(trellis=trellis)
    spread = Spread.of(choose_steps(w, upper_factor(h, "map").diagonal(), g, 1e-3, recipe), 1e-3)
    q = round_to_level(w, Metric(h, g), level, recipe, entropy.prior_tables()).q
    predicted = fixed_layout([q.shape], 1) + predicted_layout([spread], level, bool(trellis))
    assert predicted == pytest.approx(packed_bytes(q), rel=0.06)


def test_predictions_fall_with_the_level_to_nothing():
    w, h, g = problem(64, 48)
    spread = Spread.of(choose_steps(w, upper_factor(h, "map").diagonal(), g, 1e-3, Recipe(trellis=0)), 1e-3)
    found = [predicted_layout([spread], level, False) for level in 2.0 ** np.arange(-20, 12, 0.25)]
    assert np.all(np.diff(found) <= 1e-9)
    assert found[-1] == pytest.approx(0, abs=1e-6) and found[0] > 1.5 * spread.weights
