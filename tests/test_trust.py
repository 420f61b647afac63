"""Statistics that lie: a fit notices by itself, mends it or writes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import sprat
from sprat import trial, trust
from sprat.errors import StatisticsError
from sprat.recipe import Recipe
from sprat.sense.cache import Cache
from sprat.sense.statistics import GroupStatistics

RECIPE = Recipe(context=64, tokens=2112)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPRAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_a_fit_far_worse_than_predicted_is_mended_and_says_so(tiny, tmp_path, monkeypatch):
    honest, calls = trial.held_out_kl, []

    def lie_once(*arguments):
        calls.append(arguments)
        return 3.0 if len(calls) == 1 else honest(*arguments)

    monkeypatch.setattr(trial, "held_out_kl", lie_once)
    result = sprat.fit(tiny.folder, "50%", tmp_path / "f.sprat", recipe=RECIPE)
    assert len(calls) == 3  # the lie, the repaired fit, the same healed
    assert len(result.warnings) == 1
    assert "held-out KL 3.000" in result.warnings[0]
    assert "fitted again with shrinkage 24" in result.warnings[0]
    assert sprat.open(result.path).recipe["shrinkage"] == 24
    assert result.nbytes <= 28_832


@pytest.mark.parametrize("kl", [3.0, float("nan"), float("inf")])
def test_a_fit_that_cannot_be_mended_writes_nothing(tiny, tmp_path, monkeypatch, kl):
    monkeypatch.setattr(trial, "held_out_kl", lambda *_: kl)
    with pytest.raises(StatisticsError, match=r"nothing was written.*--calibrate"):
        sprat.fit(tiny.folder, "50%", tmp_path / "f.sprat", recipe=RECIPE)
    assert not list(tmp_path.iterdir())


def test_other_choices_of_experts_are_no_reason_for_distrust(tiny, tmp_path, monkeypatch):
    honest = trial.held_out_kl
    monkeypatch.setattr(
        trust, "routed_kl", honest
    )  # as predicted, once every token has its own experts again
    monkeypatch.setattr(trial, "held_out_kl", lambda *arguments: honest(*arguments) + 3)
    result = sprat.fit(tiny.folder, "50%", tmp_path / "f.sprat", recipe=replace(RECIPE, heal=0))
    assert len(result.warnings) == 1
    assert "held-out KL 3.0" in result.warnings[0] and "3.000 is the price of tokens" in result.warnings[0]


@pytest.mark.parametrize("kl", [3.0, float("nan")])
def test_a_mixture_that_is_as_bad_with_its_own_experts_is_not_written(tiny, tmp_path, monkeypatch, kl):
    monkeypatch.setattr(trust, "routed_kl", lambda *_: kl)
    monkeypatch.setattr(trial, "held_out_kl", lambda *_: kl)
    with pytest.raises(StatisticsError, match="nothing was written"):
        sprat.fit(tiny.folder, "50%", tmp_path / "f.sprat", recipe=RECIPE)
    assert not list(tmp_path.iterdir())


def test_planted_statistics_that_call_inputs_silent_are_caught(tiny, tmp_path, monkeypatch):
    """Half of the inputs of every map are said to be a thousandth of what they are: shrinkage cannot know better."""
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / "one"))
    sprat.plan(tiny.folder, ["80%"], recipe=RECIPE)
    for path in (tmp_path / "one").rglob("layer-*.safetensors"):
        store = Cache({}, tmp_path)
        store.folder = path.parent
        name = path.stem.replace("-", "/")
        lying = {}
        for group, s in store.get(name, GroupStatistics).items():
            scale = torch.ones(len(s.h))
            scale[::2] = 1e-3
            lying[group] = replace(s, h=s.h * scale[:, None] * scale)
        store.put(name, lying)
    with pytest.raises(StatisticsError, match="nothing was written"):
        sprat.fit(tiny.folder, "50%", tmp_path / "f.sprat", recipe=RECIPE)
    assert not (tmp_path / "f.sprat").exists()


def test_few_tokens_for_a_wide_layer_are_noted(tiny, tmp_path):
    recipe = Recipe(context=16, tokens=32, held_out=8)
    result = sprat.fit(tiny.folder, "50%", tmp_path / "f.sprat", recipe=recipe)
    assert "32 calibration tokens for inputs up to 64 wide" in result.warnings[0]
    assert result.measured_kl < 0.05
