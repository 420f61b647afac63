"""Healing: the scales of a rounded model trained towards the original's distribution.

Rounding leaves W = diag(r) Q diag(k) for every map; Q stays as it is, r and k move:
    minimise  KL( p(x) || q_{r,k}(x) )  over the calibration text,     r = r0 · exp(b),  k = k0 · exp(a),
by Adam on a and b, one context a step, the rate falling linearly to nothing. Since y = r ⊙ (Q (k ⊙ x)), the factors sit
at a map's input and output: no gradient of a weight matrix is ever computed, and any family is served by its hooks.
Sources: distillation, Hinton et al. (arXiv 1503.02531); scales alone after rounding: PV-Tuning (2405.14852) section 2
and OneBit (2402.11295) show how much of the loss continuous parameters win back; Adam (1412.6980).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from sprat.coding.tensors import Entry, Lattice, LogScale
from sprat.progress import Progress, silent
from sprat.sense.statistics import SKIP

#: Steps until Adam's rate is whole.
WARM_UP = 5


@dataclass(frozen=True)
class _Factors:
    """Of one map: log factors of its inputs (n,), shared by all maps stacked in one entry, and of its outputs (m,)."""

    module: nn.Module
    inputs: Tensor
    outputs: Tensor


def heal(
    original: nn.Module,
    rounded: nn.Module,
    entries: Mapping[str, Entry],
    names: Sequence[str],
    ids: Tensor,
    steps: int,
    rate: float,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Entry]:
    """`entries` with healed scales, on the grids that they had.

    rounded: the model that `entries` stand for, whose weights are not touched; names: the entries whose scales may
    move, lattices all of them; ids: (contexts, context) int64; steps: contexts that are learnt from; rate: of Adam, in
    nats of a scale. Peak memory: both models, and a context's activations and logits in float32.
    """
    for model in (original, rounded):
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    modules = {f"{name}.weight": module for name, module in rounded.named_modules()}
    factors = {name: _factors(entries[name], modules) for name in names}
    free = list({id(t): t for fs in factors.values() for f in fs for t in (f.inputs, f.outputs)}.values())
    optimizer = torch.optim.Adam(free, lr=rate, betas=(0.9, 0.95))
    order = _order(len(ids), steps, seed)
    with _attached(f for fs in factors.values() for f in fs):
        for step, context in enumerate(order):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / WARM_UP) * (1 - step / steps)
            loss = divergence(original, rounded, ids[context])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress("healing", step + 1, steps)
    return {**entries, **{name: _healed(entries[name], fs) for name, fs in factors.items()}}


def divergence(original: nn.Module, rounded: nn.Module, ids: Tensor) -> Tensor:
    """Mean KL(original || rounded) in nats over the positions of one context: (context,) int64; differentiable."""
    with torch.no_grad():
        p = original(input_ids=ids[None], use_cache=False).logits[0, SKIP:].float().log_softmax(-1)
    q = rounded(input_ids=ids[None], use_cache=False).logits[0, SKIP:].float().log_softmax(-1)
    return nn.functional.kl_div(q, p, reduction="sum", log_target=True) / len(p)


def _order(contexts: int, steps: int, seed: int) -> list[int]:
    """Every context once, in a random order, before any comes again."""
    random = np.random.default_rng(seed)
    passes = [random.permutation(contexts) for _ in range(math.ceil(steps / contexts))]
    return np.concatenate(passes)[:steps].tolist()


def _factors(entry: Entry, modules: Mapping[str, nn.Module]) -> list[_Factors]:
    assert isinstance(entry.tensor, Lattice)
    inputs = torch.zeros(entry.tensor.shape[1], requires_grad=True)
    return [
        _Factors(modules[name], inputs, torch.zeros(rows, requires_grad=True))
        for name, rows in zip(entry.maps, entry.rows, strict=True)
    ]


@contextmanager
def _attached(factors: Iterator[_Factors]) -> Iterator[None]:
    """The maps scaled at both ends. A bias is added behind the rows' scale, so it is taken out of what is scaled."""
    hooks = []
    for f in factors:

        def before(_: nn.Module, args: tuple[Tensor, ...], f: _Factors = f) -> tuple[Tensor, ...]:
            return (args[0] * f.inputs.exp().to(args[0].dtype), *args[1:])

        def behind(module: nn.Module, _: object, out: Tensor, f: _Factors = f) -> Tensor:
            scale = f.outputs.exp().to(out.dtype)
            bias = module.bias
            return (out - bias) * scale + bias if isinstance(bias, Tensor) else out * scale

        hooks += [f.module.register_forward_pre_hook(before), f.module.register_forward_hook(behind)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _healed(entry: Entry, factors: list[_Factors]) -> Entry:
    lattice = entry.tensor
    assert isinstance(lattice, Lattice)
    row = torch.cat([f.outputs for f in factors]).detach().double().exp().numpy() * lattice.row.values()
    col = factors[0].inputs.detach().double().exp().numpy() * lattice.col.values()
    return replace(
        entry,
        tensor=replace(
            lattice,
            row=LogScale.nearest(row, lattice.row.resolution),
            col=LogScale.nearest(col, lattice.col.resolution),
        ),
    )
