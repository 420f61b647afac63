"""`method = "auto"` on the tiny model: what was considered, what was kept, how the command tells it."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import numpy as np
import pytest

import sprat
from sprat.cli.main import main
from sprat.level.planner import candidates
from sprat.recipe import Recipe
from sprat.source.maps import decoder_layers
from sprat.trial import healed
from tiny_model import SENTENCES

#: Of the file, in bytes.
BUDGET = "24000"
RECIPE = Recipe(method="auto", context=64, tokens=2048, heal=0)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPRAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("limits", [{"budget": "24000"}, {"budget": "40000", "ram": "90kB"}])
@pytest.mark.parametrize("heal", [0, 4])
def test_the_best_of_what_was_tried_is_written(tiny, tmp_path, limits, heal):
    out = tmp_path / "auto.sprat"
    recipe = replace(RECIPE, heal=heal)
    stages = []
    result = sprat.fit(
        tiny.folder,
        limits["budget"],
        out,
        recipe=recipe,
        ram=limits.get("ram"),
        context=64,
        progress=lambda name, *_: stages.append(name),
    )
    plain, *others = result.considered
    assert plain.name == "water level" and plain.measured_kl is not None
    tried = [row for row in result.considered if row.measured_kl is not None]
    (chosen,) = [row for row in result.considered if row.verdict == "chosen"]
    assert result.measured_kl == chosen.measured_kl == min(row.measured_kl for row in tried)
    assert result.unhealed_kl >= result.measured_kl and (heal or result.unhealed_kl == result.measured_kl)
    assert all(row.predicted_kl is not None for row in others if row in tried)
    assert result.nbytes <= int(limits["budget"]) and out.stat().st_size == result.nbytes
    with sprat.open(out) as artifact:
        artifact.verify()
        assert artifact.recipe["method"] != "auto"
    assert "rounding" in stages and sum(result.seconds.values()) > 0
    # The water level alone is what a plain fit gives.
    alone = sprat.fit(
        tiny.folder,
        limits["budget"],
        tmp_path / "plain.sprat",
        recipe=replace(recipe, method="waterlevel"),
        ram=limits.get("ram"),
        context=64,
    )
    assert alone.measured_kl == plain.measured_kl >= result.measured_kl


def test_the_choice_is_that_of_fitting_every_candidate(tiny, tmp_path):
    """A real model, where predictions are no truth: what was left out untried would not have won."""
    chosen = sprat.fit(tiny.folder, BUDGET, tmp_path / "auto.sprat", recipe=RECIPE)
    layers = len(decoder_layers(sprat.load(tiny.folder).model)[1])
    alone = {
        candidate.name: sprat.fit(tiny.folder, BUDGET, tmp_path / "one.sprat", recipe=candidate.recipe)
        for candidate in candidates(RECIPE, layers)
    }
    assert chosen.measured_kl == min(fitted.measured_kl for fitted in alone.values())
    for row in chosen.considered:
        measured = alone[row.name].measured_kl
        assert row.measured_kl in (None, measured)
        assert row.predicted_kl is None or 0.5 < row.predicted_kl / measured < 2


def test_every_candidate_has_the_text_of_standard_input(tiny, tmp_path, monkeypatch):
    words = np.random.default_rng(0).choice(SENTENCES.split(), 4000)
    (tmp_path / "text.txt").write_text(" ".join(words))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(" ".join(words).encode())))
    text = (str(tmp_path / "text.txt"), "-")
    read, piped = (
        sprat.fit(tiny.folder, BUDGET, tmp_path / "f.sprat", calibrate=given, recipe=RECIPE) for given in text
    )
    possible = [[row.predicted_kl is not None for row in made.considered] for made in (read, piped)]
    assert possible[0] == possible[1]
    assert sum(possible[0]) >= 6


def test_the_command_prints_what_it_considered(tiny, tmp_path, capfd):
    out = tmp_path / "auto.sprat"
    settings = ["--set", "context=64", "--set", "tokens=2048", "--set", "heal=0"]
    fit = ["fit", str(tiny.folder), "--budget", "24000", "--method", "auto", "-o", str(out), *settings]
    assert main(fit) == 0
    said = capfd.readouterr().out
    assert "water level" in said and "chosen" in said and "zeros forced, 2:4" in said
    plan = ["plan", str(tiny.folder), "--budgets", "24000", *settings, "--set", 'method="auto"']
    assert main(plan) == 0


def test_a_file_that_lost_much_is_told_what_may_help(tiny, tmp_path, capfd, monkeypatch):
    settings = ["--set", "context=64", "--set", "tokens=2048", "-o", str(tmp_path / "a.sprat")]
    fit = ["fit", str(tiny.folder), "--budget", "28000", *settings]
    monkeypatch.setattr("sprat.cli.fit.MUCH", 0.0)
    assert main([*fit, "--set", "heal=2"]) == 0
    assert "--method auto" in (said := capfd.readouterr().err) and "--heal 20" in said
    assert main([*fit, "--set", "heal=0", "--method", "auto"]) == 0
    assert "may be lower" not in capfd.readouterr().err
    monkeypatch.setattr("sprat.cli.fit.MUCH", 99.0)
    assert main([*fit, "--set", "heal=0"]) == 0
    assert "may be lower" not in capfd.readouterr().err


def test_long_healing_is_of_the_chosen_one_alone(tiny, tmp_path, monkeypatch):
    """Candidates are healed briefly; the winner begins again from what rounding gave it, and the better is kept."""
    long = []

    def worse(trial, briefly=False):
        found = healed(trial, briefly)
        if briefly:
            return found
        long.append(trial)
        return replace(found, measured=found.measured + 1)

    monkeypatch.setattr("sprat.auto.healed", worse)
    recipe, stages = replace(RECIPE, heal=4, heal_deep=True, trellis=0), []
    result = sprat.fit(
        tiny.folder,
        "28000",
        tmp_path / "deep.sprat",
        recipe=recipe,
        progress=lambda name, done, total: stages.append(name.partition(",")[0]) if done == total else None,
    )
    tried = [row.measured_kl for row in result.considered if row.measured_kl is not None]
    assert stages.count("healing") == len(tried) + 1
    assert [trial.job.recipe.heal_deep for trial in long] == [True]
    assert result.measured_kl == min(tried)


def test_what_the_recipe_removes_is_no_reason_to_mistrust_predictions(tiny, tmp_path):
    """All candidates lack the layer: its loss counts once, and predictions are as good as without it."""
    recipe = Recipe(**{**RECIPE.to_dict(), "remove_layers": 1})
    result = sprat.fit(tiny.folder, "28000", tmp_path / "auto.sprat", recipe=recipe)
    plain = result.considered[0]
    predicted = {row.name: row.predicted_kl for row in result.considered[1:]}
    # A product of rank 1 beside the lattice changes little: the prediction is the measured KL, less and more a bit.
    assert plain.measured_kl is not None and predicted["low rank beside it"] == pytest.approx(
        plain.measured_kl, rel=0.15
    )
