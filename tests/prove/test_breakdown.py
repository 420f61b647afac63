"""KL by position and by frequency against plain loops, and by layer against a model that was copied and changed."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch

from random_llama import tiny
from sprat.prove.breakdown import QUARTERS, by_frequency, by_position
from sprat.prove.layers import by_layer
from sprat.prove.metrics import Scores, compare
from sprat.prove.text import Contexts


@pytest.fixture
def scores() -> Scores:
    random = np.random.default_rng(0)
    lengths = np.array([24, 24, 15, 24, 24, 24, 20, 24, 24])
    ids = np.minimum(random.geometric(0.15, size=(9, 24)), 60)
    contexts = Contexts(ids, np.full(9, 40), 3, lengths, np.array([0, 0, 0, 1, 2, 3, 4, 5, 5]))
    kl = random.exponential(0.2, size=(9, 20)) * contexts.mask
    return Scores(kl, kl, kl, kl, kl, contexts)


def test_every_position_is_in_one_stretch(scores):
    found = by_position(scores)
    assert [part["from"] for part in found] == [4, *(part["to"] for part in found[:-1])]
    assert (found[-1]["to"], len(found)) == (24, 8)
    for part in found:
        place = slice(part["from"] - 4, part["to"] - 4)
        inside = scores.kl[:, place][scores.contexts.mask[:, place]]
        assert part["tokens"] == inside.size
        assert part["kl"].value == pytest.approx(inside.mean())
        assert part["kl"].low < part["kl"].value < part["kl"].high


def test_few_positions_are_told_one_by_one():
    contexts = Contexts(np.zeros((3, 10), np.int64), np.ones(3), 6)
    kl = np.arange(9.0).reshape(3, 3)
    assert [part["kl"].value for part in by_position(Scores(kl, kl, kl, kl, kl, contexts))] == [3, 4, 5]


def test_quarters_are_ordered_by_how_often_a_token_occurs(scores):
    contexts, counts = scores.contexts, Counter()
    for row, length in zip(contexts.ids, contexts.lengths, strict=True):
        counts.update(row[:length].tolist())
    found = by_frequency(scores)
    assert [part["name"] for part in found] == list(QUARTERS)
    assert sum(part["tokens"] for part in found) == contexts.mask.sum()
    assert sum(part["share"] for part in found) == pytest.approx(1)
    targets = contexts.ids[:, 4:][contexts.mask]
    kl = scores.kl[contexts.mask]
    order = sorted(range(len(targets)), key=lambda i: (counts[targets[i]], targets[i]))
    start, seen = 0, set()
    for part in found:
        group = order[start : start + part["tokens"]]
        assert part["kl"].value == pytest.approx(kl[group].mean())
        assert part["share"] == pytest.approx(kl[group].sum() / kl.sum())
        tokens = {int(targets[i]) for i in group}
        assert not tokens & seen
        seen |= tokens
        start += part["tokens"]


def test_one_layer_at_a_time_and_the_original_is_itself_again():
    original, compressed = tiny(0), tiny(1)
    ids = np.random.default_rng(0).integers(0, 97, size=(6, 24))
    contexts = Contexts(ids, np.full(6, 40), 12)
    before = copy.deepcopy(original.state_dict())
    found = by_layer(original, compressed, contexts, count=3)
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert [part["name"] for part in found] == ["embedding", "layer 0", "layer 1"]
    few = Contexts(ids[[0, 2, 5]], np.full(3, 40), 12)
    for part, prefix in zip(found, ("", "model.layers.0.", "model.layers.1."), strict=True):
        mixed = copy.deepcopy(original)
        theirs = dict(compressed.named_parameters())
        for name, parameter in mixed.named_parameters():
            if name.startswith(prefix) if prefix else ".layers." not in name:
                parameter.data = theirs[name].data
        assert part["kl"] == pytest.approx(compare(original, mixed, few).kl.mean(), rel=1e-4)
