"""`fit`: a model into a byte budget. The way of the data on one page, one call a folder.

source  →  sense  →  level  →  methods  →  coding  →  .sprat
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sprat import budgets as bounds
from sprat import job as jobs
from sprat.coding.ledger import Ledger
from sprat.errors import BudgetError, SpratError, StatisticsError
from sprat.job import Job
from sprat.level import predict, rounding, search
from sprat.level.check import held_out_kl
from sprat.level.curve import curve
from sprat.level.limits import Limits
from sprat.level.rounding import Rounded
from sprat.level.targets import Targets
from sprat.progress import Progress, silent
from sprat.recipe import Recipe
from sprat.sizes import CONTEXT, Budget
from sprat.source.load import Source

__all__ = ["FitResult", "PlanRow", "Recipe", "fit", "plan"]

#: A measured KL of more than this many times the predicted one (and above the noise of bfloat16) means that the
#: statistics lied: see docs/design.md, "A trap, measured".
TRUST = 4.0
NOISE = 0.01
#: How often a fit may start again with more shrinkage.
REPAIRS = 2


@dataclass(frozen=True)
class FitResult:
    """What `fit` did. KL in nats per token, sizes in bytes, seconds by stage."""

    path: Path
    nbytes: int
    level: float
    bits_per_weight: float
    predicted_kl: float
    measured_kl: float
    """On calibration text that the statistics never saw."""
    unhealed_kl: float
    """The same before healing; equal where healing was off, or did not help and was not kept."""
    seconds: dict[str, float]
    warnings: list[str]
    ledger: Ledger
    ram_nbytes: int | None = None
    """Bytes that the native engine takes to run it, its context's cache included; None where `ram` was not given."""


@dataclass(frozen=True)
class PlanRow:
    """What one budget would give; budget_bytes is None for one for memory alone."""

    budget_bytes: int | None
    predicted_bytes: int
    predicted_kl: float
    bits_per_weight: float
    level: float
    predicted_ram_bytes: int | None = None
    """What running it would take, its context's cache included; None where `ram` was not given."""


def fit(
    model: str | Path,
    budget: str | Budget | None,
    out: str | Path,
    calibrate: str | Sequence[str] = "self",
    seed: int = 0,
    recipe: Recipe | None = None,
    progress: Progress = silent,
    ram: str | Budget | None = None,
    context: int = CONTEXT,
    cache: str | None = None,
) -> FitResult:
    """Fit `model` into `budget` (the whole file's bytes), `ram` (what running it takes) or both; write it to `out`.

    model: what `sprat.load` takes; budget: "50MB", "40%", "3.2bpw" or a Budget; calibrate: "self" (the model writes the
    text), or text files, "-" for standard input, "hub:NAME". ram counts the native engine's weights and the key-value
    cache of `context` tokens, kept in `cache` ("int8" or "bf16"; default: what the engine takes by itself); without a
    recipe the trellis is off then, whose integers take a bit more of it. The same arguments on the same machine give
    the same file.

    Raises BudgetError (naming the smallest budget that works), SourceError, StatisticsError; nothing is written then.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise SpratError(f"cannot write {out}: there is no folder {out.parent}")
    if out.is_dir():
        raise SpratError(f"cannot write {out}: it is a folder")
    if budget is None and ram is None:
        raise BudgetError("a fit needs a budget for the file, for memory (ram), or both")
    recipe = recipe or Recipe(trellis=4 if ram is None else 0)

    def limits_of(source: Source) -> Limits:
        return bounds.limits(source, budget, ram, context, cache)

    job = jobs.start(
        model, calibrate, seed, recipe, progress, lambda source: bounds.refuse(source, limits_of(source))
    )
    jobs.sense(job, seed)
    spreads = jobs.spreads(job)
    return finish(job, bounds.nearer(job, limits_of(job.source), spreads), spreads, out)


def finish(job: Job, limits: Limits, spreads: list[predict.Spread], out: Path) -> FitResult:
    """The rest of a fit, behind the statistics: round to the limits, check, heal, write.

    Statistics that turn out not to deserve trust change `job`'s recipe and targets: give a copy to use it again.
    """
    fitted, predicted, unhealed = _fitted(job, limits, spreads)
    measured = unhealed
    if job.recipe.heals:
        fitted, measured = _heal(job, fitted, measured, limits.file)
    _note_distrust(job, fitted.rounded.ratios)
    memory = _memory(job, limits, fitted.rounded)
    used = limits.weight(fitted.file.nbytes, memory) / limits.target
    if used < search.LEAST:
        job.warnings.append(f"the result uses {used:.1%} of the budget; no level was found between")
    with job.stage("writing"):
        ledger = fitted.file.save(out)
    return FitResult(
        out,
        fitted.file.nbytes,
        fitted.level,
        8 * fitted.file.nbytes / job.weights,
        predicted,
        measured,
        unhealed,
        job.seconds,
        job.warnings,
        ledger,
        memory,
    )


def plan(
    model: str | Path,
    budgets: Sequence[str | Budget] = (),
    calibrate: str | Sequence[str] = "self",
    seed: int = 0,
    recipe: Recipe | None = None,
    progress: Progress = silent,
    ram: str | Budget | None = None,
    context: int = CONTEXT,
    cache: str | None = None,
) -> list[PlanRow]:
    """What each budget would give, predicted from the statistics; nothing is rounded or written.

    ram, context, cache: as for `fit`; each budget's file must then stay within `ram` too, and `ram` alone is one row.
    """
    if not budgets and ram is None:
        raise BudgetError("a plan needs budgets for the file, one for memory (ram), or both")
    files = [*budgets] or [None]

    def limits_of(source: Source, size: str | Budget | None) -> Limits:
        return bounds.limits(source, size, ram, context, cache)

    def refuse(source: Source) -> None:
        for size in files:
            bounds.refuse(source, limits_of(source, size))

    recipe = recipe or Recipe(trellis=4 if ram is None else 0)
    job = jobs.start(model, calibrate, seed, recipe, progress, refuse)
    jobs.sense(job, seed)
    spreads, reserve = jobs.spreads(job), jobs.reserve(job)
    rows = []
    for size in files:
        limits = bounds.nearer(job, limits_of(job.source, size), spreads)
        level = bounds.level(job, limits, spreads)
        predicted, overhead = bounds.predicted(job, replace(limits, first="file"), spreads)
        nbytes = overhead + reserve + round(predicted(level))
        memory = None
        if ram is not None:
            predicted, overhead = bounds.predicted(job, replace(limits, first="ram"), spreads)
            memory = overhead + round(predicted(level))
        kl = predict.predicted_kl(spreads, level, curve(job.recipe))
        rows.append(PlanRow(limits.file, nbytes, kl, 8 * nbytes / job.weights, level, memory))
    return rows


def _fitted(job: Job, limits: Limits, spreads: list[predict.Spread]) -> tuple[search.Fitted, float, float]:
    """The level that fills the limits, its predicted KL and the held-out one, with more shrinkage where they part."""
    predicted_bytes, overhead = bounds.predicted(job, limits, spreads)
    held_back = jobs.reserve(job) if limits.file is not None else 0
    attempt = 0
    while True:
        with job.stage("rounding"):
            fitted = search.search(
                limits.target - held_back,
                predicted_bytes,
                overhead,
                lambda level: jobs.build(job, level),
                lambda rounded, file: limits.weight(file.nbytes, _memory(job, limits, rounded)),
            )
        predicted = predict.predicted_kl(spreads, fitted.level, curve(job.recipe))
        with job.stage("check"):
            job.progress("held-out check", 0, 1)
            measured = held_out_kl(job.source.model, fitted.rounded.entries, job.held_out)
            job.progress("held-out check", 1, 1)
        if measured <= TRUST * predicted + NOISE:
            return fitted, predicted, measured
        _repair(job, attempt, predicted, measured)
        attempt += 1


def _memory(job: Job, limits: Limits, rounded: Rounded) -> int | None:
    return limits.memory({**job.targets.dense(), **rounded.entries}, torch.get_num_threads())


def _heal(job: Job, fitted: search.Fitted, before: float, size: int | None) -> tuple[search.Fitted, float]:
    """What healing gave and its held-out KL, or what it was given where that is better."""
    best = fitted, before
    with job.stage("healing"):
        for healed in jobs.healed(job, fitted, size):
            after = held_out_kl(job.source.model, healed.rounded.entries, job.held_out)
            if after < best[1]:
                best = healed, after
    return best


def _repair(job: Job, attempt: int, predicted: float, measured: float) -> None:
    """Distrust the statistics: shrink them more, or give up."""
    if attempt == REPAIRS:
        raise StatisticsError(
            f"the rounded model is {measured / predicted:.0f} times worse on held-out calibration text than its "
            f"statistics predict (KL {measured:.3f}, predicted {predicted:.3f}), with shrinkage "
            f"{job.recipe.shrinkage:g} too; nothing was written. Calibrate on more text, or of another kind "
            "(--calibrate, the recipe's `tokens`)"
        )
    recipe = replace(job.recipe, shrinkage=job.recipe.shrinkage * 8)
    job.warnings.append(
        f"held-out KL {measured:.3f} is {measured / predicted:.1f} times the predicted {predicted:.3f}: the statistics "
        f"cannot be trusted; fitted again with shrinkage {recipe.shrinkage:g}"
    )
    job.recipe = recipe
    job.targets = Targets(job.source, job.targets.cache, recipe)


def _note_distrust(job: Job, ratios: dict[str, float]) -> None:
    name, worst = max(ratios.items(), key=lambda pair: pair[1])
    if worst > rounding.DISTRUST:
        job.warnings.append(
            f"{name}: {worst:.1f} times the predicted distortion on held-out inputs, the most of any map; "
            "more calibration tokens would help"
        )
