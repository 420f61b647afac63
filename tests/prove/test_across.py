"""Bits per byte across two tokenizers: the same figure where they are the same, the same bytes where they are not."""

import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from sprat.errors import ProofError
from sprat.prove import across
from sprat.prove.metrics import compare, summarise
from sprat.prove.text import Text, cut
from sprat.run.tokenizer import TextTokenizer

CONTENT = " ".join(
    np.random.default_rng(0).permutation(
        ["the", "cat", "sat", "on", "a", "mat,", "café", "🐟", "and", "dogs"] * 40
    )
)


def tokenizer(size: int, prefix: bool = False) -> TextTokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([CONTENT], trainer)
    return TextTokenizer(made)


def model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def contexts(mine: TextTokenizer):
    text = Text(CONTENT, "text", len(CONTENT.encode()), "")
    return cut(mine.backend, text, length=32, skip=12, tokens=32 * 8)


def test_with_the_same_tokenizer_it_is_the_usual_figure():
    same, pair = tokenizer(300), (model(0), model(1))
    cuts = contexts(same)
    usual = summarise(compare(*pair, cuts), seed=4)
    found, scored = across.bits_per_byte(*pair, (same, same), cuts, seed=4)
    assert scored == cuts.bytes_scored.sum()
    for name in ("bits_per_byte_original", "bits_per_byte_compressed", "bits_per_byte_difference"):
        a, b = getattr(found, name), getattr(usual, name)
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), rel=1e-5)
    assert found.kl is None


def test_both_models_are_asked_for_the_same_bytes():
    theirs, mine = tokenizer(262), tokenizer(330)
    pair, cuts = (model(0), model(1)), contexts(mine)
    found, scored = across.bits_per_byte(*pair, (theirs, mine), cuts)
    nll, total = [0.0, 0.0], 0
    for unscored, behind in cuts.passages:
        text = unscored + behind
        # The slow way: try every place, and take the first at which each tokenizer's pieces can be parted.
        for at in range(len(unscored), len(text)):
            cut_ids = [(t.encode(text[:at]), t.encode(text)) for t in (theirs, mine)]
            if all(whole[: len(head)] == head for head, whole in cut_ids):
                break
        total += len(text[at:].encode())
        for i, (head, whole) in enumerate(cut_ids):
            with torch.no_grad():
                logs = pair[i](torch.tensor([whole])).logits[0].double().log_softmax(-1)
            nll[i] -= sum(float(logs[j - 1, whole[j]]) for j in range(len(head), len(whole)))
    assert scored == total
    assert found.bits_per_byte_original.value == pytest.approx(nll[0] / math.log(2) / total, rel=1e-5)
    assert found.bits_per_byte_compressed.value == pytest.approx(nll[1] / math.log(2) / total, rel=1e-5)


def test_no_common_boundary_is_said():
    assert across._common([3, 9], [4, 9], 2) is None
    assert across._common([3, 6, 9], [1, 6, 9], 2) == 6
    cuts = contexts(tokenizer(300))
    none = type(cuts)(cuts.ids, cuts.bytes_scored, cuts.skip, passages=(("", "a"),))
    with pytest.raises(ProofError, match="no common boundary"):
        across.bits_per_byte(model(0), model(1), (tokenizer(300), tokenizer(300)), none)
