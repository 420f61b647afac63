"""Which models are called different: planted differences, planted equals, and the correction against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from sprat.prove.intervals import estimate, resample
from sprat.prove.pairs import holm, p_value, pairs

CONTEXTS = 20
TOKENS = np.full(CONTEXTS, 256.0)
OWN = np.arange(CONTEXTS)


def measured(seed, means, spread=0.15, shared=0.5):
    """KL sums of models whose contexts are hard for all of them alike, and noisy for each."""
    rng = np.random.default_rng(seed)
    hard = np.exp(shared * rng.normal(size=CONTEXTS))
    return {
        name: TOKENS * mean * hard * np.exp(spread * rng.normal(size=CONTEXTS))
        for name, mean in means.items()
    }


def told(kl, **options):
    return {frozenset((p.lower, p.higher)): p for p in pairs(kl, TOKENS, OWN, resamples=2000, **options)}


def test_a_planted_difference_is_found_through_what_contexts_share():
    kl = measured(0, {"a": 0.10, "b": 0.13, "c": 0.30})
    found = told(kl)
    assert len(found) == 3
    pair = found[frozenset("ab")]
    assert (pair.lower, pair.higher, pair.distinguishable) == ("a", "b", True)
    assert pair.difference.value == pytest.approx((kl["b"].sum() - kl["a"].sum()) / TOKENS.sum())
    # Unpaired, the two intervals overlap: the contexts' spread is several times the difference.
    single = [
        estimate(s := np.stack([kl[n], TOKENS], 1), resample(s), lambda s: s[..., 0] / s[..., 1])
        for n in "ab"
    ]
    assert single[0].high > single[1].low


def test_equal_models_are_called_different_no_more_often_than_five_in_a_hundred():
    """Four equal models, six pairs each time: Holm keeps the chance of any wrong call at 5 %; 3 sigma above of 120."""
    wrong = sum(
        any(
            pair.distinguishable
            for pair in told(measured(seed, dict.fromkeys("abcd", 0.1)), seed=seed).values()
        )
        for seed in range(120)
    )
    assert wrong <= 0.05 * 120 + 3 * np.sqrt(0.05 * 0.95 * 120)


def test_one_and_the_same_model_is_never_different():
    kl = measured(1, {"a": 0.1})
    pair = told({"a": kl["a"], "b": kl["a"].copy()})[frozenset("ab")]
    assert (pair.difference.value, pair.p, pair.distinguishable) == (0, 1, False)


def test_the_p_value_is_the_intervals_own():
    """p below 5 % exactly where the 95 % interval leaves 0 out."""
    for seed in range(40):
        kl = measured(seed, {"a": 0.1, "b": 0.108})
        (pair,) = told(kl, seed=seed).values()
        assert (pair.p < 0.05) == (pair.difference.low > 0 or pair.difference.high < 0)


def test_documents_and_not_contexts_are_drawn():
    """Twenty contexts of two documents tell less than of twenty."""
    kl = measured(2, {"a": 0.10, "b": 0.13})
    (own,) = pairs(kl, TOKENS, OWN, resamples=4000)
    (few,) = pairs(kl, TOKENS, OWN % 2, resamples=4000)
    assert few.p > own.p and not few.distinguishable
    (one,) = pairs(kl, TOKENS, np.zeros(CONTEXTS), resamples=100)
    assert (one.p, one.difference.low) == (1.0, -np.inf)


def test_few_draws_cannot_tell_a_small_p():
    draws = np.full(99, 1.0)
    assert p_value(draws, 1000) == pytest.approx(2 / 100, rel=0.05)
    assert p_value(np.full(99_999, 1.0), 1000) < 1e-4
    assert p_value(draws - 1, 1000) == 1.0


def test_holm_by_its_definition():
    """Reject in order of p while p(k) ≤ α / (m − k + 1)."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(0, 0.2, size=6).tolist()
        for alpha in (0.01, 0.05, 0.1):
            rejected = set()
            for k, i in enumerate(np.argsort(p)):
                if p[i] > alpha / (6 - k):
                    break
                rejected.add(int(i))
            assert rejected == {i for i, adjusted in enumerate(holm(p)) if adjusted <= alpha}
    assert holm([]) == []
