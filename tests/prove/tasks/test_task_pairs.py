"""The paired statistics against slow references: enumeration, a grid, and how often the intervals hold."""

import itertools
import math

import numpy as np
import pytest

from sprat.prove.tasks.pairs import mcnemar, paired, tango, wilson

Z = 1.959963984540054


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 1), (3, 0), (5, 5), (2, 9), (7, 4), (0, 12)])
def test_mcnemar_against_every_way_the_flips_could_fall(lost, won):
    n = lost + won
    as_uneven = sum(
        abs(2 * sum(coins) - n) >= abs(lost - won) for coins in itertools.product((0, 1), repeat=n)
    )
    assert mcnemar(lost, won) == pytest.approx(as_uneven / 2**n, rel=1e-12)
    assert mcnemar(won, lost) == mcnemar(lost, won)


def test_mcnemar_of_many_flips():
    # Far beyond floats: 2**20000. The normal approximation with continuity correction is close there.
    z = (10_250 - 9_750 - 1) / math.sqrt(20_000)
    assert mcnemar(9_750, 10_250) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)
    assert mcnemar(0, 5000) == 0.0
    assert mcnemar(2500, 2500) == 1.0


@pytest.mark.parametrize(("right", "n"), [(0, 10), (1, 1), (7, 20), (50, 100), (999, 1000)])
def test_wilson_holds_the_proportions_that_the_score_test_allows(right, n):
    found = wilson(right, n)
    grid = np.linspace(0, 1, 200_001)[1:-1]
    kept = grid[np.abs(right / n - grid) <= Z * np.sqrt(grid * (1 - grid) / n)]
    assert found.value == right / n
    assert found.low == pytest.approx(kept[0] if right else 0, abs=1e-5)
    assert found.high == pytest.approx(kept[-1] if right < n else 1, abs=1e-5)


def slow_score(lost, won, n, difference):
    """Tango's statistic with the likelihood's maximum found on a grid: shares of lost, won and unchanged."""
    low, high = max(0.0, -difference), (1 - difference) / 2
    q = np.linspace(low, high, 2_000_001)[1:-1]
    with np.errstate(divide="ignore"):
        likelihood = (n - lost - won) * np.log(np.maximum(1 - 2 * q - difference, 1e-300))
        likelihood += (lost * np.log(q) if lost else 0) + (won * np.log(q + difference) if won else 0)
    best = q[likelihood.argmax()]
    return (won - lost - n * difference) / math.sqrt(n * (2 * best + difference * (1 - difference)))


@pytest.mark.parametrize(
    ("lost", "won", "n"), [(0, 0, 30), (4, 1, 50), (1, 9, 44), (0, 5, 20), (20, 20, 100)]
)
def test_the_ends_of_tangos_interval_are_just_not_rejected(lost, won, n):
    found = tango(lost, won, n)
    assert found.low < found.value == (won - lost) / n < found.high
    assert slow_score(lost, won, n, found.low) == pytest.approx(Z, abs=2e-3)
    assert slow_score(lost, won, n, found.high) == pytest.approx(-Z, abs=2e-3)


def test_extremes_stay_within_minus_one_and_one():
    assert (tango(5, 0, 5).value, tango(5, 0, 5).low) == (-1, -1)
    assert (tango(0, 5, 5).value, tango(0, 5, 5).high) == (1, 1)
    one = paired(np.array([True]), np.array([True]))
    assert -1 <= one.difference.low < 0 < one.difference.high <= 1


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng, n, trials = np.random.default_rng(0), 60, 1500
    draws = rng.multinomial(n, [0.12, 0.05, 0.83], size=trials)
    held = sum((e := tango(a, b, n)).low <= 0.05 - 0.12 <= e.high for a, b, _ in draws.tolist())
    assert 0.93 < held / trials < 0.975


def test_two_models_alike_are_called_different_no_more_often_than_chance():
    rng, n, trials = np.random.default_rng(1), 80, 1500
    draws = rng.multinomial(n, [0.1, 0.1, 0.8], size=trials).tolist()
    assert sum(mcnemar(a, b) < 0.05 for a, b, _ in draws) / trials < 0.05


def test_flips_are_counted_even_where_accuracy_is_equal():
    original = np.array([True, True, False, False, True])
    compressed = np.array([False, True, True, False, True])
    said = paired(original, compressed).to_json()
    assert said["flips"] == {"lost": 1, "won": 1}
    assert said["difference"]["value"] == 0
    assert said["accuracy_original"]["value"] == said["accuracy_compressed"]["value"] == 0.6
    assert said["mcnemar_p"] == 1.0
    assert said["items"] == 5
