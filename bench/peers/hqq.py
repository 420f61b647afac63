"""HQQ: half-quadratic quantization by its own package and defaults, on the CPU, without calibration text.

Source: Badri & Shaji 2023, https://mobiusml.github.io/hqq_blog/; package hqq. Groups along a row (axis 1),
scales and fractional zero points in f16 as the package keeps them; the integers are weighed packed without
gaps, which is kinder than the package's own 3-bit format (10 in 32 bits).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.packed import Grouped, to_number


def quantize(w: Tensor, bits: int, group: int) -> Grouped:
    """w: (m, n), m·n a multiple of `group`: where n is none, groups run on into the next row."""
    from hqq.core.quantize import Quantizer  # pyright: ignore[reportMissingImports]  (the bench extra)

    with torch.inference_mode():
        q, meta = Quantizer.quantize(
            w.detach().float(),
            nbits=bits,
            channel_wise=True,
            group_size=group,
            optimize=True,
            round_zero=bits == 4,  # the package's default (BaseQuantizeConfig)
            axis=1,
            bitpack=False,
            compute_dtype=torch.float32,
            device="cpu",
        )
    rows, columns = w.shape
    return Grouped(
        q.reshape(-1, group).to(torch.uint8).numpy(),
        to_number(meta["scale"].float().reshape(-1, 1).numpy(), "f16"),
        to_number(meta["zero"].float().reshape(-1, 1).numpy(), "f16"),
        bits,
        group,
        (rows, columns),
        "f16",
    )
