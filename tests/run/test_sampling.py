"""Sampling against a slow version that does each step by the letter, and against transformers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sprat.errors import RequestError, SourceError
from sprat.run.sampling import Sampler, Sampling, distribution, largest, log_softmax, penalised

LOGITS = st.lists(st.integers(-40, 40).map(lambda x: x / 4), min_size=1, max_size=40)


def slow(logits, temperature, top_k, top_p, min_p):
    """{token: probability} of what remains, before the last normalisation, in plain Python."""
    scaled = {i: x / temperature for i, x in enumerate(logits)}
    order = sorted(scaled, key=lambda i: (-scaled[i], i))
    order = order[:top_k] if top_k else order
    top = max(scaled.values())
    mass = {i: np.exp(scaled[i] - top) for i in order}
    total = sum(mass.values())
    mass = {i: m / total for i, m in mass.items()}
    kept, held = [], 0.0
    for i in order:
        kept.append(i)
        held += mass[i]
        if held >= top_p * (1 - 1e-12):
            break
    kept = kept if top_p < 1 else order
    return {i: mass[i] for i in kept if mass[i] >= min_p * mass[order[0]]}


@settings(deadline=None, max_examples=300)
@given(
    LOGITS,
    st.sampled_from([0.3, 1.0, 1.7]),
    st.integers(0, 45),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]),
    st.sampled_from([0.0, 0.05, 0.4, 1.0]),
)
def test_what_remains_is_what_the_letter_of_each_step_leaves(logits, temperature, top_k, top_p, min_p):
    ids, mass = distribution(
        np.array(logits, np.float32),
        Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p),
    )
    expected = slow(logits, temperature, top_k, top_p, min_p)
    assert dict(zip(ids.tolist(), mass.tolist(), strict=True)) == pytest.approx(expected)


@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("top_k", [0, 1, 700, 5000])
def test_a_large_vocabulary_as_transformers_does_it(top_k, top_p):
    logits = np.random.default_rng(3).normal(size=5000).astype(np.float32) * 2
    ids, mass = distribution(logits, Sampling(temperature=0.8, top_k=top_k, top_p=top_p, min_p=0.001))
    scores = TemperatureLogitsWarper(0.8)(None, torch.from_numpy(logits)[None])
    scores = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    scores = TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
    expected = torch.softmax(MinPLogitsWarper(0.001)(None, scores), dim=-1)[0].numpy()
    found = np.zeros(5000)
    found[ids] = mass / mass.sum()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert ((found > 0) == (expected > 0)).all()


def test_the_repetition_penalty_is_that_of_transformers():
    logits = np.random.default_rng(0).normal(size=50).astype(np.float32)
    seen = [3, 7, 7, 40]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(
        torch.tensor([seen]), torch.from_numpy(logits)[None].clone()
    )
    before = logits.copy()
    found = penalised(logits, Sampling(repetition_penalty=1.3), [3, 7], {7: 1, 40: 1})
    np.testing.assert_allclose(found, expected[0].numpy(), rtol=1e-6)
    assert (logits == before).all()


def test_presence_frequency_and_bias():
    made = Sampling(presence_penalty=0.5, frequency_penalty=0.25, bias={1: 3.0, 99: 1.0})
    found = penalised(np.zeros(4, np.float32), made, [0], {2: 1, 3: 2})
    np.testing.assert_allclose(found, [0, 3, -0.75, -1.0])


def test_temperature_0_is_the_likeliest_the_lowest_of_equals():
    assert Sampler(Sampling()).draw(np.array([1, 3, 3, 2], np.float32)) == 1
    again = Sampler(Sampling(repetition_penalty=2.0), prompt=[1])
    assert [again.draw(np.array([1, 3, 2.9, 2], np.float32)) for _ in range(2)] == [2, 3]


def test_tokens_come_as_often_as_their_probability_says():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype(np.float32)
    sampler = Sampler(Sampling(temperature=1.0, seed=5))
    drawn = np.bincount([sampler.draw(logits) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(drawn, [0.5, 0.3, 0.15, 0.05], atol=0.025)
    cut = Sampler(Sampling(temperature=1.0, top_p=0.7))
    assert {cut.draw(logits) for _ in range(300)} == {0, 1}


def test_the_seed_decides():
    logits = np.zeros(1000, np.float32)

    def draws(seed):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.draw(logits) for _ in range(8)]

    assert draws(1) == draws(1) != draws(2)
    assert draws([1, 0]) == draws([1, 0]) != draws([1, 1])


def test_largest_takes_the_lower_index_of_equals():
    assert largest(np.array([2.0, 5, 2, 5, 2]), 3).tolist() == [1, 3, 0]
    assert largest(np.array([1.0]), 9).tolist() == [0]


def test_log_softmax_sums_to_one():
    found = log_softmax(np.array([[1000, 1001, -np.inf]], np.float32))
    np.testing.assert_allclose(np.exp(found).sum(), 1)
    assert found[0, 1] - found[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("bad", [[1, np.nan], [-np.inf, -np.inf], [1, np.inf]])
def test_broken_logits_are_named(bad):
    with pytest.raises(SourceError, match="not finite"):
        Sampler(Sampling(temperature=1.0)).draw(np.array(bad, np.float32))


def test_some_impossible_tokens_are_fine():
    logits = np.array([-np.inf, 1, -np.inf], np.float32)
    assert Sampler(Sampling(temperature=2.0)).draw(logits) == 1
    assert Sampler(Sampling(temperature=2.0, top_p=0.5, min_p=0.1)).draw(logits) == 1


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("temperature", -1.0, "temperature must lie between 0 and 100, not -1.0"),
        ("temperature", float("nan"), "temperature must lie between"),
        ("top_k", -1, "top-k must be 0"),
        ("top_p", -0.1, "top-p must lie between 0 and 1"),
        ("min_p", 1.5, "min-p must lie between 0 and 1"),
        ("repetition_penalty", 0.0, "repetition penalty must lie between 0.01 and 100"),
        ("presence_penalty", 3.0, "presence penalty must lie between -2 and 2"),
        ("frequency_penalty", float("inf"), "frequency penalty must lie"),
    ],
)
def test_settings_outside_their_range_are_refused(setting, value, message):
    with pytest.raises(RequestError, match=message) as caught:
        Sampling(**{setting: value})
    assert caught.value.setting == setting
