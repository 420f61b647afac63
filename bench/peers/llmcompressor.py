"""llm-compressor: vLLM's tool, its GPTQ, saved as compressed-tensors.

Package llmcompressor 0.14 asks for transformers at most 5.17 and auto-round at most 0.15, so no extra can name it
beside ours; it runs with newer ones all the same:

    pip install --no-deps llmcompressor==0.14.0.1 compressed-tensors==0.19.0 loguru nvidia-ml-py && pip install datasets

Integers are packed without gaps into 32-bit words, scales in bf16, zero points packed too. What it saved cannot be
loaded by these transformers, so the weights are those of its model in memory, which its rounding has replaced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.peers import package


def quantize(folder: Path, target: Path, settings: dict[str, Any], ids: Tensor) -> dict[str, Tensor]:
    """Save a checkpoint of the model in `folder`; its dense weights by name.

    settings: bits, group; ids: (contexts, context) calibration tokens.
    """
    tool = package("llmcompressor", "")
    gptq = package("llmcompressor.modifiers.gptq", "")
    datasets = package("datasets", "")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    weights = {
        "num_bits": settings["bits"],
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": settings["group"],
    }
    rounding = gptq.GPTQModifier(
        config_groups={"all": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"]
    )
    rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    tool.oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        dataset=datasets.Dataset.from_dict(rows),
        recipe=[rounding],
        max_seq_length=ids.shape[1],
        num_calibration_samples=len(ids),
    )
    dense = {name: parameter.detach().float().clone() for name, parameter in model.named_parameters()}
    model.save_pretrained(target, save_compressed=True)
    return dense
