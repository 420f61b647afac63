"""The original's hidden states on disk: the same figures without running it, and never a wrong one."""

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from random_llama import tiny
from sprat.prove.metrics import compare
from sprat.prove.remembered import remember
from sprat.prove.text import Contexts


@pytest.fixture
def contexts() -> Contexts:
    ids = np.random.default_rng(0).integers(0, 97, size=(5, 24))
    return Contexts(ids, np.full(5, 40), 12, np.array([24, 16, 24, 20, 24]))


def counting(model):
    """The model, and a list that grows with each of its runs."""
    runs = []
    model.model.register_forward_hook(lambda *_: runs.append(1))
    return model, runs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_the_same_and_the_original_is_not_run_again(contexts, tmp_path, dtype):
    other = tiny(1).to(dtype)
    expected = compare(tiny(0).to(dtype), other, contexts)
    first = remember(tiny(0).to(dtype), "digest", contexts, root=tmp_path)
    model, runs = counting(tiny(0).to(dtype))
    again = remember(model, "digest", contexts, root=tmp_path)
    for kept in (first, again):
        scores = compare(kept, other, contexts)
        np.testing.assert_allclose(scores.kl, expected.kl, atol=1e-6)
        np.testing.assert_allclose(scores.nll_original, expected.nll_original, atol=1e-6)
    assert runs == []
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size == (contexts.mask.sum() + 5) * 16 * dtype.itemsize + 32


@pytest.mark.parametrize("harm", ["flip", "cut", "empty"])
def test_a_damaged_file_is_made_again(contexts, tmp_path, harm):
    remember(tiny(0), "digest", contexts, root=tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    path.write_bytes({"flip": bytes([good[0] ^ 1]) + good[1:], "cut": good[:-1], "empty": b""}[harm])
    model, runs = counting(tiny(0))
    remember(model, "digest", contexts, root=tmp_path)
    assert len(runs) >= 5
    assert path.read_bytes() == good


def test_another_model_text_or_skip_is_another_file(contexts, tmp_path):
    others = [
        ("a", contexts),
        ("b", contexts),
        ("a", Contexts(contexts.ids, contexts.bytes_scored, 11, contexts.lengths)),
        ("a", Contexts(contexts.ids, contexts.bytes_scored, 12)),
        (
            "a",
            Contexts(
                contexts.ids + 1 - 2 * (contexts.ids == 96), contexts.bytes_scored, 12, contexts.lengths
            ),
        ),
    ]
    for digest, cuts in others:
        remember(tiny(0), digest, cuts, root=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_a_model_that_changes_its_logits_behind_the_head_is_run_each_time(contexts, tmp_path):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=97, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5, initializer_range=0.3,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    assert remember(model, "digest", contexts, root=tmp_path) is model
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_behind_by_a_run_that_was_cut_off(contexts, tmp_path):
    def stop(stage, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remember(tiny(0), "digest", contexts, stop, root=tmp_path)
    assert list(tmp_path.iterdir()) == []
