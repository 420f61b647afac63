"""Bootstrap intervals: the right figure, the right coverage, paired, and the same from the same seed."""

import numpy as np
import pytest

from sprat.prove.intervals import Estimate, estimate, expanded_tail, gather, resample, t_quantile


def mean(sums):
    return sums[..., 0] / sums[..., 1]


def test_t_quantile_matches_tables():
    table = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 5: 2.57058, 10: 2.22814, 39: 2.02269}
    for freedom, expected in table.items():
        assert t_quantile(1.959964, freedom) == pytest.approx(expected, rel=1.3e-3)


def test_tail_approaches_the_plain_percentile():
    assert expanded_tail(10**6, 0.95) == pytest.approx(0.025, abs=1e-5)
    assert expanded_tail(8, 0.95) < 0.012


@pytest.mark.parametrize("contexts", [10, 40])
def test_intervals_cover_the_truth_about_as_often_as_they_claim(contexts):
    random = np.random.default_rng(0)
    trials, truth, hits = 400, 0.3, 0
    for trial in range(trials):
        # Tokens of a context share its level, so a bootstrap over tokens would be far too sure.
        level = random.gamma(4, truth / 4, size=contexts)
        tokens = random.exponential(level[:, None], size=(contexts, 50))
        sums = np.stack([tokens.sum(1), np.full(contexts, 50)], axis=1)
        found = estimate(sums, resample(sums, 500, seed=trial), mean)
        hits += found.low <= truth <= found.high
    assert 0.90 <= hits / trials <= 0.985


def test_windows_of_one_document_drawn_apart_would_be_too_sure_and_together_are_not():
    random = np.random.default_rng(3)
    trials, truth, hits, alone = 300, 0.3, 0, 0
    for trial in range(trials):
        windows = random.integers(1, 6, size=30)
        documents = np.repeat(np.arange(30), windows)
        level = random.gamma(4, truth / 4, size=30)[documents]
        sums = np.stack([random.gamma(50, level / 50) * 50, np.full(len(level), 50)], axis=1)
        gathered = gather(sums, documents * 7 - 100)
        assert gathered.sum(axis=0) == pytest.approx(sums.sum(axis=0))
        found = estimate(gathered, resample(gathered, 400, seed=trial), mean)
        apart = estimate(sums, resample(sums, 400, seed=trial), mean)
        hits += not found.excludes(truth)
        alone += not apart.excludes(truth)
    assert alone / trials < 0.85
    assert 0.9 <= hits / trials <= 0.985


def test_a_paired_difference_is_narrower_than_either_figure():
    random = np.random.default_rng(1)
    level = random.normal(3, 1, size=30)
    sums = np.stack([level, level + random.normal(0.1, 0.01, size=30), np.ones(30)], axis=1)
    draws = resample(sums, 1000, seed=2)
    one = estimate(sums, draws, lambda s: s[..., 0] / s[..., 2])
    difference = estimate(sums, draws, lambda s: (s[..., 1] - s[..., 0]) / s[..., 2])
    assert difference.low < 0.1 < difference.high
    assert (difference.high - difference.low) < 0.05 * (one.high - one.low)


def test_same_seed_same_interval_and_one_context_has_none():
    sums = np.array([[1.0, 10], [2, 10], [4, 10]])
    first, again = (estimate(sums, resample(sums, 200, seed=7), mean) for _ in range(2))
    assert first == again
    alone = estimate(sums[:1], resample(sums[:1], 200), mean)
    assert alone.value == 0.1
    assert (alone.low, alone.high) == (-np.inf, np.inf)


def test_draws_with_nothing_in_them_do_not_count_and_json_has_no_infinity():
    sums = np.array([[3.0, 10], [0, 0], [0, 0], [2, 10]])
    found = estimate(sums, resample(sums, 500, seed=1), mean)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.2, 0.3))
    assert Estimate(1.0, -np.inf, np.inf).to_json() == {
        "value": 1.0,
        "low": None,
        "high": None,
        "level": 0.95,
    }
    assert Estimate(1.0, 0.5, 2).excludes(0.4) and not Estimate(1.0, 0.5, 2).excludes(0.5)
