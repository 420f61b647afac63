"""The bound against reverse water-filling written out, and against what rounding really reaches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sprat.coding import entropy
from sprat.level.bound import Components, _count, spectra
from sprat.methods.metric import Metric
from sprat.methods.waterlevel import round_to_level
from sprat.recipe import Recipe


class Fixed:
    """A target with a given metric."""

    def __init__(self, w, h, g):
        self.w, self.h, self.g = w, h, g

    def metric(self, _):
        return Metric(self.h, self.g)


def problem(m=96, n=64, correlation=0.8):
    """Gaussian weights of uneven rows and columns, correlated inputs."""
    rng = np.random.default_rng(3)
    k, r = np.exp(rng.normal(size=n) / 2), np.exp(rng.normal(size=m) / 2)
    h = correlation ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    w = rng.normal(size=(m, n)) * r[:, None] * k
    return [torch.tensor(x).float() for x in (w, h, np.exp(rng.normal(size=m)))]


def counted(w, h, g):
    logs = {}
    _count(logs, Fixed(w, h, g), Recipe())
    bins = np.array(sorted(logs))
    return Components(np.exp2(bins / 16), np.array([logs[b] for b in bins]))


def water_filling(variances, water):
    """(bits, KL), component by component."""
    bits = kl = 0.0
    for v in variances.ravel():
        bits += 0.5 * math.log2(v / water) if v > water else 0.0
        kl += min(v, water)
    return bits, kl


@pytest.mark.parametrize("water", [1e-4, 1e-2, 0.3, 5.0])
def test_components_are_every_row_times_every_eigenvalue(water):
    w, h, g = problem()
    rows, columns = spectra(w, Metric(h, g), 0.05)
    bits, kl = water_filling(np.multiply.outer(rows, columns), water)
    found = counted(w, h, g)
    assert found.counts.sum() == w.numel()
    assert found.bits(water) == pytest.approx(bits, rel=2e-3, abs=1)
    assert found.kl(water) == pytest.approx(kl, rel=5e-3)


def test_the_spectrum_is_that_of_the_expected_loss():
    """With every weight lost, the loss is the sum of all components: ½ E Σ g w H wᵀ of such a Gaussian."""
    w, h, g = problem()
    rows, columns = spectra(w, Metric(h, g), 1e-9)
    k = w.double().square().mean(0)
    r = (w.double().square() / k).mean(1)
    expected = 0.5 * float((g.double() * r).sum()) * float((k * h.double().diagonal()).sum())
    assert rows.sum() * columns.sum() == pytest.approx(expected, rel=1e-6)
    real = 0.5 * float((((w @ h) * w).sum(1) * g).sum())
    assert expected == pytest.approx(real, rel=0.1)


def test_correlated_outputs_lower_the_bound_and_not_the_whole():
    """The components' sum is the trace of G, whatever lies beside its diagonal; their logarithms' sum is less."""
    w, h, g = problem()
    near = 0.7 ** np.abs(np.subtract.outer(np.arange(len(g)), np.arange(len(g))))
    fisher = torch.from_numpy(near).float() * (g[:, None] * g).sqrt()
    (alone, _), (whole, _) = (spectra(w, Metric(h, g, f), 1e-9) for f in (None, fisher))
    assert whole.sum() == pytest.approx(alone.sum(), rel=1e-5)
    saved = np.log(alone).sum() - np.log(whole).sum()
    assert saved == pytest.approx(-np.linalg.slogdet(near)[1], rel=1e-3)


def test_kl_at_is_the_inverse_of_bits():
    found = counted(*problem())
    for water in (1e-5, 1e-3, 0.1):
        assert found.kl_at(found.bits(water)) == pytest.approx(found.kl(water), rel=1e-6)
    everything = float((found.counts * found.variances).sum())
    assert found.kl_at(0) == found.kl_at(-5) == pytest.approx(everything)
    assert found.kl_at(1e-9) == pytest.approx(everything, rel=1e-3)


@pytest.mark.parametrize(
    ("trellis", "level", "low", "high"),
    [  # found: KL over the bound's at the same bits
        (0, 0.02, 1.35, 1.45),  # 1.40: at 6.9 bits plain rounding is 2πe / 12 = 1.42 above it (0.254 bits)
        (0, 0.3, 1.4, 1.7),  # 1.55, at 3.1 bits
        (0, 0.8, 1.5, 2.0),  # 1.81, at 1.8 bits: columns in turn, where the best code takes all at once
        (4, 0.02, 1.15, 1.25),  # 1.20: the trellis' 0.7 to 0.9 dB
        (4, 0.3, 1.2, 1.5),  # 1.37
        (4, 0.8, 1.3, 1.7),  # 1.52
    ],
)
def test_rounding_stays_above_the_bound_and_near_it(trellis, level, low, high):
    w, h, g = problem(512, 128)
    lattice = round_to_level(w, Metric(h, g), level, Recipe(trellis=trellis), entropy.prior_tables())
    bits = entropy.count([lattice]).entropy()
    error = (torch.from_numpy(lattice.dense()) - w).double()
    kl = 0.5 * float((((error @ h.double()) * error).sum(1) * g).sum())
    assert low < kl / counted(w, h, g).kl_at(bits) < high


def test_weights_of_zero_cost_nothing():
    w, h, g = problem()
    w[:, 3] = 0
    w[5] = 0
    found = counted(w, h, g)
    assert found.counts.sum() == 95 * 63
    assert np.isfinite(found.kl_at(100.0))
    assert counted(torch.zeros(4, 4), torch.eye(4), torch.ones(4)).counts.size == 0
