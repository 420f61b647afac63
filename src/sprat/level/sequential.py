"""Sequential rounding: each layer corrected for what the layers before it have already lost.

Two streams of hidden states walk through the model: x through the original, x̂ through what is rounded so far. A map
that should give W x receives x̂; the W' that is best there in the least squares is
    W' = W + strength · W C A⁻¹,     A = E[x̂ x̂ᵀ] shrunk,   C = E[(x - x̂) x̂ᵀ],
and W' is what is rounded, group by group in forward order, so that o_proj sees the rounded q, k and v.
Sources: GPTAQ (arXiv 2504.02692) section 3 and WaterSIC (2603.04956) section 4 for the asymmetric target; GPTQ
(2210.17323) for the walk.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from sprat.coding import entropy
from sprat.coding.tensors import Stored
from sprat.errors import SpratError
from sprat.level.rounding import Rounded, round_target
from sprat.level.targets import Target, Targets
from sprat.progress import Progress, silent
from sprat.recipe import Recipe
from sprat.sense.shrink import shrink
from sprat.sense.walk import Walk, batches

#: Contexts that pass a layer at once.
BATCH = 4


def round_sequentially(
    targets: Targets,
    level: float,
    recipe: Recipe,
    tables: entropy.Tables,
    ids: Tensor,
    progress: Progress = silent,
) -> Rounded:
    """Round every target on a copy of the model, the embedding first. ids: (contexts, context) for both streams.

    Peak memory: one more copy of the model and two
    boundaries of hidden states.
    """
    if any(len(group.uses) > 1 for groups in targets.by_layer.values() for group in groups):
        raise SpratError(
            "sequential rounding is not for layers that share their maps: set sequential = false"
        )
    if any(group.mixture for groups in targets.by_layer.values() for group in groups):
        raise SpratError(
            "sequential rounding is not for mixtures of experts, whose two streams are routed differently: set "
            "sequential = false"
        )
    original = targets.source.model
    working = copy.deepcopy(original)
    done = Rounded({}, entropy.Counts.none())
    threads = torch.get_num_threads()
    total = len(targets.layers()) + 1

    def settle(target: Target) -> None:
        lattice = round_target(done, target, level, recipe, tables, threads, targets.metric(target))
        _install(working, target, lattice)

    for target in targets.embeddings():
        settle(target)
    progress("rounding", 1, total)
    clean, lossy = Walk(original, ids), Walk(working, ids)
    x = torch.cat([clean.embed(ids[b]) for b in batches(len(ids), BATCH)])
    seen = torch.cat([lossy.embed(ids[b]) for b in batches(len(ids), BATCH)])
    with torch.no_grad():
        for index in targets.layers():
            for target in targets.layer(index):
                wanted = _inputs(clean, index, target.maps[0].module, x)
                given = _inputs(lossy, index, _twin(original, working, target.maps[0].module), seen)
                settle(replace(target, w=_corrected(target, wanted, given, recipe)))
            x = torch.cat([clean.call(index, x[b]) for b in batches(len(ids), BATCH)])
            seen = torch.cat([lossy.call(index, seen[b]) for b in batches(len(ids), BATCH)])
            progress("rounding", index + 2, total)
    return done


def _corrected(target: Target, wanted: Tensor, given: Tensor, recipe: Recipe) -> Tensor:
    """W': (m, n) from the inputs (tokens, n) of both streams."""
    tokens = len(given)
    a = (given.T @ given).float() / tokens
    c = ((wanted - given).T @ given).float() / tokens
    a = shrink(a, tokens, recipe.shrinkage)
    # (A⁻¹ Cᵀ)ᵀ = C A⁻¹ by a solve with the correlation's scaling, which float32 needs.
    scale = a.diagonal().rsqrt()
    factor = torch.linalg.cholesky(a * scale[:, None] * scale)
    solved = torch.cholesky_solve(scale[:, None] * c.T, factor) * scale[:, None]
    return target.w + recipe.sequential_strength * target.w @ solved.T


class _Reached(Exception):
    """The module whose input was wanted has been called."""


def _inputs(walk: Walk, index: int, module: nn.Module, hidden: Tensor) -> Tensor:
    """What enters `module` in layer `index`: (tokens, n)."""
    found: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0].flatten(0, -2))
        raise _Reached

    hook = module.register_forward_pre_hook(keep)
    try:
        for part in batches(len(hidden), BATCH):
            try:
                walk.call(index, hidden[part])
            except _Reached:
                continue
    finally:
        hook.remove()
    return torch.cat(found)


def _twin(original: nn.Module, working: nn.Module, module: nn.Module) -> nn.Module:
    """The module of `working` that stands where `module` stands in `original`."""
    name = next(n for n, m in original.named_modules() if m is module)
    return working.get_submodule(name)


def _install(working: nn.Module, target: Target, stored: Stored) -> None:
    """Write what was rounded into the working copy."""
    dense = torch.from_numpy(stored.dense())
    parameters = dict(working.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, part in zip(target.parameters, dense.split(list(target.rows)), strict=True):
            parameters[name].copy_(part.T if target.transposed else part)
