"""Where models compute: on the processor, or on a GPU that PyTorch knows as `cuda` (NVIDIA's, AMD's by ROCm)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sprat.errors import SpratError, nearest
from sprat.sizes import format_bytes
from sprat.training import processes

CPU = torch.device("cpu")


def gpus() -> int:
    """How many this PyTorch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def find(name: str) -> torch.device:
    """The device called `name`: "cpu", "cuda:1", or "cuda", which is the first GPU, and of several processes on a
    machine each one's own.

    Raises SpratError that says what there is, where this is not there.
    """
    kind, _, number = name.partition(":")
    there = ["cpu", *(f"cuda:{i}" for i in range(gpus()))]
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()) or (kind == "cpu" and number):
        meant = " (did you mean 'cuda'?)" if kind == "gpu" else nearest(name, ["cpu", "cuda"])
        raise SpratError(f"unknown device {name!r}{meant}: {_among(there)}")
    if kind == "cpu":
        return CPU
    index = int(number) if number else _own()
    if index >= gpus():
        of = f" for process {index} of this machine" if not number and index else ""
        raise SpratError(f"no device {name!r}{of}: {_among(there)}")
    return torch.device("cuda", index)


@contextmanager
def lent(device: torch.device, *models: nn.Module) -> Iterator[None]:
    """Within it the models lie on `device`, behind it on the processor again.

    Raises SpratError where the GPU's memory ends.
    """
    if device.type == "cpu":
        yield
        return
    try:
        for model in models:
            model.to(device)
        yield
    except torch.OutOfMemoryError as error:
        size = sum(p.nbytes for model in set(models) for p in model.parameters())
        raise SpratError(
            f"out of memory on {device}, where the model alone takes {format_bytes(size)}: --device cpu has the "
            "machine's own memory"
        ) from error
    finally:
        for model in models:
            model.to("cpu")


def said(device: torch.device) -> str:
    """What a result says of it: "cpu", or the GPU's name."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


def _own() -> int:
    """The number of this process among those that torchrun started on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if processes.count() > 1 else 0


def _among(there: list[str]) -> str:
    return f"this machine and its PyTorch ({torch.__version__}) have {', '.join(there)}"
