"""What a level is said to cost, against what rounding at it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sprat.coding import entropy
from sprat.level.predict import Spread, predicted_bits, predicted_kl, solve_level
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
        (0.01, 0.01, 0.10),  # 7.9 bits: 0.2 %, 1.08
        (0.05, 0.01, 0.08),  # 5.6 bits: 0.3 %, 1.06
        (0.2, 0.02, 0.08),  # 3.7 bits: 1.1 %, 1.06
        (0.4, 0.04, 0.20),  # 2.7 bits: 2.9 %, 1.15
        (
            0.8,
            0.10,
            0.50,
        ),  # 1.8 bits: 8.6 %, 1.42: pricing the bits leaves fewer of them, and more distortion
    ],
)
def test_predicted_against_real(level: float, bits_off: float, kl_off: float, trellis: int) -> None:
    w, h, g = problem()
    recipe = Recipe(trellis=trellis)
    steps = choose_steps(w, upper_factor(h, "map").diagonal(), g, 1e-3, recipe)
    spreads = [Spread.of(steps, 1e-3)]  # measured at another level, as a fit does
    assert spreads[0].weights == w.numel()
    lattice = round_to_level(w, h, g, level, recipe, entropy.prior_tables())
    real = entropy.count([lattice]).entropy()
    assert predicted_bits(spreads, level, bool(trellis)) == pytest.approx(real, rel=bits_off)
    error = (torch.from_numpy(lattice.dense()) - w).double()
    kl = 0.5 * float((((error @ h.double()) * error).sum(1) * g).sum())
    assert kl == pytest.approx(predicted_kl(spreads, level, bool(trellis)), rel=kl_off)


@pytest.mark.parametrize("trellis", [False, True])
def test_predictions_are_monotonic_and_additive(trellis: bool) -> None:
    w, h, g = problem(32, 48)
    recipe = Recipe(trellis=4 * trellis)
    one = Spread.of(choose_steps(w, upper_factor(h, "map").diagonal(), g, 1e-3, recipe), 1e-3)
    two = Spread.of(choose_steps(3 * w, upper_factor(h, "map").diagonal(), g, 0.1, recipe), 0.1)
    levels = 2.0 ** np.arange(-20, 8, 0.25)
    bits = [predicted_bits([one, two], level, trellis) for level in levels]
    kl = [predicted_kl([one, two], level, trellis) for level in levels]
    assert (np.diff(bits) <= 0).all() and (np.diff(kl) > 0).all()
    apart = predicted_bits([one], 0.1, trellis) + predicted_bits([two], 0.1, trellis)
    assert predicted_bits([one, two], 0.1, trellis) == pytest.approx(apart)
    # Every weight costs c² / 24 where the steps are fine (less under a trellis), its whole variance where not.
    fine = predicted_kl([one], 1e-4, trellis) / (one.weights * 1e-8 / 24)
    assert fine == pytest.approx(0.81 if trellis else 1.0, rel=0.01)
    assert kl[-1] < 10 * kl[-20]


def test_solve_level_inverts_a_falling_function() -> None:
    assert solve_level(lambda level: 1 / level, 250.0) == pytest.approx(0.004)
    assert solve_level(lambda level: 1 / level, 1e12) == pytest.approx(1e-8)
    assert solve_level(lambda level: 1 / level, 0.1) == pytest.approx(1.0)
