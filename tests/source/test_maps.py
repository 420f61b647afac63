"""Linear maps are found in every family by its module tree."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from sprat.errors import SourceError
from sprat.source.maps import decoder_layers, groups, head, linear_maps

_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_LLAMA_LIKE = [["q", "k", "v"], ["o"], ["gate", "up"], ["down"]]
FAMILIES = {
    "llama": (lambda: tf.LlamaConfig(**_SMALL), _LLAMA_LIKE),
    "smollm": (lambda: tf.LlamaConfig(**_SMALL, tie_word_embeddings=True), _LLAMA_LIKE),
    "mistral": (lambda: tf.MistralConfig(**_SMALL, sliding_window=8), _LLAMA_LIKE),
    "qwen2": (lambda: tf.Qwen2Config(**_SMALL), _LLAMA_LIKE),
    "qwen3": (lambda: tf.Qwen3Config(**_SMALL), _LLAMA_LIKE),
    "gemma3": (lambda: tf.Gemma3TextConfig(**_SMALL, sliding_window=8), _LLAMA_LIKE),
    "gpt2": (lambda: tf.GPT2Config(**_GPT2), [["c_attn"], ["c_proj"], ["c_fc"], ["c_proj"]]),
}


def build(family: str) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(FAMILIES[family][0]()).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_share_their_input_in_forward_order(family):
    model, wanted = build(family), FAMILIES[family][1]
    short = [
        (
            g.layer,
            [
                m.name.split(".")[-2].removesuffix("_proj") if family != "gpt2" else m.name.split(".")[-2]
                for m in g.maps
            ],
        )
        for g in groups(model)
    ]
    assert short == [(layer, names) for layer in range(2) for names in wanted]
    assert [m.name for m in linear_maps(model)] == [m.name for g in groups(model) for m in g.maps]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_map_computes_its_module_and_writes_into_it(family):
    model = build(family)
    for m in linear_maps(model):
        assert model.get_parameter(m.name) is m.module.weight
        assert m.transposed == (family == "gpt2") and m.weight().shape == m.shape
        x = torch.randn(3, m.shape[1])
        bias = m.module.bias if m.module.bias is not None else 0
        assert torch.allclose(m.module(x), x @ m.weight().T + bias, atol=1e-5)
        w = torch.randn(m.shape)
        m.set(w)
        assert torch.equal(m.weight(), w) and m.module.weight.is_contiguous()


def test_layers_and_head():
    tied, untied = build("smollm"), build("llama")
    prefix, layers = decoder_layers(tied)
    assert prefix == "model.layers" and len(layers) == 2
    assert head(tied).tied and not head(untied).tied
    assert head(untied).output_name == "lm_head.weight"
    assert head(untied).input_name == "model.embed_tokens.weight"
    assert decoder_layers(build("gpt2"))[0] == "transformer.h"


def test_several_maps_in_one_tensor_are_refused_by_name():
    config = tf.MixtralConfig(**_SMALL, num_local_experts=4, num_experts_per_tok=2)
    with pytest.raises(SourceError, match=r"Mixtral.*experts.gate_up_proj.*several maps in one tensor"):
        groups(tf.AutoModelForCausalLM.from_config(config))  # as `load` never leaves it


def test_training_mode_and_hooks_are_left_as_found():
    model = build("llama").train()
    groups(model)
    assert model.training and not any(m._forward_pre_hooks for m in model.modules())
