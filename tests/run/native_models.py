"""Tiny random models of every family that the native engine serves, as `.sprat` files."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from sprat.coding import container, entropy
from sprat.coding.tensors import Dense, Entry, Lattice, LogScale

VOCABULARY = 131
_WIDE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 0,
}
_KINDS = ["sliding_attention", "full_attention", "sliding_attention"]


def _scaled(**settings: object) -> dict[str, object]:
    return {"rope_theta": 500.0, **settings}


#: Windows are shorter than the tests' texts; head_dim 6, 8, 10, 16 and 20; each rope scaling once.
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_WIDE, tie_word_embeddings=False),
    "llama, tied, biases": LlamaConfig(**_WIDE, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama, one key head": LlamaConfig(**_WIDE | {"num_key_value_heads": 1}, head_dim=6),
    "llama, linear": LlamaConfig(**_WIDE, rope_parameters=_scaled(rope_type="linear", factor=3.0)),
    "llama, llama3": LlamaConfig(
        **_WIDE,
        head_dim=20,
        rope_parameters=_scaled(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "llama, yarn": LlamaConfig(
        **_WIDE,
        head_dim=16,
        rope_parameters=_scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=24),
    ),
    "mistral": MistralConfig(**_WIDE, tie_word_embeddings=False, head_dim=8, sliding_window=7),
    "qwen2": Qwen2Config(**_WIDE, tie_word_embeddings=True),
    "qwen2, windows": Qwen2Config(
        **_WIDE, use_sliding_window=True, sliding_window=9, max_window_layers=1, tie_word_embeddings=False
    ),
    "qwen3": Qwen3Config(**_WIDE, tie_word_embeddings=True, head_dim=16),
    "gemma3": Gemma3TextConfig(
        **_WIDE,
        tie_word_embeddings=True,
        head_dim=8,
        sliding_window=5,
        layer_types=_KINDS,
        query_pre_attn_scalar=12,
        final_logit_softcapping=20.0,
    ),
    "gemma3, untied": Gemma3TextConfig(
        **_WIDE,
        tie_word_embeddings=False,
        head_dim=16,
        sliding_window=20,
        layer_types=_KINDS[::-1],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 900.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
}


def lattice_of(matrix: np.ndarray, steps: float = 40, seed: int = 0) -> Lattice:
    """Rounded to about ±`steps` levels a row, with row and column scales that vary."""
    rng = np.random.default_rng(seed)
    col = LogScale(rng.integers(-12, 13, matrix.shape[1]).astype(np.int32), 8)
    scaled = matrix / col.values()
    row = LogScale.nearest(np.abs(scaled).max(axis=1) / steps * np.exp2(rng.normal(0, 1, len(matrix))), 8)
    q = np.rint(scaled / row.values()[:, None])
    q = q.astype(np.int16 if np.abs(q).max() < 2**15 else np.int32)
    return Lattice(q, row, col, *entropy.classes(1 / row.values(), 1 / col.values()))


def write_model(
    family: str, path: Path, stacked: bool = True, steps: float = 40, context: int | None = None
) -> Path:
    """A model of the family with random norms and biases, its matrices lattices, stacked as `fit` stacks them."""
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[family])
    if context:
        config.max_position_embeddings = context
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    arrays = {name: p.detach().numpy() for name, p in model.named_parameters()}
    entries: dict[str, Entry] = {}
    done: set[str] = set()
    for name, array in arrays.items():
        if name in done:
            continue
        names = [name]
        for group in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            if stacked and array.ndim == 2 and group[0] in name:
                names = [name.replace(group[0], other) for other in group]
        done.update(names)
        if array.ndim == 1:
            entries[name] = Entry((name,), array.shape, Dense(array.copy(), "f32"))
            continue
        whole = np.concatenate([arrays[n] for n in names])
        lattice = lattice_of(whole, steps, seed=len(entries))
        entries[name] = Entry(tuple(names), tuple(len(arrays[n]) for n in names), lattice)
    container.write(path, config=config.to_dict(), entries=entries, recipe={}, provenance={})
    return path
