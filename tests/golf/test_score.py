"""Bits per byte against a token-by-token reference, and what two trainings' difference is worth."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import documents, recipe
from test_model import random_model

from sprat.errors import FormatError, ProofError
from sprat.golf import int8, words
from sprat.golf.compare import compare, incomplete_beta, welch
from sprat.golf.result import read
from sprat.golf.score import score, windows

TEXTS = documents(4, 30)
TOKENIZER = words.learn(documents(), 320)


@given(st.integers(2, 300), st.integers(1, 3), st.integers(2, 40), st.data())
def test_every_token_is_predicted_once_from_what_stands_before_it(length, first, context, data):
    stride = data.draw(st.integers(1, context))
    first = min(first, length - 1, context)
    predicted = []
    for start, begin, end in windows(length, first, context, stride):
        assert begin < start < end <= length and end - 1 - begin <= context
        if begin:
            assert start - begin >= context - stride + 1
        predicted += range(start, end)
    assert predicted == list(range(first, length))


@pytest.mark.parametrize("stride", [None, 24, 1])
def test_bits_are_those_of_each_token_alone(stride):
    random, context = np.random.default_rng(0), 24
    table = random.normal(size=(320, 320)) * 3

    def predict(ids):
        return np.float32(table[ids] + 0.5 * len(ids))

    found = score(predict, context, TOKENIZER, [0], TEXTS, stride)
    p = np.exp(table) / np.exp(table).sum(1, keepdims=True)
    expected = []
    for text in TEXTS:
        ids = [0, *words.encode(TOKENIZER, text)]
        expected.append(sum(-math.log2(p[a, b]) for a, b in itertools.pairwise(ids)))
    assert np.allclose(found.bits, expected, rtol=1e-5)
    assert found.bits_per_byte == pytest.approx(sum(expected) / sum(len(t.encode()) for t in TEXTS), rel=1e-5)


def test_sliding_windows_give_more_context():
    seen = []

    def predict(ids):
        seen.append(list(ids))
        return np.zeros((len(ids), 320), np.float32)

    found = score(predict, 16, TOKENIZER, [0], TEXTS[:1], 4)
    assert all(len(ids) <= 16 for ids in seen) and len(seen) > found.tokens / 4 - 4
    assert found.bits[0] == pytest.approx(found.tokens * math.log2(320))
    with pytest.raises(ProofError, match="a stride must be 1 to 16"):
        score(predict, 16, TOKENIZER, [0], TEXTS, 17)


def test_a_broken_model_is_not_scored():
    with pytest.raises(ProofError, match="not finite"):
        score(lambda ids: np.full((len(ids), 320), np.nan, np.float32), 16, TOKENIZER, [0], TEXTS)


def test_eight_bits_come_back_within_half_a_step():
    settings = {"activation": "relu2", "finish": "int8-zlib"}
    model = random_model(**settings)
    data = int8.pack(model, recipe(**settings), TOKENIZER)
    again, same, tokenizer = int8.unpack(data)
    assert same == recipe(**settings) and tokenizer.to_str() == TOKENIZER.to_str()
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        step = p.abs().amax(-1, keepdim=True) / 127 if p.ndim == 2 else p.abs() / 1024
        assert bool(((p - q).abs() <= 0.6 * step).all()), name
    assert len(data) < 1.1 * sum(p.numel() for p in model.parameters()) + 4000


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_damaged_file_of_eight_bits_is_an_error(data):
    whole = bytearray(PACKED)
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FormatError):
        int8.unpack(bytes(whole))


PACKED = int8.pack(random_model(), recipe(), TOKENIZER)


def test_welch_against_published_figures():
    a = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
    b = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 30.5, 24.4]
    t, freedom, p = welch(a, b)
    # R: t.test(a, b)
    assert (t, freedom, p) == (
        pytest.approx(-2.8530, abs=1e-3),
        pytest.approx(27.888, abs=1e-2),
        pytest.approx(0.00807, abs=1e-4),
    )
    assert welch([1.0, 1.0], [1.0, 1.0])[2] == 1 and welch([1.0, 1.0], [2.0, 2.0])[2] == 0


@pytest.mark.parametrize(
    ("t", "freedom", "p"), [(12.7062, 1, 0.05), (2.7764, 4, 0.05), (3.1693, 10, 0.01), (1.96, 1e6, 0.05)]
)
def test_the_tail_of_student_t(t, freedom, p):
    assert incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5) == pytest.approx(p, rel=2e-3)


def result(scores: list[float], cap: int = 1000, hash: str = "v") -> dict:
    rows = [
        {"bits_per_byte": s, "bytes": 900 + i, "documents": [[s * 90 + d, 100] for d in range(-10, 30, 10)]}
        for i, s in enumerate(scores)
    ]
    return {
        "schema": "sprat.golf/1", "cap": cap, "length": {"kind": "tokens", "amount": 1}, "threads": 1, "machine": "m",
        "runs": rows, "validation": {"hash": hash}, "text": {"hash": "t"},
    }  # fmt: skip


def test_a_comparison_tells_which_is_better_and_what_is_unequal(tmp_path):
    found = compare(result([2.0, 2.1, 2.05]), result([1.5, 1.6, 1.55], cap=2000))
    assert found.p is not None and found.p < 0.001 and found.difference.value == pytest.approx(0.45)
    assert (
        found.unequal == ("cap: 1000 and 2000",) and "the second is better by 0.4500" in found.sentences()[0]
    )
    assert compare(result([2.0]), result([1.0])).p is None
    hour = {"length": {"kind": "seconds", "amount": 3600}}
    paced = [{**result([1.0]), **hour, "pace": pace} for pace in (0.0, 1e-3, 2e-3)]
    assert compare(paced[0], paced[1]).unequal == ("counted by: the clock and a pace",)
    assert compare(paced[1], paced[2]).unequal == ()  # of the same time, each by what its own tokens cost
    several = {**result([1.0]), "processes": 2}
    assert compare(result([1.0]), several).unequal == ("processes: 1 and 2",)
    with pytest.raises(ProofError, match="different documents"):
        compare(result([1.0]), result([1.0], hash="w"))
    assert "neither is better" in compare(result([1.0]), result([1.0])).sentences()[0]
    (tmp_path / "a.json").write_text(json.dumps(result([1.0])))
    assert read(tmp_path / "a.json") == result([1.0])
    (tmp_path / "b.json").write_text("[]")
    for wrong in ("b.json", "absent.json"):
        with pytest.raises(ProofError, match="no result"):
            read(tmp_path / wrong)


def test_documents_are_paired_in_whatever_order_they_were_scored():
    """The hash of held-out documents does not tell their order."""
    random = np.random.default_rng(1)
    a, b = result([1.0, 1.1]), result([1.0, 1.1])
    nbytes = random.permutation(np.arange(100, 112)).tolist()
    for run in (*a["runs"], *b["runs"]):
        hard = np.linspace(1, 40, len(nbytes))  # what makes a document hard for both
        run["documents"] = [[n * h + random.normal(), n] for n, h in zip(nbytes, hard, strict=True)]
    told = compare(a, b).difference
    for run in (a["runs"][1], *b["runs"]):  # of one side too, a seed may have been trained another day
        run["documents"] = [run["documents"][i] for i in random.permutation(len(nbytes))]
    again = compare(a, b).difference
    assert (again.value, again.low, again.high) == pytest.approx((told.value, told.low, told.high))
    b["runs"][0]["documents"][0][1] = b["runs"][0]["documents"][1][1]
    with pytest.raises(ProofError, match="another order"):
        compare(a, b)
