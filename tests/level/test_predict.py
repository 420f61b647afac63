"""What a level is said to cost, against what rounding at it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sprat.coding import entropy
from sprat.level.curve import curve
from sprat.level.predict import EXCESS, Spread, echo, predicted_bits, predicted_kl, solve_level
from sprat.methods.metric import Metric
from sprat.methods.waterlevel import choose_steps, round_to_level
from sprat.recipe import Recipe
from sprat.sense.shrink import upper_factor


def problem(m: int = 256, n: int = 192) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gaussian weights, inputs with scales of their own and correlated with their neighbours, uneven rows."""
    rng = np.random.default_rng(1)
    scale = np.exp(rng.normal(size=n) / 2)
    h = 0.8 ** np.abs(np.subtract.outer(np.arange(n), np.arange(n))) * np.outer(scale, scale)
    return tuple(torch.tensor(x).float() for x in (rng.normal(size=(m, n)), h, np.exp(rng.normal(size=m))))


@pytest.mark.parametrize("trellis", [0, 4, 8])
@pytest.mark.parametrize(
    ("level", "bits_off", "kl_off"),
    [  # found, worst of the three: bits off, real KL over predicted
        (0.01, 0.01, 0.15),  # 0.4 %, 1.08
        (0.05, 0.01, 0.15),  # 0.7 %, 1.09
        (0.2, 0.015, 0.15),  # 0.9 %, 1.11
        (0.4, 0.02, 0.15),  # 1.4 %, 1.13
        (0.8, 0.04, 0.20),  # 2.8 %, 1.14: plain; trellises 0.7 %
    ],
)
def test_predicted_against_real(level: float, bits_off: float, kl_off: float, trellis: int) -> None:
    w, h, g = problem()
    recipe = Recipe(trellis=trellis)
    u = upper_factor(h, "map")
    steps = choose_steps(w, u.diagonal(), g, 1e-3, recipe)
    spreads = [Spread.of(steps, 1e-3, echo(u, steps))]  # measured at another level, as a fit does
    assert spreads[0].weights == w.numel()
    lattice = round_to_level(w, Metric(h, g), level, recipe, entropy.prior_tables())
    real = entropy.count([lattice]).entropy()
    error = (torch.from_numpy(lattice.dense()) - w).double()
    kl = 0.5 * float((((error @ h.double()) * error).sum(1) * g).sum())
    assert predicted_bits(spreads, level, curve(recipe)) / EXCESS == pytest.approx(real, rel=bits_off)
    assert kl == pytest.approx(predicted_kl(spreads, level, curve(recipe)), rel=kl_off)


def test_the_echo_is_what_feedback_adds() -> None:
    w, h, g = problem()
    u, recipe = upper_factor(h, "map").double(), Recipe(rate_weight=0.0, trellis=0)
    steps = choose_steps(w, u.diagonal(), g, 1e-3, recipe)
    column = steps.col.values().astype(np.float64)
    by_hand = [
        sum(float(u[i, j] / u[i, i]) ** 2 * column[i] ** 2 for i in range(j)) / column[j] ** 2
        for j in range(len(h))
    ]
    assert echo(u, steps) == pytest.approx(np.mean(by_hand), rel=1e-6) and echo(u, steps) > 0.1
    # What is rounded is w and the errors of the columns before it, each of variance 1/12 of its squared step.
    lattice = round_to_level(w, Metric(h, g), 1e-3, recipe, entropy.prior_tables())
    error = (torch.from_numpy(lattice.dense()) - w).double()
    fed = error @ (u.inverse() @ torch.diag(u.diagonal())).triu(1)  # errors made, less each column's own
    step = torch.from_numpy(np.outer(steps.row.values(), column))
    assert float((fed / step).square().mean()) * 12 == pytest.approx(np.mean(by_hand), rel=0.05)


@pytest.mark.parametrize("trellis", [0, 4])
def test_predictions_are_monotonic_and_additive(trellis: int) -> None:
    w, h, g = problem(32, 48)
    recipe, rates = Recipe(trellis=trellis), curve(Recipe(trellis=trellis))
    one = Spread.of(choose_steps(w, upper_factor(h, "map").diagonal(), g, 1e-3, recipe), 1e-3, 0.3)
    two = Spread.of(choose_steps(3 * w, upper_factor(h, "map").diagonal(), g, 0.1, recipe), 0.1)
    levels = 2.0 ** np.arange(-20, 8, 0.25)
    bits = [predicted_bits([one, two], level, rates) for level in levels]
    kl = [predicted_kl([one, two], level, rates) for level in levels]
    assert (np.diff(bits) <= 0).all() and (np.diff(kl) > -1e-9 * kl[-1]).all()
    apart = predicted_bits([one], 0.1, rates) + predicted_bits([two], 0.1, rates)
    assert predicted_bits([one, two], 0.1, rates) == pytest.approx(apart)
    # Every weight costs c² / 24 where the steps are fine (less under a trellis), its whole variance where not.
    fine = predicted_kl([one], 1e-4, rates) / (one.weights * 1e-8 / 24)
    assert fine == pytest.approx(0.81 if trellis else 1.0, rel=0.02)
    assert kl[-1] < 10 * kl[-20]


@pytest.mark.parametrize("pattern", ["1:3", "5:96"])
def test_a_curve_of_any_pattern(pattern: str) -> None:
    """Also of groups that do not divide the samples' columns: a coarser step still costs fewer bits."""
    found = curve(Recipe(sparsity=pattern))
    assert np.isfinite(found.bits).all() and np.isfinite(found.distortion).all()
    assert found.bits[0] < found.bits[30] < found.bits[-1]


def test_solve_level_inverts_a_falling_function() -> None:
    assert solve_level(lambda level: 1 / level, 250.0) == pytest.approx(0.004)
    assert solve_level(lambda level: 1 / level, 1e12) == pytest.approx(1e-8)
    assert solve_level(lambda level: 1 / level, 0.1) == pytest.approx(1.0)
