"""Checkpoints that other tools save: what they weigh, and their weights put into a copy of the original.

Every tool starts from one Hugging Face folder in bf16, as their users do, and leaves the embedding, the head and the
norms in it. What a checkpoint weighs is its safetensors and config as the tool saved them, and the packed tokenizer
that every other row counts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sprat.coding.tokenizer import pack
from sprat.errors import SpratError
from sprat.prove.proof import sha256
from sprat.source.load import Source

#: Contexts of calibration text that AutoRound and llm-compressor are given.
SAMPLES = 32


def original(source: Source, folder: Path) -> Path:
    """`source` as a folder in bf16, written once."""
    if not (folder / "config.json").exists():
        made: Any = copy.deepcopy(source.model)  # its `to` is not typed for a dtype
        made.to(torch.bfloat16).save_pretrained(folder)
        source.tokenizer.save_pretrained(folder)
    return folder


def weigh(folder: Path, source: Source) -> dict[str, Any]:
    """Bytes, and the hash of the weights."""
    config, weights = folder / "config.json", sorted(folder.rglob("*.safetensors"))
    if len(weights) != 1 or not config.exists():
        raise SpratError(f"the tool saved {len(weights)} files of weights, one was expected")
    total = weights[0].stat().st_size + config.stat().st_size + len(pack(source.tokenizer_files))
    return {"bytes": total, "sha256": sha256(weights[0])}


def installed(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` with `weights` by parameter name. SpratError unless they are all of its parameters."""
    made = copy.deepcopy(model)
    parameters = dict(made.named_parameters())
    if missing := sorted(parameters.keys() - weights.keys()):
        raise SpratError(f"the tool's model has no {missing[0]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    return made
