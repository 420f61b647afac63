"""torchao: round to nearest by its own tensors, saved through transformers, without calibration text.

Package torchao (extra `peers`). 8 bits: one scale a row (Int8WeightOnlyConfig). Fewer: groups with
IntxWeightOnlyConfig, whose only format for a CPU keeps each integer in a byte of its own. Its packed 4-bit tensors
(Int4WeightOnlyConfig) need a GPU library (mslk).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.peers import package


def quantize(folder: Path, target: Path, settings: dict[str, Any], ids: Tensor) -> dict[str, Tensor]:
    """Save a checkpoint of the model in `folder`; its dense weights by name. settings: bits, group (0: a row)."""
    quantization = package("torchao.quantization", "peers")
    from transformers import AutoModelForCausalLM, TorchAoConfig

    if settings["bits"] == 8:
        config = quantization.Int8WeightOnlyConfig()
    else:
        config = quantization.IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{settings['bits']}"),
            granularity=quantization.PerGroup(settings["group"]),
        )
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=TorchAoConfig(config)
    )
    model.save_pretrained(target)
    return {
        name: (p.detach() if type(p.data) is Tensor else p.dequantize()).float()  # type: ignore[attr-defined]
        for name, p in model.named_parameters()
    }
