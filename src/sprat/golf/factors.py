"""A network of equations into a `.sprat` of at most a number of bytes: its factors are what is rounded and stored.

Every factor is rounded at one water level, as a map's weights are (methods/waterlevel.py). What goes into a factor and
comes out has no meaning of its own, so its metric comes from its gradients G = ∂ℓ/∂P, one a context, labels sampled
from the model: ΔP costs about ½ Σ g_i ΔP_i H ΔP_iᵀ nats a token with
    H = Σ Gᵀ G / Σ |G|²,    g_i = Σ |G_i|² / tokens
(the Fisher information in Kronecker form, as Shampoo keeps it: Gupta et al., arXiv 1802.09568). The copies of a factor
lie below each other in one lattice. Nothing is healed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sprat import __version__, trust
from sprat import recipe as fits
from sprat.coding import container, entropy
from sprat.coding.tensors import Dense, Entry, expand, lattices
from sprat.equations.maps import Maps
from sprat.errors import BudgetError
from sprat.fit import FitResult
from sprat.level import predict, search
from sprat.level.curve import Curve, curve
from sprat.level.rounding import Rounded
from sprat.methods.distil import divergence as kl
from sprat.methods.metric import Metric
from sprat.methods.waterlevel import choose_steps, round_to_level
from sprat.progress import Progress, silent
from sprat.sense.shrink import shrink

#: Factors of one axis with fewer numbers than this are stored exactly.
SMALL = 1024
#: Columns that a factor of one axis is folded into, at most.
FOLDED = 512
#: A side of fewer numbers than this bears no step of its own for each place on the other.
NARROW = 32
#: Contexts that the metrics are measured on, and those that check them.
CONTEXTS, HELD_OUT = 96, 16
#: What helps where statistics cannot be trusted.
ADVICE = "Give more training text, or a larger cap"


@dataclass(frozen=True)
class Target:
    """What one lattice holds. names: parameters, below each other; w: (rows, columns)."""

    names: tuple[str, ...]
    w: Tensor

    @property
    def rows(self) -> tuple[int, ...]:
        return (len(self.w) // len(self.names),) * len(self.names)

    def folded(self, tensors: Sequence[Tensor]) -> Tensor:
        """The parameters' tensors, or their gradients, as w lies."""
        return torch.cat([t.reshape(-1, self.w.shape[1]) for t in tensors])


def targets(model: nn.Module) -> list[Target]:
    """What is rounded: factors, and every other matrix."""
    found: list[Target] = []
    inside: set[str] = set()
    for path, module in model.named_modules():
        if not isinstance(module, Maps):
            continue
        for name, factor in module.factors.items():
            one = len(factor.shape) == 1
            copies = [name] if one else [f"{name}-{i}" for i in range(factor.copies)]
            names = tuple(f"{path}.stored.{copy}" for copy in copies)
            inside.update(names)
            held = [module.stored[copy].detach() for copy in copies]
            if not one:
                found.append(Target(names, torch.cat(held)))
            elif (width := _fold(factor.size)) > 1:
                found.append(Target(names, held[0].view(-1, width)))
    for name, parameter in model.named_parameters():
        if name not in inside and parameter.ndim == 2:
            found.append(Target((name,), parameter.detach()))
    return found


def _fold(size: int) -> int:
    """Columns of a factor of one axis as a matrix; 1 where it is stored exactly."""
    return max(c for c in range(1, FOLDED + 1) if size % c == 0) if size >= SMALL else 1


def fixed_bytes(model: nn.Module, config: dict[str, Any], recipe: fits.Recipe, tokenizer: bytes) -> int:
    """Bytes of the file that no level changes, about: header, tokenizer, exact numbers, a step for each row and column,
    tables."""
    found = targets(model)
    exact = container.size(
        config=config,
        entries=_exact(model, found),
        recipe=recipe.to_dict(),
        provenance={},
        file_extra={"tokenizer/packed": tokenizer},
    )
    return exact + sum(sum(t.w.shape) for t in found) * 7 // 8 + 4096 + 60 * len(found)


def into_cap(
    model: nn.Module,
    config: dict[str, Any],
    recipe: fits.Recipe,
    tokenizer: bytes,
    ids: Tensor,
    cap: int,
    out: Path,
    seed: int,
    progress: Progress = silent,
) -> FitResult:
    """Write `out`. ids: (contexts, context) of the training text; tokenizer: packed.

    Where the cap holds every number in bf16 nothing is rounded further. Statistics that do not deserve trust are shrunk
    more, as in `fit` (trust.py). Raises BudgetError, StatisticsError.
    """
    fixed = fixed_bytes(model, config, recipe, tokenizer)
    if cap <= fixed:
        raise BudgetError(f"a cap of {cap:,} bytes is too small: all but the weights takes about {fixed:,}")
    seconds: dict[str, float] = {}
    warnings: list[str] = []
    weights = sum(p.numel() for p in model.parameters())
    held, learnt = ids[:HELD_OUT], ids[HELD_OUT : HELD_OUT + CONTEXTS]
    found = targets(model)
    exact, rates = _exact(model, found), curve(recipe)

    def assembled(
        entries: dict[str, Entry], level: float, tables: entropy.Tables | None
    ) -> container.Assembled:
        return container.assemble(
            config=config,
            entries=entries,
            recipe={**recipe.to_dict(), "level": level},
            provenance={"sprat": __version__, "model": out.stem, "original_bytes": 2 * weights},
            file_extra={"tokenizer/packed": tokenizer},
            tables=tables,
        )

    def build(metrics: list[Metric], level: float) -> tuple[Rounded, container.Assembled]:
        rounded = _rounded(found, metrics, level, recipe)
        rounded = replace(rounded, entries={**exact, **rounded.entries})
        progress("rounding", 1, 1)
        return rounded, assembled(rounded.entries, level, entropy.Tables.from_counts(rounded.counts))

    # What the cap holds as it is, is not rounded.
    entries = _exact(model, [])
    file = assembled(entries, 0.0, None)
    if file.nbytes <= cap:
        with _stage(seconds, "check"):
            measured = divergence(model, filled(model, entries), held)
        return _written(file, out, weights, 0.0, 0.0, measured, seconds, warnings)
    attempt = 0
    while True:
        with _stage(seconds, "statistics"):
            metrics = measure(model, found, learnt, recipe, seed, progress)
            spreads = [_spread(t, m, recipe) for t, m in zip(found, metrics, strict=True)]
        with _stage(seconds, "rounding"):
            fitted = search.search(
                cap, partial(_predicted_bytes, spreads, rates), fixed, partial(build, metrics)
            )
        predicted = predict.predicted_kl(spreads, fitted.level, rates)
        with _stage(seconds, "check"):
            measured = divergence(model, filled(model, fitted.rounded.entries), held)
        if trust.near(predicted, measured):
            return _written(fitted.file, out, weights, fitted.level, predicted, measured, seconds, warnings)
        recipe, warning = trust.stronger(recipe, attempt, predicted, measured, ADVICE)
        warnings.append(warning)
        attempt += 1


def _written(
    file: container.Assembled,
    out: Path,
    weights: int,
    level: float,
    predicted: float,
    measured: float,
    seconds: dict[str, float],
    warnings: list[str],
) -> FitResult:
    """Nothing is healed: what is measured stands for both."""
    ledger, bits = file.save(out), 8 * file.nbytes / weights
    return FitResult(out, file.nbytes, level, bits, predicted, measured, measured, seconds, warnings, ledger)


def _rounded(found: list[Target], metrics: list[Metric], level: float, recipe: fits.Recipe) -> Rounded:
    entries, counts = {}, entropy.Counts.none()
    for target, metric in zip(found, metrics, strict=True):
        held_by = round_to_level(target.w, metric, level, recipe, entropy.prior_tables(), 1)
        entries[target.names[0]] = Entry(target.names, target.rows, held_by)
        counts = counts + entropy.count(lattices(held_by), 1)
    return Rounded(entries, counts)


def _spread(target: Target, metric: Metric, recipe: fits.Recipe) -> predict.Spread:
    steps = choose_steps(target.w, metric.inputs.diagonal(), metric.g, 1e-4, recipe)
    return predict.Spread.of(steps, 1e-4, predict.echo(metric.inputs, steps))


def _predicted_bytes(spreads: list[predict.Spread], rates: Curve, level: float) -> float:
    return predict.predicted_bits(spreads, level, rates) / 8


def measure(
    model: nn.Module,
    found: list[Target],
    ids: Tensor,
    recipe: fits.Recipe,
    seed: int,
    progress: Progress = silent,
) -> list[Metric]:
    """One backward pass a context. ids: (contexts, context)."""
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    sums = [(torch.zeros(t.w.shape[1], t.w.shape[1]), torch.zeros(len(t.w))) for t in found]
    for done, context in enumerate(ids, 1):
        model.zero_grad()
        logits = model(context[None])[0].float()
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)
        logits.log_softmax(-1).gather(1, labels).sum().backward()
        for target, (h, g) in zip(found, sums, strict=True):
            gradient = target.folded([_gradient(parameters[name]) for name in target.names])
            h.addmm_(gradient.T, gradient)
            g += gradient.square().sum(1)
        progress("statistics", done, len(ids))
    model.zero_grad()
    return [_metric(t, h, g, ids, recipe) for t, (h, g) in zip(found, sums, strict=True)]


def _metric(target: Target, h: Tensor, g: Tensor, ids: Tensor, recipe: fits.Recipe) -> Metric:
    rows, columns = target.w.shape
    total = g.sum().clamp_min(1e-30)
    h = shrink(h / total, len(ids) * min(rows, ids.shape[1]), recipe.shrinkage)
    if rows < NARROW:
        h = torch.eye(columns) * h.diagonal().mean()
    # A row that no context moved still has a price.
    g = (g + 0.01 * g.mean() + 1e-20) / (1.01 * ids.numel())
    if columns < NARROW:
        g = torch.full_like(g, float(g.mean()))
    return Metric(h, g, name=target.names[0])


def _exact(model: nn.Module, found: list[Target]) -> dict[str, Entry]:
    """What is not rounded to a level: norms, and factors of few numbers."""
    rounded = {name for target in found for name in target.names}
    return {
        name: Entry((name,), (len(p),), Dense(p.detach().numpy()))
        for name, p in model.named_parameters()
        if name not in rounded
    }


def filled(model: nn.Module, entries: Mapping[str, Entry]) -> nn.Module:
    """A copy of `model` with what `entries` stand for in it."""
    out = copy.deepcopy(model)
    parameters = dict(out.named_parameters())
    with torch.no_grad():
        for name, array in expand(entries).items():
            parameters[name].copy_(torch.from_numpy(array).view_as(parameters[name]))
    return out


@torch.no_grad()
def divergence(model: nn.Module, other: nn.Module, ids: Tensor) -> float:
    """KL(model || other) in nats a token over the second halves of contexts."""
    total, skip = 0.0, ids.shape[1] // 2
    for context in ids:
        total += float(kl(*(m(context[None])[0, skip:] for m in (model, other))))
    return total / len(ids)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@contextmanager
def _stage(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started
