"""Does the verdict tell the truth? A planted loss is found, and no loss is not, as often as 95 % promises.

Scores are simulated as two real models give them: 100,000 tokens read, half of them scored, in contexts of documents
that differ in how hard they are (for both models) and in how much the compression hurts on them.
"""

import math

import numpy as np
import pytest

from sprat.prove.metrics import Scores, summarise
from sprat.prove.text import Contexts

CONTEXT, CONTEXTS = 512, 195  # 99,840 tokens
SEEDS = 20


def simulated(seed: int, loss: float, windows: int = 4) -> Scores:
    """−log p with mean 3 nats; −log q is 0.25 off at a position and 0.01 for a whole document, and `loss` worse.

    (A KL of 0.03, as a loss of 2 % has, gives differences of about √(2 · 0.03) = 0.25 at a position.)
    """
    random = np.random.default_rng(seed)
    documents = np.arange(CONTEXTS) // windows
    shape, names = (CONTEXTS, CONTEXT // 2 - 1), documents.max() + 1
    hard = random.gamma(30, 3 / 30, size=names)[documents, None]
    mine = random.exponential(hard, size=shape)
    hurt = random.normal(0, 0.01, size=names)[documents, None]
    theirs = mine + random.normal(0, 0.25, size=shape) + hurt + loss
    ids = np.zeros((CONTEXTS, CONTEXT), np.int64)
    contexts = Contexts(ids, np.full(CONTEXTS, 4 * shape[1]), CONTEXT // 2, documents=documents)
    kl = random.exponential(0.03, size=shape)
    return Scores(kl, mine, theirs, np.ones(shape), np.zeros(shape), contexts)


def test_a_planted_loss_of_two_percent_is_found():
    for seed in range(SEEDS):
        ratio = summarise(simulated(seed, math.log(1.02)), seed, 500).perplexity_ratio
        assert ratio.excludes(1.0)
        assert ratio.low < ratio.value < ratio.high
        assert ratio.value == pytest.approx(1.02, abs=0.01)


def test_a_planted_equal_is_called_different_no_more_often_than_chance():
    found = [summarise(simulated(seed, 0.0), seed, 500) for seed in range(SEEDS)]
    for name, equal in (("perplexity_ratio", 1.0), ("bits_per_byte_difference", 0.0)):
        wrong = sum(getattr(metrics, name).excludes(equal) for metrics in found)
        assert wrong <= 3  # more than 3 of 20 would be chance once in 63 times at 5 %


def test_the_very_same_model_is_never_called_different():
    for seed in range(SEEDS):
        scores = simulated(seed, 0.0)
        zero = np.zeros_like(scores.kl)
        same = Scores(zero, scores.nll_original, scores.nll_original, zero + 1, zero, scores.contexts)
        metrics = summarise(same, seed, 200)
        assert not metrics.perplexity_ratio.excludes(1.0)
        assert not metrics.kl.excludes(0.0)
        assert (metrics.perplexity_ratio.low, metrics.perplexity_ratio.high) == (1, 1)
