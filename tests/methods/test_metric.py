"""Feedback across rows, against a loop over single rows, and against the quadratic form itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sprat.coding import entropy
from sprat.errors import StatisticsError
from sprat.methods import metric as metrics
from sprat.methods.metric import Metric, rows
from sprat.methods.waterlevel import round_to_level
from sprat.recipe import Recipe

PRIOR = entropy.prior_tables()
PLAIN = Recipe(trellis=0, rate_weight=0.0, row_floor=1e-6)


def fisher(m: int, seed: int = 0) -> torch.Tensor:
    """Correlated outputs of uneven weight: (m, m)."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(4 * m, m)) @ (np.eye(m) + 0.6 * rng.normal(size=(m, m)) / np.sqrt(m) * 2)
    mixed *= np.exp(rng.normal(size=m) / 2)
    found = mixed.T @ mixed / len(mixed)
    return torch.from_numpy(0.9 * found + 0.1 * np.diag(np.diag(found))).float()


def row_by_row(w: np.ndarray, g: np.ndarray, step: float) -> np.ndarray:
    """GPTQ over rows: what is left of G given the rows behind, from inverses of its trailing parts."""
    w, out = w.astype(float).copy(), np.zeros(w.shape)
    for i in range(len(w)):
        out[i] = np.rint(w[i] / step) * step
        error = w[i] - out[i]
        if i + 1 < len(w):  # W_k += G_kk⁻¹ G_ki e, the minimum of tr(G Δ Δᵀ) over the rows behind
            w[i + 1 :] += np.linalg.solve(g[i + 1 :, i + 1 :], g[i + 1 :, i])[:, None] * error
    return out


@pytest.mark.parametrize("m", [1, 5, 24])
def test_parts_of_one_row_are_feedback_row_by_row(m: int, monkeypatch) -> None:
    monkeypatch.setattr(metrics, "PARTS", m)
    g, w = fisher(m), torch.randn(m, 7, generator=torch.Generator().manual_seed(1))
    out = torch.zeros_like(w)

    def one(part: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        out[part] = (target / 0.5).round() * 0.5
        return out[part]

    rows(g, "map").round(w, one)
    assert np.allclose(out.numpy(), row_by_row(w.numpy(), g.double().numpy(), 0.5), atol=1e-5)


@pytest.mark.parametrize("m", [16, 37])
def test_weights_of_rows_are_what_is_left_given_the_parts_behind(m: int) -> None:
    g = fisher(m)
    found = rows(g, "map")
    exact, order = g.double().numpy(), torch.cat(found.parts).tolist()
    assert sorted(order) == list(range(m))
    start = 0
    for part in found.parts:
        own, behind = part.numpy(), np.array(order[start + len(part) :], int)
        left = exact[np.ix_(own, own)]
        if len(behind):
            cross = exact[np.ix_(own, behind)]
            left = left - cross @ np.linalg.solve(exact[np.ix_(behind, behind)], cross.T)
        assert np.allclose(found.g[part].numpy(), np.diag(left), rtol=1e-3)
        start += len(part)


def test_a_row_that_nothing_is_correlated_with_is_left_alone() -> None:
    found = rows(torch.diag(torch.tensor([1.0, 4.0, 0.25])), "map")
    assert found.g.tolist() == pytest.approx([1.0, 4.0, 0.25]) and found.echo() == pytest.approx(0.0)


def loss(w: torch.Tensor, dense: np.ndarray, h: torch.Tensor, g: torch.Tensor) -> float:
    error = torch.from_numpy(dense).double() - w.double()
    return float(((g.double() @ error @ h.double()) * error).sum()) / 2


def test_it_saves_what_the_determinant_says() -> None:
    """At high rate the loss at equal bits falls by the ratio of the geometric means of the rows' weights."""
    m, n = 64, 48
    g, h = fisher(m), torch.eye(n)
    w = torch.randn(m, n, generator=torch.Generator().manual_seed(2))
    fed, alone = Metric(h, g.diagonal().clone(), g), Metric(h, g.diagonal().clone())
    gain = float((fed.outputs.g.log().mean() - alone.outputs.g.log().mean()).exp())
    assert gain < 0.8
    level = 0.02
    for metric, want in ((fed, 1.0), (alone, 1.0)):
        lattice = round_to_level(w, metric, level, PLAIN, PRIOR)
        # c²/24 a weight: the step of a row is c over the root of what is left of it
        assert loss(w, lattice.dense(), h, g) == pytest.approx(want * m * n * level**2 / 24, rel=0.08)
    bits = [entropy.cost_bits(round_to_level(w, x, level, PLAIN, PRIOR), PRIOR) for x in (fed, alone)]
    assert (bits[1] - bits[0]) / (m * n) == pytest.approx(-0.5 * np.log2(gain), abs=0.06)


def test_feedback_can_be_left_out_and_zeros_go_without_it() -> None:
    m, n = 32, 24
    g, w = fisher(m), torch.randn(m, n, generator=torch.Generator().manual_seed(3))
    with_g, without = (
        Metric(torch.eye(n), g.diagonal().clone(), g),
        Metric(torch.eye(n), g.diagonal().clone()),
    )
    for recipe in (Recipe(row_feedback=False), Recipe(feedback=False), Recipe(sparsity="0.5")):
        one, two = (round_to_level(w, x, 0.3, recipe, PRIOR) for x in (with_g, without))
        assert (one.dense() == two.dense()).all()
    assert (
        round_to_level(w, with_g, 0.3, Recipe(), PRIOR).q
        != round_to_level(w, without, 0.3, Recipe(), PRIOR).q
    ).any()


def test_outputs_that_are_not_positive_definite_are_named() -> None:
    bad = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(StatisticsError, match=r"layers\.3\.o"):
        _ = Metric(torch.eye(3), torch.ones(2), bad, name="layers.3.o").outputs
