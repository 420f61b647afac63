"""The planner beside exhaustive search: what predictions promise is tried, the water level always."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprat.errors import RecipeError
from sprat.level.planner import MARGIN, Candidate, Tried, candidates, choose
from sprat.recipe import Recipe


def named(name: str) -> Candidate:
    return Candidate(name, Recipe())


def world(truth: dict[str, float], predicted: dict[str, float]):
    """predict and attempt for candidates whose KL is known, and the list of those that were tried."""
    tried: list[str] = []

    def attempt(candidate: Candidate) -> Tried[str]:
        tried.append(candidate.name)
        return Tried(truth[candidate.name], 100, candidate.name)

    return tried, lambda candidate, _: predicted[candidate.name], attempt


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0.01, 2), min_size=1, max_size=6), st.integers(0, 6))
def test_with_true_predictions_it_finds_what_exhaustive_search_finds(
    values: list[float], misses: int
) -> None:
    truth = {str(i): kl for i, kl in enumerate(values)}
    plain, *others = map(named, truth)
    tried, predict, attempt = world(truth, truth)
    best, rows = choose(plain, others, predict, attempt, misses)
    exhaustive = min(truth.values())
    assert best.kl == (exhaustive if misses else truth["0"])
    assert tried[0] == "0" and len(tried) <= 2 + misses
    assert [r.name for r in rows] == list(truth) and [r.verdict for r in rows].count("chosen") == 1


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_with_wrong_predictions_it_is_never_worse_than_the_water_level(data: st.DataObject) -> None:
    names = [str(i) for i in range(5)]
    number = st.floats(0.001, 10)
    truth, predicted = ({n: data.draw(number) for n in names} for _ in range(2))
    tried, predict, attempt = world(truth, predicted)
    best, rows = choose(named("0"), [named(n) for n in names[1:]], predict, attempt, 2)
    assert best.kl == min(truth[n] for n in tried) <= truth["0"]
    for row in rows[1:]:
        assert (row.measured_kl is not None) == (row.name in tried)
        hopeful = predicted[row.name] < MARGIN * truth["0"]
        assert hopeful or row.name not in tried
        if row.name not in tried and row.verdict.endswith("promised more"):
            assert predicted[row.name] >= max(predicted[n] for n in tried[1:])


def test_it_goes_on_as_long_as_it_gains() -> None:
    truth = {"0": 1.0, "1": 0.9, "2": 0.8, "3": 0.85, "4": 0.7, "5": 0.75, "6": 0.1}
    predicted = {name: 0.5 + 0.01 * int(name) for name in truth}
    tried, predict, attempt = world(truth, predicted)
    best, rows = choose(named("0"), [named(n) for n in "123456"], predict, attempt, 2)
    assert best.kl == 0.7 and tried == ["0", "1", "2", "3", "4", "5"]
    assert [row.verdict for row in rows] == [
        "always tried", *["tried, better, then beaten"] * 2, "tried, no better", "chosen", "tried, no better",
        "not tried: others promised more",
    ]  # fmt: skip


def test_what_a_model_does_not_allow_is_said_and_left() -> None:
    def predict(candidate: Candidate, _: Tried[str]) -> float:
        if candidate.name == "a":
            raise RecipeError("no such part")
        return 0.1

    def attempt(candidate: Candidate) -> Tried[str]:
        if candidate.name == "b":
            raise RecipeError("statistics lie")
        return Tried(1.0, 5, candidate.name)

    best, rows = choose(named("plain"), [named("a"), named("b")], predict, attempt)
    assert best.result == "plain"
    assert [r.verdict for r in rows] == [
        "chosen",
        "not possible: no such part",
        "tried, not possible: statistics lie",
    ]
    with pytest.raises(RecipeError, match="statistics lie"):  # without the water level there is no result
        choose(named("b"), [], predict, attempt)


def test_candidates_keep_what_the_recipe_sets() -> None:
    found = candidates(Recipe(method="auto"), 30)
    assert found[0].recipe == Recipe() and len({c.name for c in found}) == len(
        {c.recipe for c in found}
    ) == len(found)
    for ffn in (1.0, 0.75):  # alone, and with a quarter of the neurons
        counts = [c.recipe.remove_layers for c in found if c.recipe.remove_layers and c.recipe.ffn == ffn]
        assert counts == [1, 3, 6, 9, 12, 15]
    own = candidates(Recipe(method="auto", remove_layers=2, ffn=0.5, sparsity="1:4", trellis=8), 30)
    assert (
        all((c.recipe.remove_layers, c.recipe.ffn, c.recipe.trellis) == (2, 0.5, 8) for c in own)
        and own[0].recipe.sparsity == "1:4"
    )
    for few, many in itertools.pairwise(len(candidates(Recipe(method="auto"), n)) for n in (2, 30)):
        assert few <= many


def test_a_pattern_of_neighbours_is_none_where_columns_are_sorted() -> None:
    found = candidates(Recipe(method="auto", order="descending", trellis=0), 30)
    assert {c.recipe.sparsity for c in found} == {"", "0.5"}


def test_a_mixture_may_lose_experts():
    found = candidates(Recipe(method="auto"), 30, experts=8)
    assert [c.recipe.experts for c in found if c.recipe.experts] == [7, 6]
    assert [c.name for c in found if c.recipe.experts] == [
        "1 expert a layer fewer",
        "2 experts a layer fewer",
    ]
    assert not any(c.recipe.experts for c in candidates(Recipe(method="auto"), 30))
    assert {c.recipe.experts for c in candidates(Recipe(method="auto", experts=5), 30, experts=8)} == {5}
