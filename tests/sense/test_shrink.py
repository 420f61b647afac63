"""Shrinkage, the factor that the steps come from, and the embedding's metric."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sprat.errors import StatisticsError
from sprat.sense.embedding import ROLES, embedding_metric
from sprat.sense.shrink import shrink, upper_factor
from sprat.sense.statistics import HeadStatistics


def sample(tokens: int, n: int, seed: int = 0, massive: float = 1.0) -> Tensor:
    """Second moments of `tokens` correlated inputs, one channel `massive` times larger than the others."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, n, generator=rng) @ (torch.eye(n) + torch.randn(n, n, generator=rng) / 4)
    x[:, 1] *= massive
    return x.T @ x / tokens


@pytest.mark.parametrize("massive", [1.0, 1e3])
@pytest.mark.parametrize(("tokens", "n"), [(10, 96), (96, 96), (2000, 64)])
def test_shrunk_statistics_are_positive_definite_and_keep_their_diagonal(
    tokens: int, n: int, massive: float
) -> None:
    h = sample(tokens, n, massive=massive)
    before = h.clone()
    out = shrink(h, tokens, 1.0)
    assert torch.equal(h, before)
    assert torch.equal(out, out.T)
    alpha = n / (n + tokens)
    extra = 1e-6 * float(h.diagonal().mean())
    torch.testing.assert_close(out.diagonal(), h.diagonal() + extra)
    off = ~torch.eye(n, dtype=torch.bool)
    torch.testing.assert_close(out[off], (1 - alpha) * h[off])
    scale = out.diagonal().double().rsqrt()
    correlation = out.double() * scale[:, None] * scale
    # The smallest eigenvalue of the correlations is at least the diagonal's share, whatever the rank.
    assert float(torch.linalg.eigvalsh(correlation).min()) > 0.9 * alpha


def test_shrinkage_grows_with_strength_and_falls_with_tokens() -> None:
    h = sample(50, 32)

    def coupling(tokens: int, strength: float) -> float:
        out = shrink(h, tokens, strength)
        return float((out - out.diagonal().diag()).norm())

    assert coupling(50, 4) < coupling(50, 1) < coupling(500, 1) < coupling(500, 0.1)
    assert coupling(10**9, 1) == pytest.approx(float((h - h.diagonal().diag()).norm()), rel=1e-5)


@pytest.mark.parametrize("massive", [1.0, 1e3])
@pytest.mark.parametrize(("tokens", "n"), [(10, 96), (2000, 64), (5, 1)])
def test_upper_factor(tokens: int, n: int, massive: float) -> None:
    if n == 1:
        h = torch.tensor([[3.0]])
    else:
        h = shrink(sample(tokens, n, massive=massive), tokens, 1.0)
    u = upper_factor(h, "some map")
    assert u.dtype == torch.float32 and torch.equal(u, u.triu()) and bool((u.diagonal() > 0).all())
    identity = u.double().T @ u.double() @ h.double()
    scale = h.diagonal().double().sqrt()
    # In units of each input's own deviation.
    torch.testing.assert_close(
        identity * scale[:, None] / scale, torch.eye(n, dtype=torch.float64), rtol=0, atol=2e-4
    )
    for j in {0, n // 2, n - 1}:
        later = h[j + 1 :, j + 1 :].double()
        across = h[j, j + 1 :].double()
        variance = float(h[j, j].double() - across @ torch.linalg.solve(later, across))
        assert 1 / float(u[j, j]) ** 2 == pytest.approx(variance, rel=1e-3)


def test_a_dead_channel_still_has_a_price() -> None:
    h = sample(200, 16)
    h[4], h[:, 4] = 0, 0
    u = upper_factor(shrink(h, 200, 1.0), "some map")
    assert bool(torch.isfinite(u).all())
    assert float(u[4, 4]) > 100 * float(u.diagonal().median())
    nothing = upper_factor(shrink(torch.zeros(4, 4), 10, 1.0), "some map")
    assert bool(torch.isfinite(nothing).all())


@pytest.mark.parametrize(
    "h",
    [
        -torch.eye(3),
        torch.zeros(3, 3),
        torch.full((3, 3), float("nan")),
        torch.tensor([[1.0, 2.0], [2.0, 1.0]]),
    ],
    ids=["negative", "zero", "nan", "indefinite"],
)
def test_what_is_not_positive_definite_is_named(h: Tensor) -> None:
    with pytest.raises(
        StatisticsError, match=r"layers\.3\.down: .* not positive definite; calibrate on more tokens"
    ):
        upper_factor(h, "layers.3.down")


def head_statistics(vocabulary: int = 40, d: int = 12) -> HeadStatistics:
    rng = np.random.default_rng(0)
    p = np.sort(rng.dirichlet(np.full(vocabulary, 0.2)))
    p[0] = 0.0  # never seen
    p /= p.sum()
    g, frequency = torch.tensor(p * (1 - p)).float(), torch.tensor(p).float()
    return HeadStatistics(sample(500, d), g, 1e-3 * sample(500, d, seed=1), frequency, 500)


def test_metric_of_an_embedding_by_role() -> None:
    head, floor = head_statistics(), 0.1
    h, f = shrink(head.h, 500, 1.0), shrink(head.f, 500, 1.0)
    g = 0.9 * head.g + 0.1 * head.g.mean()
    share = 0.9 * head.frequency + 0.1 / 40
    metric, weights = embedding_metric(head, "output", floor, 1.0)
    torch.testing.assert_close(metric, h)
    torch.testing.assert_close(weights, g)
    metric, weights = embedding_metric(head, "input", floor, 1.0)
    torch.testing.assert_close(metric, f)
    torch.testing.assert_close(weights, share)
    assert float(weights.sum()) == pytest.approx(1)
    metric, weights = embedding_metric(head, "tied", floor, 1.0)
    torch.testing.assert_close(metric, g.mean() * h + share.mean() * f)
    # The cost of white noise on each row is that of the sum of both roles.
    torch.testing.assert_close(weights * metric.trace(), g * h.trace() + share * f.trace())


@pytest.mark.parametrize("role", ROLES)
def test_rare_tokens_keep_a_floor(role: str) -> None:
    head = head_statistics()
    metric, weights = embedding_metric(head, role, 0.1, 1.0)
    assert float(weights.min()) >= 0.09 * float(weights.mean()) * 0.99
    upper_factor(metric, "embedding")
    _, low = embedding_metric(head, role, 1e-3, 1.0)
    assert float(low.min() / low.mean()) < float(weights.min() / weights.mean())
