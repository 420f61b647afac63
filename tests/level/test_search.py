"""The search for the level, on files that are not really built."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from sprat.errors import BudgetError
from sprat.level.curve import curve
from sprat.level.predict import Spread, predicted_bits
from sprat.level.search import LEAST, ROUNDS, Fitted, refuse_impossible, search
from sprat.recipe import Recipe

OVERHEAD = 400_000


def spreads(weights: float = 2e7) -> list[Spread]:
    """A model whose weights expect deviations around one step at the level 1e-4."""
    histogram = np.exp(-((np.arange(511) - 152) ** 2) / 200)
    return [Spread(np.rint(weights * histogram / histogram.sum()), 1e-4)]


def nbytes(level: float, overhead: float = OVERHEAD, error: Callable[[float], float] = lambda _: 1.0) -> int:
    """What a file weighs: the prediction times an error that depends on the rate, and another overhead."""
    bits = predicted_bits(spreads(), level, curve(Recipe()))
    return int(overhead + bits / 8 * error(bits / 2e7))


def predicted(level: float) -> float:
    return predicted_bits(spreads(), level, curve(Recipe())) / 8


def run(budget: int, weigh: Callable[[float], int]) -> tuple[Fitted, list[float]]:
    tried: list[float] = []

    def build(level: float) -> Any:
        tried.append(level)
        return SimpleNamespace(level=level), SimpleNamespace(nbytes=weigh(level))

    return search(budget, predicted, OVERHEAD, cast(Any, build)), tried


@pytest.mark.parametrize("budget", [1_200_000, 2_000_000, 5_000_000, 9_000_000, 20_000_000])
@pytest.mark.parametrize(
    "weigh",
    [
        nbytes,
        lambda level: nbytes(level, error=lambda rate: 1.15),
        lambda level: nbytes(level, error=lambda rate: 0.8),
        lambda level: nbytes(level, error=lambda rate: 1 - 0.25 / (1 + rate)),
        lambda level: nbytes(level, overhead=1.1 * OVERHEAD),
        lambda level: nbytes(level, overhead=0.8 * OVERHEAD, error=lambda rate: 1.05),
        lambda level: int(nbytes(level) * (1 + 1e-4 * np.sin(1e6 * level))),
    ],
    ids=["exact", "dearer", "cheaper", "bent", "overhead", "both", "rough"],
)
def test_ends_within_one_percent_below_the_budget(budget: int, weigh: Callable[[float], int]) -> None:
    fitted, tried = run(budget, weigh)
    assert LEAST * budget <= fitted.file.nbytes <= budget
    assert len(tried) <= ROUNDS
    assert fitted.rounded.level == fitted.level == tried[-1]  # type: ignore[attr-defined]


def test_an_exact_prediction_builds_once() -> None:
    assert len(run(5_000_000, nbytes)[1]) == 1


def test_what_no_level_reaches_is_an_error() -> None:
    with pytest.raises(BudgetError, match="2 MB"):
        run(2_000_000, lambda level: max(nbytes(level), 2_500_000))


def test_a_floor_under_the_files_gives_the_largest_that_fits() -> None:
    """Files that jump over the last percent: the best of those that were weighed."""
    fitted, tried = run(5_000_000, lambda level: 4_800_000 if nbytes(level) < 5_050_000 else 5_300_000)
    assert fitted.file.nbytes == 4_800_000 and len(tried) == ROUNDS


def test_more_bytes_than_the_finest_level_takes() -> None:
    """Where settled layers leave the embedding more than any level uses (ternary layers in a large budget)."""
    fitted, tried = run(10**12, nbytes)
    assert fitted.level == min(tried) > 0 and fitted.file.nbytes == nbytes(fitted.level)


def test_impossible_budgets_name_what_is_possible() -> None:
    refuse_impossible(10_000, 20_000, 5_000, "tiny")
    refuse_impossible(20_000, 20_000, 20_000, "tiny")
    with pytest.raises(
        BudgetError, match=r"tiny has 20 kB \(20,000 bytes\) in bf16: a budget of 20,001 bytes"
    ):
        refuse_impossible(20_001, 20_000, 5_000, "tiny")
    with pytest.raises(
        BudgetError, match=r"tiny does not fit into 4,999 bytes: the smallest .* is 5,000 bytes"
    ):
        refuse_impossible(4_999, 20_000, 5_000, "tiny")
