"""Forced zeros: the same as the slow reference, the best mask by brute force, and what patterns are refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference
import torch
from problems import correlated, distortion

from sprat.coding import entropy
from sprat.coding.patterns import codable
from sprat.errors import RecipeError
from sprat.methods.columns import removals
from sprat.methods.metric import Metric
from sprat.methods.waterlevel import MAX_SYMBOL, round_to_level
from sprat.recipe import Recipe
from sprat.sparsity import Sparsity, parse

PRIOR = entropy.prior_tables()
BITS = PRIOR.bits(MAX_SYMBOL)


def zeros_kept(q: np.ndarray, pattern: Sparsity) -> bool:
    if not pattern.group:
        return bool((q == 0).mean() >= pattern.share)
    groups = q.reshape(len(q), -1, pattern.group)
    return bool(((groups != 0).sum(2) <= pattern.kept).all())


@pytest.mark.parametrize("trellis", [0, 4, 8])
@pytest.mark.parametrize("level", [0.05, 0.7])
@pytest.mark.parametrize("pattern", ["2:4", "1:3", "5:6", "0.5", "0.05", "0.93"])
def test_equals_the_reference(pattern: str, level: float, trellis: int) -> None:
    w, h, g = correlated(9, 24, seed=3)
    recipe = Recipe(trellis=trellis, sparsity=pattern, block=13)
    got = round_to_level(w, Metric(h, g), level, recipe, PRIOR)
    want = reference.round_to_level(w.numpy(), h.numpy(), g.numpy(), level, recipe, BITS)
    assert (got.q == want.q).all(), f"{(got.q != want.q).sum()} of {got.q.size} differ"
    assert zeros_kept(got.q, parse(pattern))


@pytest.mark.parametrize(
    "off", [{"feedback": False}, {"row_steps": False}, {"block": 1}, {"block": 24}], ids=str
)
@pytest.mark.parametrize("pattern", ["2:4", "0.5"])
def test_equals_the_reference_whatever_is_switched_off(pattern: str, off: dict) -> None:
    w, h, g = correlated(6, 24, seed=5)
    recipe = Recipe.from_dict({"sparsity": pattern, **off})
    got = round_to_level(w, Metric(h, g), 0.4, recipe, PRIOR)
    want = reference.round_to_level(w.numpy(), h.numpy(), g.numpy(), 0.4, recipe, BITS)
    assert (got.q == want.q).all()


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (1, 4), (3, 4), (2, 6), (4, 8)])
@pytest.mark.parametrize("trellis", [0, 4])
def test_one_group_is_as_good_as_the_best_of_all_masks(kept: int, group: int, trellis: int) -> None:
    """Steps so fine that rounding costs nothing: what is lost is the least that any mask loses, values free."""
    w, h, g = correlated(20, group, seed=group, rho=0.9)
    recipe = Recipe(trellis=trellis, sparsity=f"{kept}:{group}")
    lattice = round_to_level(w, Metric(h, g), 1e-4, recipe, PRIOR)
    best = sum(float(g[i]) * least_loss(w[i].numpy(), h.numpy(), kept) for i in range(len(w)))
    assert distortion(w, lattice.dense(), h, g) == pytest.approx(best, rel=1e-3)


def least_loss(w: np.ndarray, h: np.ndarray, kept: int) -> float:
    """min of (w - v) H (w - v)ᵀ over all v with `kept` entries that may be other than zero, by least squares."""
    root = np.linalg.cholesky(h.astype(float)).T
    losses = []
    for stay in itertools.combinations(range(len(w)), kept):
        found = np.linalg.lstsq(root[:, stay], root @ w, rcond=None)[0]
        losses.append(float(np.square(root[:, stay] @ found - root @ w).sum()))
    return min(losses)


def masked_loss(w: torch.Tensor, h: torch.Tensor, g: torch.Tensor, kept: torch.Tensor) -> float:
    """min of Σ g_i (w_i - v_i) H (w_i - v_i)ᵀ over all v that are zero outside `kept`: (m, n)."""
    total = 0.0
    for row, stay, weight in zip(w.double().numpy(), kept.numpy(), g.double().numpy(), strict=True):
        full, gone = h.double().numpy(), row[~stay]
        cross = full[np.ix_(stay, ~stay)]
        left = full[np.ix_(~stay, ~stay)] - cross.T @ np.linalg.solve(full[np.ix_(stay, stay)], cross)
        total += float(weight * (gone @ left @ gone))
    return total


def test_a_removal_costs_what_least_squares_says() -> None:
    _, h, _ = correlated(1, 12, seed=2)
    u = torch.from_numpy(reference.upper(h.numpy().astype(float)))
    sets, inverse = removals(u, 4, 2)
    assert sets.tolist() == [list(s) for s in itertools.combinations(range(4), 2)]
    w = np.random.default_rng(0).normal(size=12)
    for group in range(3):
        rest = h.numpy()[4 * group :, 4 * group :]
        for s, gone in enumerate(sets.tolist()):
            stay = [i for i in range(len(rest)) if i not in gone]
            root = np.linalg.cholesky(rest.astype(float)).T
            target = root[:, gone] @ w[gone]
            found = np.linalg.lstsq(root[:, stay], target, rcond=None)[0]
            want = np.square(root[:, stay] @ found - target).sum()
            assert w[gone] @ inverse[group, s] @ w[gone] == pytest.approx(want, rel=1e-4)


def test_masks_chosen_on_the_way_beat_magnitudes() -> None:
    """Against the largest of each group or of the map: what each mask costs once what it keeps makes up for the rest,
    by least squares and without any rounding."""
    w, h, g = correlated(64, 96, spread=1.5)
    for pattern in ("2:4", "0.5"):
        made = round_to_level(w, Metric(h, g), 1e-3, Recipe(sparsity=pattern), PRIOR)
        groups = w.abs().reshape(64, -1, 4)
        by_size = (
            w.abs() > w.abs().median()
            if pattern == "0.5"
            else (groups >= groups.kthvalue(3, dim=2, keepdim=True).values).reshape(64, 96)
        )
        chosen, naive = (masked_loss(w, h, g, torch.as_tensor(kept)) for kept in (made.q != 0, by_size))
        assert chosen < 0.5 * naive
        assert chosen <= distortion(w, made.dense(), h, g) < 1.5 * chosen


def test_wide_patterns_go_by_the_diagonal() -> None:
    """Where there are too many sets to weigh."""
    assert not codable(8, 16) and codable(4, 8)
    w, h, g = correlated(40, 32)
    lattice = round_to_level(w, Metric(h, g), 1e-3, Recipe(sparsity="8:16"), PRIOR)
    assert zeros_kept(lattice.q, parse("8:16"))
    white = round_to_level(w, Metric(torch.eye(32), torch.ones(40)), 1e-3, Recipe(sparsity="8:16"), PRIOR)
    largest = w.abs().reshape(40, 2, 16).topk(8, dim=2).indices.sort(2).values
    assert (
        np.sort(np.argsort(white.q.reshape(40, 2, 16) == 0, axis=2, kind="stable")[..., :8])
        == largest.numpy()
    ).all()


@pytest.mark.parametrize(
    "text", ["5:4", "0:4", "4:4", "abc", "1.5", "0.0", "2:", ":4", "2:4:8", "-0.5", "2:400", "50%"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"sparsity = .*2:4"):
        Recipe(sparsity=text)


def test_a_share_may_be_a_number() -> None:
    assert Recipe.from_dict({"sparsity": 0.5}).sparsity == "0.5"
    with pytest.raises(RecipeError, match=r"1\.5"):
        Recipe.from_dict({"sparsity": 1.5})


def test_a_pattern_that_does_not_divide_a_layer_names_it() -> None:
    layers = [("layers.0.qkv", 576), ("layers.0.down", 1536)]
    with pytest.raises(RecipeError, match=r"2:5 does not divide layers\.0\.qkv.* 576; .*2:4 or 2:6"):
        parse("2:5").check(layers)
    with pytest.raises(RecipeError, match=r"layers\.0\.down"):
        parse("3:9").check(layers)
    parse("2:4").check(layers)
    parse("0.5").check(layers)
    with pytest.raises(RecipeError, match=r"as 0\.5"):
        parse("2:4").check([("a", 7), ("b", 9)])


def test_patterns_of_consecutive_inputs_need_their_order() -> None:
    with pytest.raises(RecipeError, match="natural"):
        Recipe(sparsity="2:4", order="descending", trellis=0)
