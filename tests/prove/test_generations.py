"""Greedy continuations against a loop without batch and cache, and where they part."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from random_llama import tiny
from sprat.errors import ProofError
from sprat.prove.generations import diverge, greedy
from sprat.prove.text import Contexts

TOKENIZER = SimpleNamespace(
    decode=lambda ids: " ".join(map(str, ids)), token_text=str, eos_ids=frozenset({96})
)


def plain(model, row, count):
    ids = list(row)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(row) :]


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    ids = np.random.default_rng(5).integers(0, 96, size=(7, 24))
    return Contexts(ids, np.full(7, 40), 12, documents=np.arange(7) // 2)


def test_a_batch_writes_what_each_row_would_alone(contexts):
    model = tiny(3)
    written = greedy(model, contexts.ids[:, :8], 12)
    assert written.tolist() == [plain(model, row[:8], 12) for row in contexts.ids]


def test_tokens_before_the_first_difference_are_counted(contexts):
    original, other = tiny(3), tiny(3)
    other.lm_head.weight.data += 0.15 * torch.randn(other.lm_head.weight.shape)
    found = diverge(original, other, contexts, TOKENIZER, 4, prompt=8, written=12)
    assert len(found["prompts"]) == 4
    for said, row in zip(found["prompts"], contexts.ids[[0, 2, 4, 6]], strict=True):
        mine, theirs = (plain(model, row[:8], 12) for model in (original, other))
        same = 0
        while same < 12 and mine[same] == theirs[same]:
            same += 1
        assert said["prompt"] == " ".join(map(str, row[:8]))
        assert said["original"] == list(map(str, mine))
        assert (said["same_tokens"], said["tokens"]) == (same, 12)
    counts = [said["same_tokens"] for said in found["prompts"]]
    assert found["divergence"].value == np.mean(counts)
    assert 0 < np.mean(counts) < 12  # else nothing was tested


def test_the_same_model_never_parts_and_the_end_of_a_text_ends_it(contexts):
    model = tiny(3)
    model.lm_head.weight.data[96] = 50 * model.lm_head.weight.data[:96].mean(0)
    found = diverge(model, model, contexts, TOKENIZER, 7, prompt=8, written=12)
    for said in found["prompts"]:
        assert said["same_tokens"] == said["tokens"] == len(said["original"])
        assert "96" not in said["original"][:-1]
    assert min(said["tokens"] for said in found["prompts"]) < 12


def test_documents_shorter_than_the_prompt_are_refused(contexts):
    short = Contexts(contexts.ids, contexts.bytes_scored, 12, np.full(7, 15))
    assert len(diverge(tiny(3), tiny(3), short, TOKENIZER, 2, prompt=15, written=1)["prompts"]) == 2
    with pytest.raises(ProofError, match="16 tokens that a prompt needs"):
        diverge(tiny(3), tiny(3), short, TOKENIZER, 2, prompt=16, written=1)
