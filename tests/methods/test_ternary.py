"""Ternary and binary maps: closed forms against least squares, and the whole against brute force on small maps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from problems import correlated, distortion

from sprat.coding import entropy
from sprat.errors import RecipeError
from sprat.methods.metric import Metric
from sprat.methods.ternary import _columns, _Found, _Problem, _refit, round_binary, round_ternary
from sprat.recipe import Recipe
from sprat.sense.shrink import upper_factor

PRIOR = entropy.prior_tables()
EVEN = Recipe(row_floor=1e-6)


def problem(w: torch.Tensor, h: torch.Tensor, g: torch.Tensor) -> _Problem:
    return _Problem(w, h, upper_factor(h, "map"), g, w @ h, ((w @ h) * w).sum(1))


def drawn(m: int, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    q = torch.tensor(rng.integers(-1, 2, (m, n))).float()
    return q, torch.tensor(np.exp(rng.normal(size=n) / 3)).float()


def test_row_scales_are_least_squares() -> None:
    w, h, g = correlated(6, 10, seed=1)
    q, k = drawn(6, 10, 2)
    found = _refit(problem(w, h, g), q, q == q, k)
    root = np.linalg.cholesky(h.numpy().astype(float)).T
    for i in range(6):
        along, target = root @ (q[i] * k).numpy(), root @ w[i].numpy()
        best = np.linalg.lstsq(along[:, None], target, rcond=None)[0][0]
        assert float(found.r[i]) == pytest.approx(abs(best), rel=1e-3)
        assert float(found.loss[i]) == pytest.approx(np.square(along * best - target).sum(), rel=1e-3)
        assert (found.q[i] == q[i] * np.sign(best)).all()


def test_column_scales_are_least_squares() -> None:
    """Scales that really lie behind w come back; the normal equations against lstsq over all rows."""
    _, h, g = correlated(30, 8, seed=3)
    q, k = drawn(30, 8, 4)
    r = torch.rand(30, generator=torch.Generator().manual_seed(0)) + 0.5
    w = r[:, None] * q * k + torch.randn(30, 8, generator=torch.Generator().manual_seed(1)) / 5
    got = _columns(problem(w, h, g), _Found(q, q == q, r, r)).numpy()
    root = np.linalg.cholesky(h.numpy().astype(float)).T
    weight = np.sqrt(g.numpy().astype(float))
    design = np.concatenate([weight[i] * root * (r[i] * q[i]).numpy() for i in range(30)])
    target = np.concatenate([weight[i] * root @ w[i].numpy() for i in range(30)])
    assert got == pytest.approx(np.linalg.lstsq(design, target, rcond=None)[0], rel=1e-3)


@pytest.mark.parametrize(("method", "values"), [(round_ternary, (-1, 0, 1)), (round_binary, (-1, 1))])
def test_near_the_best_of_all_integers(method, values: tuple[int, ...]) -> None:
    """Every Q of six columns, with the best row scale for each, under the column scales that were chosen."""
    w, h, g = correlated(40, 6, seed=5, rho=0.5)
    lattice = method(w, Metric(h, g), 1.0, EVEN, PRIOR)
    assert set(np.unique(lattice.q)) <= set(values)
    every = torch.tensor(list(itertools.product(values, repeat=6))).float() * torch.from_numpy(
        lattice.col.values()
    )
    square = ((every @ h) * every).sum(1).clamp_min(1e-9)
    along = every @ (w @ h).T
    best = ((w @ h * w).sum(1) - (along.square() / square[:, None]).max(0).values).clamp_min(0)
    optimum = float((best * g).sum())
    assert distortion(w, lattice.dense(), h, g) < 1.5 * optimum


@pytest.mark.parametrize(("method", "white"), [(round_ternary, 0.1902), (round_binary, 1 - 2 / np.pi)])
def test_gaussian_weights_cost_what_is_known(method, white: float) -> None:
    """White inputs: the distortion of the best ternary and binary quantizers of a Gaussian (Max, 1960); less where
    inputs are correlated, which feedback uses."""
    w, _, _ = correlated(200, 128, seed=0)
    even, g = torch.eye(128), torch.ones(200)
    whole = distortion(w, np.zeros((200, 128)), even, g)
    assert distortion(
        w, method(w, Metric(even, g), 1.0, EVEN, PRIOR).dense(), even, g
    ) / whole == pytest.approx(white, rel=0.03)
    w, h, g = correlated(200, 128, seed=0)
    whole = distortion(w, np.zeros((200, 128)), h, g)
    fed = distortion(w, method(w, Metric(h, g), 1.0, EVEN, PRIOR).dense(), h, g)
    plain = distortion(w, method(w, Metric(h, g), 1.0, Recipe(feedback=False), PRIOR).dense(), h, g)
    assert fed < 0.8 * plain and fed < 0.75 * white * whole


def test_the_level_plays_no_part_and_patterns_are_kept() -> None:
    w, h, g = correlated(24, 32)
    recipe = Recipe(method="ternary", sparsity="2:4")
    one, two = (round_ternary(w, Metric(h, g), level, recipe, PRIOR) for level in (1e-6, 1.0))
    assert (one.q == two.q).all() and one.trellis == 0
    assert ((one.q != 0).reshape(24, 8, 4).sum(2) <= 2).all() and one.pattern is not None
    half = round_ternary(w, Metric(h, g), 1.0, Recipe(method="ternary", sparsity="0.7"), PRIOR)
    assert (half.q == 0).mean() >= 0.7


def test_binary_costs_a_bit_and_has_no_zeros() -> None:
    w, h, g = correlated(64, 512)
    lattice = round_binary(w, Metric(h, g), 1.0, Recipe(method="binary"), PRIOR)
    counts = entropy.count([lattice])
    assert entropy.cost_of_counts(counts, entropy.Tables.from_counts(counts)) / lattice.q.size < 1.01
    with pytest.raises(RecipeError, match="no zeros"):
        Recipe(method="binary", sparsity="0.5")
    with pytest.raises(RecipeError, match="sequential"):
        Recipe(method="ternary", sequential=True)
