"""Figures against a plain float64 reference, on tiny random models."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from random_llama import tiny
from sprat.errors import ProofError
from sprat.prove.metrics import compare, distribution, summarise
from sprat.prove.text import Contexts


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    ids = np.random.default_rng(0).integers(0, 97, size=(5, 24))
    return Contexts(ids, np.array([40, 41, 42, 43, 44]), skip=12)


def reference(original, compressed, contexts):
    """Per-token figures with whole logits in float64."""
    kl, nll_p, nll_q, same, shift = [], [], [], [], []
    with torch.no_grad():
        for row in contexts.ids:
            ids = torch.from_numpy(row)[None]
            p, q = (
                m(ids).logits[0, contexts.skip : -1].double().log_softmax(-1) for m in (original, compressed)
            )
            x = ids[0, contexts.skip + 1 :]
            kl.append((p.exp() * (p - q)).sum(-1))
            nll_p.append(-p[range(len(x)), x])
            nll_q.append(-q[range(len(x)), x])
            same.append(p.argmax(-1) == q.argmax(-1))
            shift.append((p.exp() - q.exp())[range(len(x)), x] ** 2)
    return [torch.stack(v).double().numpy() for v in (kl, nll_p, nll_q, same, shift)]


def test_figures_match_the_reference(contexts):
    original, compressed = tiny(0), tiny(1)
    kl, nll_p, nll_q, same, shift = reference(original, compressed, contexts)
    scores = compare(original, compressed, contexts)
    assert scores.kl.shape == (5, 11)
    np.testing.assert_allclose(scores.kl, kl, rtol=1e-4)
    metrics = summarise(scores)
    assert metrics.kl.value == pytest.approx(kl.mean(), rel=1e-5)
    assert metrics.kl_median == pytest.approx(np.median(kl), rel=1e-4)
    assert metrics.kl_max == pytest.approx(kl.max(), rel=1e-4)
    assert metrics.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-4)
    assert metrics.same_top.value == same.mean()
    assert metrics.probability_shift_rms.value == pytest.approx(math.sqrt(shift.mean()), rel=1e-4)
    assert metrics.perplexity_original.value == pytest.approx(math.exp(nll_p.mean()), rel=1e-5)
    assert metrics.perplexity_compressed.value == pytest.approx(math.exp(nll_q.mean()), rel=1e-5)
    assert metrics.perplexity_ratio.value == pytest.approx(math.exp((nll_q - nll_p).mean()), rel=1e-5)
    assert metrics.bits_per_byte_original.value == pytest.approx(nll_p.sum() / math.log(2) / 210, rel=1e-5)
    assert metrics.kl.low < metrics.kl.value < metrics.kl.high


def test_identical_models_cost_exactly_nothing(contexts):
    metrics = summarise(compare(tiny(0), tiny(0), contexts))
    assert (metrics.kl.value, metrics.kl.low, metrics.kl.high, metrics.kl_max) == (0, 0, 0, 0)
    assert (metrics.same_top.value, metrics.perplexity_ratio.value) == (1, 1)
    assert metrics.bits_per_byte_difference.value == 0


def test_progress_and_inputs_are_left_alone(contexts):
    calls, before = [], contexts.ids.copy()
    compare(tiny(0), tiny(1), contexts, lambda *call: calls.append(call))
    assert calls[-1] == ("comparing the two models", 5, 5)
    assert (contexts.ids == before).all()


def test_a_short_context_is_scored_as_if_it_stood_alone(contexts):
    lengths = np.array([24, 17, 24, 14, 24])
    padded = replace(
        contexts, ids=np.where(np.arange(24) < lengths[:, None], contexts.ids, 0), lengths=lengths
    )
    scores, full = (compare(tiny(0), tiny(1), c) for c in (padded, contexts))
    assert padded.mask.sum(axis=1).tolist() == [11, 4, 11, 1, 11]
    np.testing.assert_allclose(scores.kl, np.where(padded.mask, full.kl, 0), rtol=1e-4)
    metrics = summarise(scores)
    assert metrics.kl.value == pytest.approx(full.kl[padded.mask].mean(), rel=1e-5)
    assert metrics.kl_median == pytest.approx(np.median(full.kl[padded.mask]), rel=1e-4)


@pytest.mark.parametrize(("broken", "name"), [(0, "original"), (1, "compressed")])
def test_logits_that_are_not_finite_are_refused(contexts, broken, name):
    models = [tiny(0), tiny(1)]
    models[broken].lm_head.weight.data[3, 3] = math.nan
    with pytest.raises(ProofError, match=f"the {name} model gave logits that are not finite"):
        compare(*models, contexts)


def test_two_vocabularies_are_refused(contexts):
    other = tiny(1)
    other.resize_token_embeddings(101)
    with pytest.raises(ProofError, match="97 and 101 tokens"):
        compare(tiny(0), other, contexts)


@pytest.mark.parametrize("value", [-math.inf, math.nan, math.inf])
def test_a_row_that_is_no_distribution_is_refused(value):
    with pytest.raises(ProofError, match="the original model"):
        distribution(torch.full((2, 5), value), "original")


def test_a_token_that_only_the_original_can_give_is_refused(contexts):
    class Without(torch.nn.Module):
        """A model that never says token 5."""

        def __init__(self):
            super().__init__()
            self.inner = tiny(1)

        def forward(self, input_ids, use_cache):
            out = self.inner(input_ids=input_ids, use_cache=use_cache)
            out.logits[..., 5] = -math.inf
            return out

    with pytest.raises(ProofError, match="probability 0"):
        compare(tiny(0), Without(), contexts)
    both = compare(Without(), Without(), replace(contexts, ids=np.where(contexts.ids == 5, 6, contexts.ids)))
    assert (both.kl == 0).all()
