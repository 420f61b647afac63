"""Walking a decoder one layer at a time, so that one layer's statistics are in memory at once.

A full forward pass keeps the hidden states between layers (bfloat16, contexts x width a boundary); after that every
layer can be called alone, forward or backward, with the arguments that the model itself passed to it. Nothing here
knows a family: the layers are found by `source.maps.decoder_layers`, their arguments by a hook.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sprat.progress import Progress, silent
from sprat.source.maps import decoder_layers


class _Captured(Exception):
    """Raised by a hook to end a forward pass that has given what was wanted."""


class Walk:
    """The layers of `model` and how to call them on hidden states (batch, context, width), which lie where it does."""

    def __init__(self, model: nn.Module, ids: Tensor):
        """ids: (contexts, context) int64 on the CPU, as all ids here; all contexts have the same length, so what one
        of them has for a mask serves all."""
        self.model = model
        self.ids = ids
        self.device = next(model.parameters()).device
        _, self.layers = decoder_layers(model)  # type: ignore[arg-type]
        self._arguments: dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}

    @functools.cached_property
    def _tuples(self) -> bool:
        """Whether the layers give tuples, of which hidden states are the first."""
        found: list[bool] = []

        def keep(_: nn.Module, __: object, out: Any) -> None:
            found.append(isinstance(out, tuple))
            raise _Captured

        self._until(self.ids[:1], self.layers[0].register_forward_hook(keep))
        return found[0]

    def arguments(self, batch: int) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """What the model passes to each layer besides hidden states, for so many contexts: some families make masks
        that do not broadcast. No layer computes anything for it."""
        if batch in self._arguments:
            return self._arguments[batch]
        seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        ids = self.ids[:1].expand(batch, -1)
        hidden = self.embed(ids)

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            named = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            seen.append((args if "hidden_states" in kwargs else args[1:], named))
            if len(seen) == len(self.layers):
                raise _Captured

        with self._skipping(lambda: hidden):
            self._until(ids, *(m.register_forward_pre_hook(keep, with_kwargs=True) for m in self.layers))
        self._arguments[batch] = seen
        return seen

    def _until(self, ids: Tensor, *hooks: RemovableHandle) -> None:
        """Run the model until one of `hooks`, which then go, has what it wants."""
        try:
            with torch.no_grad():
                self._run(ids)
        except _Captured:
            pass
        finally:
            for hook in hooks:
                hook.remove()

    def _run(self, ids: Tensor) -> Any:
        return self.model(input_ids=ids.to(self.device), use_cache=False)

    def call(self, index: int, hidden: Tensor) -> Tensor:
        """Layer `index` on (batch, context, width)."""
        args, kwargs = self.arguments(len(hidden))[index]
        out = self.layers[index](hidden, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def embed(self, ids: Tensor) -> Tensor:
        """What enters the first layer: (batch, context, width)."""
        found: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append((kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]).detach())
            raise _Captured

        self._until(ids, self.layers[0].register_forward_pre_hook(keep, with_kwargs=True))
        return found[0]

    def boundaries(self, batch: int, progress: Progress = silent) -> list[Tensor]:
        """Hidden states before every layer and behind the last: layers + 1 tensors (contexts, context, width), on the
        CPU, since a GPU may not hold them all."""
        total, parts = len(self.ids) * (len(self.layers) + 1), list(batches(len(self.ids), batch))
        out = [torch.cat([self.embed(self.ids[b]).cpu() for b in parts])]
        for index in range(len(self.layers)):
            progress("hidden states", (index + 1) * len(self.ids), total)
            with torch.no_grad():
                out.append(torch.cat([self.call(index, out[-1][b].to(self.device)).cpu() for b in parts]))
        progress("hidden states", total, total)
        return out

    def behind(self, ids: Tensor) -> Tensor:
        """What leaves the last layer: (batch, context, width)."""
        found: list[Tensor] = []

        def keep(_: nn.Module, __: object, out: Any) -> None:
            found.append(out[0] if isinstance(out, tuple) else out)
            raise _Captured

        self._until(ids, self.layers[-1].register_forward_hook(keep))
        return found[0]

    def logits(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The logits (batch, context, vocabulary) of what left the last layer, without gradient; ids as for `tail`."""
        with self._skipping(lambda: hidden), torch.no_grad():
            return self._run(ids).logits

    def tail(self, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From behind the last layer to the logits, differentiable in the first of the returned tensors.

        hidden: (batch, context, width); ids only give the shape of a pass. Returns the leaf that stands for `hidden`,
        the input of the output embedding and the logits (batch, context, vocabulary). The layers are skipped: each
        is replaced by the identity for the pass, the last hands on `hidden`.
        """
        leaf = hidden.detach().requires_grad_()
        final: list[Tensor] = []
        output = self.model.get_output_embeddings()  # type: ignore[operator]
        assert isinstance(output, nn.Module)
        hook = output.register_forward_pre_hook(lambda _, args: final.append(args[0]))
        try:
            with self._skipping(lambda: leaf), torch.enable_grad():
                logits = self._run(ids).logits
        finally:
            hook.remove()
        return leaf, final[0].detach(), logits

    @contextmanager
    def _skipping(self, value: Callable[[], Tensor]) -> Iterator[None]:
        forwards = [layer.forward for layer in self.layers]
        tuples = self._tuples
        try:
            for layer in self.layers:
                layer.forward = lambda *_, **__: (value(),) if tuples else value()  # type: ignore[method-assign]
            yield
        finally:
            for layer, forward in zip(self.layers, forwards, strict=True):
                layer.forward = forward  # type: ignore[method-assign]


def working_dtype(device: torch.device | None = None) -> torch.dtype:
    """bfloat16 where the device multiplies it natively (about four times faster on a CPU), float32 elsewhere.

    device: None for the CPU."""
    if device is not None and device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = (
            getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
            or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
        )
    return torch.bfloat16 if fast else torch.float32


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(count)."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
