"""AutoRound: rounding and clipping ranges tuned by the signs of gradients, a decoder layer at a time.

Source: Cheng et al., arXiv 2309.05516; package auto-round (extra `peers`), its own format: integers in 32-bit words,
scales in f16, zero points at the integers' width. Its own default is 200 steps on 128 contexts of 2,048 tokens; on a
CPU 50 steps on 32 contexts of 512 take 20 minutes and more of one core at 135M parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.peers import package


def quantize(folder: Path, target: Path, settings: dict[str, Any], ids: Tensor) -> dict[str, Tensor]:
    """Save a checkpoint of the model in `folder`; its dense weights by name.

    settings: bits, group, iters; ids: (contexts, context) calibration tokens.
    """
    auto_round = package("auto_round", "peers")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tool = auto_round.AutoRound(
        model,
        AutoTokenizer.from_pretrained(folder),
        bits=settings["bits"],
        group_size=settings["group"],
        sym=False,
        iters=settings["iters"],
        nsamples=len(ids),
        seqlen=ids.shape[1],
        batch_size=4,
        dataset=[{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in ids],
        device_map="cpu",
        enable_torch_compile=False,
    )
    made, _ = tool.quantize()
    weights = {name: parameter.detach().float().clone() for name, parameter in made.named_parameters()}
    tool.save_quantized(str(target), format="auto_round", inplace=True)
    return weights
