"""Tiny random models of several families, float32, with the vocabulary of `tiny_model`'s tokenizer."""

from __future__ import annotations

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
    XGLMConfig,
)

VOCABULARY = 320
_COMMON = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "initializer_range": 0.2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
}
_WIDE = _COMMON | {"intermediate_size": 64, "num_key_value_heads": 2, "pad_token_id": None}
#: The sliding windows are shorter than the tests' contexts.
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_WIDE, tie_word_embeddings=False),
    "llama, biases": LlamaConfig(**_WIDE, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**_WIDE, tie_word_embeddings=False, head_dim=8, sliding_window=5),
    "qwen2": Qwen2Config(**_WIDE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**_WIDE, tie_word_embeddings=True, head_dim=16),
    "gemma3": Gemma3TextConfig(
        **_WIDE,
        tie_word_embeddings=True,
        head_dim=8,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
    ),
    "gpt2": GPT2Config(**_COMMON),
    "gpt2, untied": GPT2Config(**_COMMON, tie_word_embeddings=False),
}
#: Families that the anatomy does not know, each with a layer of another make: masks for a whole batch (BLOOM, XGLM),
#: tuples where others give tensors (Falcon, MPT), maps that see a batch in one row (OPT),
#: maps as wide as the model whatever its config says of heads (StableLM).
_BEGUN = _COMMON | {"bos_token_id": 0}
OTHERS: dict[str, PretrainedConfig] = {
    "bloom": BloomConfig(**_BEGUN),
    "falcon": FalconConfig(**_BEGUN, ffn_hidden_size=64),
    "mpt": MptConfig(**_BEGUN, expansion_ratio=2),
    "opt": OPTConfig(**_BEGUN, ffn_dim=64, word_embed_proj_dim=32, pad_token_id=1, init_std=0.2),
    "xglm": XGLMConfig(**_BEGUN, ffn_dim=64, pad_token_id=1, init_std=0.2),
    "stablelm": StableLmConfig(**_WIDE),
}
ALL = CONFIGS | OTHERS


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """Norms and biases are random too, so that one in the wrong place shows."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(ALL[family]), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def contexts(count: int, length: int, seed: int = 1) -> torch.Tensor:
    """(count, length) random token ids."""
    return torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))
