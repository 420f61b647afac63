"""Several processes that train one model: torchrun starts them, gloo adds up what they found.

Process r of p reads micro-batches r, p + r, 2 p + r, …, and gradients are their mean: p processes step as one does
whose batch is p times as large, but for the order in which floating-point numbers are added. The first one writes.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable

import torch
import torch.distributed as distributed
from torch import Tensor

#: While the first process rounds and scores, the others wait for it to train the next seed.
_WAIT = datetime.timedelta(hours=24)


def begin() -> None:
    """Join the others, where torchrun has started this process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=_WAIT)


def end() -> None:
    """Leave them."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def count() -> int:
    """How many train together: 1 without torchrun."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this one is; 0 writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def average(tensors: Iterable[Tensor]) -> None:
    """In place, over all processes."""
    whole = list(tensors)
    if count() == 1 or not whole:
        return
    flat = torch.cat([tensor.detach().flatten().double() for tensor in whole])
    distributed.all_reduce(flat)
    flat /= count()
    with torch.no_grad():
        for tensor, mean in zip(whole, flat.split([tensor.numel() for tensor in whole]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def total(*values: float) -> list[float]:
    """Sums over all processes."""
    if count() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(sums)
    return sums.tolist()
