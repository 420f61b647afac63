"""A GPU that is none: tensors on `cuda:0` whose numbers the processor computes, and which meet no others.

What a real one refuses is refused: an operation on tensors of both devices, and numpy's hand on one of them. So code
that moves a model, and forgets a tensor, fails here as it would there; kernels, memory and rounding are not a GPU's.

    with pretend_gpu.here():
        model.to("cuda")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class There(Tensor):
    """A tensor on the GPU. held: its numbers."""

    held: Tensor
    device = property(lambda self: GPU)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:
        return f"There({self.held})"

    def __deepcopy__(self, memo: dict[int, Any]) -> There:
        made = There(self.held.detach().clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made._is_param = True  # what torch.nn.Parameter marks a subclass by
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.detach().__reduce_ex__(
            protocol
        )  # read again with map_location="cpu", as checkpoints are

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        # As a GPU does, this takes numbers from the processor, and copies from one to the other.
        if func.name() != "aten::copy_" and any(t.ndim and not isinstance(t, There) for t in given):
            raise RuntimeError(f"{func.name()}: expected all tensors on one device, found cuda:0 and cpu")
        out = func(*tree_map(_held, args), **tree_map(_held, kwargs or {}))
        same = {id(_held(t)): t for t in given}  # what an operation in place gives back

        return tree_map(
            lambda v: same[id(v)] if id(v) in same else There(v) if isinstance(v, Tensor) else v, out
        )


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return There(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> Tensor:  # type: ignore[override]
        return _held(above)


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return _held(x).clone()

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> Tensor:  # type: ignore[override]
        return There(above)


class _Calls(TorchFunctionMode):
    """What is asked of "cuda" is done on the processor, and what comes of it is there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist:
            return _held(args[0]).tolist()
        if func is Tensor.cpu:
            return _moved(args[0], CPU)
        if func is Tensor.to:
            x, *rest = args
            if rest and isinstance(rest[0], Tensor):
                rest = [rest[0].device, rest[0].dtype, *rest[1:]]
            asked = [d for d in (*rest, kwargs.get("device")) if _is_device(d)]
            rest = [CPU if _is_device(a) else a for a in rest]
            if "device" in kwargs:
                kwargs["device"] = None
            out = func(x, *rest, **kwargs)
            return _moved(out, torch.device(asked[0])) if asked else out
        asked = kwargs.get("device")
        if _is_device(asked) and torch.device(asked).type == "cuda":
            del kwargs["device"]
            out = func(*args, **kwargs)
            return out if isinstance(out, There) else There(out)
        return func(*args, **kwargs)


@contextmanager
def here() -> Iterator[None]:
    """A machine with one such GPU, as far as tensors go; modules keep their tied parameters when they move."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    autocast = torch.autocast
    # Without CUDA torch only warns, and casts nothing.
    torch.autocast = lambda kind, *args, **kwargs: autocast("cpu", *args, **kwargs)  # type: ignore[misc]
    try:
        with _Calls():
            yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]
        torch.__future__.set_swap_module_params_on_conversion(before)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, There) else value


def _moved(x: Tensor, device: torch.device) -> Tensor:
    if (device.type == "cuda") == isinstance(x, There):
        return x
    return _Up.apply(x) if device.type == "cuda" else _Down.apply(x)  # type: ignore[return-value]


def _is_device(value: Any) -> bool:
    if isinstance(value, str):
        return value.partition(":")[0] in ("cpu", "cuda")
    return isinstance(value, torch.device)
