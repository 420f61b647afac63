"""Tiny random mixtures of experts of several families, float32, with the vocabulary of `tiny_model`'s tokenizer."""

from __future__ import annotations

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

_COMMON = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_SMALL = {"moe_intermediate_size": 24, "intermediate_size": 48}
MIXTURES: dict[str, PretrainedConfig] = {
    "qwen3": Qwen3MoeConfig(**_COMMON, **_SMALL, num_experts=6, head_dim=8, norm_topk_prob=True),
    "mixtral": MixtralConfig(**_COMMON, intermediate_size=24, num_local_experts=4, sliding_window=None),
    "olmoe": OlmoeConfig(**_COMMON, intermediate_size=24, num_experts=6),
    "qwen2, shared": Qwen2MoeConfig(
        **_COMMON, **_SMALL, num_experts=4, shared_expert_intermediate_size=20, mlp_only_layers=[0]
    ),
    "deepseek, groups": DeepseekV3Config(
        **_COMMON | {"num_key_value_heads": 4},
        **_SMALL,
        n_routed_experts=4,
        n_shared_experts=1,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
    ),
    "phi": PhimoeConfig(**_COMMON, intermediate_size=24, num_local_experts=4, attention_bias=True),
}


def tiny_mixture(family: str, seed: int = 0) -> PreTrainedModel:
    """As transformers builds it. Everything is random, routers and norms too, so that one in the wrong place shows."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(MIXTURES[family]), dtype=torch.float32).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_((0.3 if tensor.ndim == 1 else 0.2) * torch.randn_like(tensor))
    return model
