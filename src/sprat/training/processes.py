"""Several processes that train one model: torchrun starts them, gloo adds up what they found.

Process r of p reads micro-batches r, p + r, 2 p + r, …, and gradients are their mean: p processes step as one does
whose batch is p times as large, but for the order in which floating-point numbers are added. The first one writes.
They train together within `joined`; elsewhere, and within `alone`, a process is one of one and waits for nobody.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor

from sprat.errors import TrainingError

T = TypeVar("T")

#: While the first process writes a text, or rounds and scores, the others wait for it.
_WAIT = datetime.timedelta(hours=24)
#: Numbers that are averaged at once, but for a larger tensor: bounds the copy of them.
_AT_ONCE = 1 << 24
_together: ContextVar[bool] = ContextVar("together", default=False)


def started() -> int:
    """How many processes torchrun started: 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined() -> Iterator[bool]:
    """Train with the others, where torchrun has started this process; whether it is the first.

    One that fails leaves too, and the others, where they wait for it, with a TrainingError.
    """
    if started() == 1:
        yield True
        return
    try:
        distributed.init_process_group("gloo", timeout=_WAIT)
    except ValueError as error:  # torch's own, for a variable that torchrun sets
        raise TrainingError(
            f"WORLD_SIZE says that {started()} processes train together, but they cannot meet ({error}): start them "
            "with torchrun, or unset WORLD_SIZE for one"
        ) from error
    token = _together.set(True)
    try:
        # One that left while another still connects would take its connections along.
        _meet(distributed.barrier)
        yield rank() == 0
    finally:
        _together.reset(token)
        distributed.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """What this process trains by itself, whatever the others do."""
    token = _together.set(False)
    try:
        yield
    finally:
        _together.reset(token)


def count() -> int:
    """How many train together."""
    return distributed.get_world_size() if _together.get() else 1


def rank() -> int:
    """Which of them this one is; 0 writes."""
    return distributed.get_rank() if _together.get() else 0


def average(tensors: Iterable[Tensor]) -> None:
    """In place, over all processes; each gives tensors of the same sizes in the same order."""
    if count() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.detach().flatten().float() for tensor in bucket]).cpu()  # where gloo adds
        _meet(distributed.all_reduce, flat)
        flat /= count()
        with torch.no_grad():
            for tensor, mean in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(mean.view_as(tensor))


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """As `average`; a parameter without a gradient counts as 0 beside others' and keeps none where all have none.

    An expert that one process's text is routed to may see nothing of another's.
    """
    if count() == 1:
        return
    given = list(parameters)
    having = total(*(parameter.grad is not None for parameter in given))
    reached = [parameter for parameter, processes in zip(given, having, strict=True) if processes]
    for parameter in reached:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    average(parameter.grad for parameter in reached if parameter.grad is not None)


def total(*values: float) -> list[float]:
    """Sums over all processes."""
    if count() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    _meet(distributed.all_reduce, sums)
    return sums.tolist()


def gathered(tensor: Tensor) -> list[Tensor]:
    """Every process's, of one shape, in their order."""
    if count() == 1:
        return [tensor]
    every = [torch.empty_like(tensor) for _ in range(count())]
    _meet(distributed.all_gather, every, tensor)
    return every


def shared(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, in all of them: they wait, and it alone is called there."""
    if count() == 1:
        return make()
    made: list[Any] = [make() if rank() == 0 else None]
    _meet(distributed.broadcast_object_list, made)
    return made[0]


def _meet(collective: Callable[..., object], *given: object) -> None:
    try:
        collective(*given)
    except RuntimeError as error:  # gloo's own, for a connection that closed
        raise TrainingError(
            "another process of this training ended, and none can go on without it: its own message says why"
        ) from error


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > _AT_ONCE:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
