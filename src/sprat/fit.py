"""`fit`: a model into a byte budget. The way of the data on one page, one call a folder.

source  →  sense  →  level  →  methods  →  coding  →  .sprat
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sprat import assembly, auto
from sprat import budgets as bounds
from sprat import job as jobs
from sprat.coding.ledger import Ledger
from sprat.errors import BudgetError, SpratError, StatisticsError
from sprat.job import Job
from sprat.level import predict, rounding, search
from sprat.level.check import bits_per_byte, held_out_kl, rebuilt, routed_kl
from sprat.level.curve import curve
from sprat.level.limits import Limits
from sprat.level.planner import AUTO, Considered
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
#: An embedding that costs less than this share of the KL is fine enough.
PLENTY = 0.01
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
    """To the original, on calibration text that the statistics never saw; where tokens were removed, to the original
    over the tokens that are left."""
    unhealed_kl: float
    """The same before healing; equal where healing was off, or did not help and was not kept."""
    seconds: dict[str, float]
    warnings: list[str]
    ledger: Ledger
    ram_nbytes: int | None = None
    """Bytes that the native engine takes to run it, its context's cache included; None where `ram` was not given."""
    bits_per_byte: tuple[float, float] | None = None
    """The original's and the file's on held-out text, where tokens were removed: all that the two have in common."""
    considered: tuple[Considered, ...] = ()
    """What `method = "auto"` weighed."""


@dataclass(frozen=True)
class Trial:
    """A job rounded to its limits and checked, healed or not yet, not written. KL in nats per token."""

    job: Job
    limits: Limits
    spreads: list[predict.Spread]
    rounded: search.Fitted
    predicted: float
    unhealed: float
    """Measured on held-out text, as rounding gave it."""
    fitted: search.Fitted
    """Healed; as rounded where healing did not help."""
    measured: float


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
    unhealed: Path | None = None,
) -> FitResult:
    """Fit `model` into `budget` (the whole file's bytes), `ram` (what running it takes) or both; write it to `out`.

    model: what `sprat.load` takes; budget: "50MB", "40%", "3.2bpw" or a Budget; calibrate: "self" (the model writes the
    text), or text files, "-" for standard input, "hub:NAME". ram counts the native engine's weights and the key-value
    cache of `context` tokens, kept in `cache` ("int8" or "bf16"; default: what the engine takes by itself); without a
    recipe the trellis is off then, whose integers take a bit more of it. unhealed: where to leave what rounding alone
    gave, where healing changed it. The same arguments on the same machine give
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

    def begin(recipe: Recipe) -> Job:
        return jobs.start(
            model, calibrate, seed, recipe, progress, lambda source: bounds.refuse(source, limits_of(source))
        )

    def settle(job: Job) -> Trial:
        jobs.sense(job, seed)
        spreads = assembly.spreads(job)
        return _settled(job, bounds.nearer(job, limits_of(job.source), spreads), spreads)

    if recipe.method != AUTO:
        return _concluded(_healed(settle(begin(recipe))), out, unhealed)
    trial, considered = auto.best(recipe, begin, limits_of, lambda job: _healed(settle(job), briefly=True))
    if _brief(trial.job.recipe) != trial.job.recipe:
        trial = _healed(trial)
    return replace(_concluded(trial, out, unhealed), considered=tuple(considered))


def finish(job: Job, limits: Limits, spreads: list[predict.Spread], out: Path) -> FitResult:
    """The rest of a fit, behind the statistics: round to the limits, check, heal, write.

    Statistics that turn out not to deserve trust change `job`'s recipe and targets: give a copy to use it again.
    """
    return _concluded(_healed(_settled(job, limits, spreads)), out)


def _concluded(trial: Trial, out: Path, unhealed: Path | None = None) -> FitResult:
    """Write; to `unhealed` what was there before healing, where that changed it."""
    job, limits, spreads, fitted = trial.job, trial.limits, trial.spreads, trial.fitted
    if unhealed is not None and fitted is not trial.rounded:
        trial.rounded.file.save(unhealed)
    _note_distrust(job, fitted.rounded.ratios)
    _note_plenty(job, spreads, fitted.level, trial.measured)
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
        job.lost + trial.predicted,
        trial.measured,
        trial.unhealed,
        job.seconds,
        job.warnings,
        ledger,
        memory,
        _across(job, fitted),
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
    if recipe.method == AUTO:  # what it gives is never worse
        recipe = replace(recipe, method="waterlevel")
    job = jobs.start(model, calibrate, seed, recipe, progress, refuse)
    jobs.sense(job, seed)
    spreads, reserve = assembly.spreads(job), assembly.reserve(job)
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
        kl = job.lost + assembly.predicted_kl(job, spreads, level)
        rows.append(PlanRow(limits.file, nbytes, kl, 8 * nbytes / job.weights, level, memory))
    return rows


def _settled(job: Job, limits: Limits, spreads: list[predict.Spread]) -> Trial:
    """The level that fills the limits, its predicted KL and the held-out one, with more shrinkage where they part."""
    predicted_bytes, overhead = bounds.predicted(job, limits, spreads)
    held_back = assembly.reserve(job) if limits.file is not None else 0
    attempt = 0
    while True:
        with job.stage("rounding"):
            fitted = search.search(
                limits.target - held_back,
                predicted_bytes,
                overhead,
                lambda level: assembly.build(job, level),
                lambda rounded, file: limits.weight(file.nbytes, _memory(job, limits, rounded)),
            )
        predicted = assembly.predicted_kl(job, spreads, fitted.level)
        with job.stage("check"):
            job.progress("held-out check", 0, 1)
            # What the statistics of the reduced model predict is what rounding does to that model.
            measured = held_out_kl(job.source.model, fitted.rounded.entries, job.held_out)
            job.progress("held-out check", 1, 1)
        if measured <= TRUST * predicted + NOISE or _rerouted(job, fitted, predicted, measured):
            if job.reference is not job.source.model:
                measured = _measured(job, fitted)
            return Trial(job, limits, spreads, fitted, predicted, measured, fitted, measured)
        _repair(job, attempt, predicted, measured)
        attempt += 1


def _rerouted(job: Job, fitted: search.Fitted, predicted: float, measured: float) -> bool:
    """Whether other choices of experts make the rounded model worse than predicted; a warning then says so."""
    with job.stage("check"):
        alike = routed_kl(job.source.model, fitted.rounded.entries, job.held_out)
    if alike is None or alike > TRUST * predicted + NOISE:
        return False
    job.warnings.append(
        f"of the held-out KL {measured:.3f} that rounding costs, {measured - alike:.3f} is the price of tokens that "
        "are routed to other experts than in the original, which the statistics cannot foresee"
    )
    return True


def _memory(job: Job, limits: Limits, rounded: Rounded) -> int | None:
    return limits.memory({**job.targets.dense(), **rounded.entries}, torch.get_num_threads())


def _healed(trial: Trial, briefly: bool = False) -> Trial:
    """`trial` as rounded, then healed as its recipe says, or on the recipe's contexts alone; the better of the two."""
    job = replace(trial.job, recipe=_brief(trial.job.recipe)) if briefly else trial.job
    best = replace(trial, fitted=trial.rounded, measured=trial.unhealed)
    if not job.recipe.heals:
        return best
    with job.stage("healing"):
        for healed in assembly.healed(job, trial.rounded, trial.limits.file):
            after = _measured(job, healed)
            if after < best.measured:
                best = replace(best, fitted=healed, measured=after)
    return best


def _brief(recipe: Recipe) -> Recipe:
    """Its healing without what takes long: by contexts, and not of the integers."""
    return replace(recipe, heal_minutes=0.0, heal_deep=False)


def _measured(job: Job, fitted: search.Fitted) -> float:
    return held_out_kl(job.reference, fitted.rounded.entries, job.held_out, job.source.model)


def _across(job: Job, fitted: search.Fitted) -> tuple[float, float] | None:
    if not job.passages:
        return None
    with job.stage("check"):
        model = rebuilt(job.source.model, fitted.rounded.entries)
        return job.removed["vocabulary"]["bits_per_byte"], bits_per_byte(model, job.passages)


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
    job.recipe, job.settled = recipe, None
    job.targets = Targets(job.source, job.targets.cache, recipe)


def _note_plenty(job: Job, spreads: list[predict.Spread], level: float, measured: float) -> None:
    """A warning where all that the budget leaves beside layers that no level changes buys next to nothing."""
    rates, settled = curve(job.recipe), assembly.layers(job)
    rest = predict.predicted_kl(spreads, level, rates)
    if settled is None or rest >= PLENTY * measured:
        return
    enough = level * math.sqrt(PLENTY * measured / max(rest, 1e-30))
    nbytes = assembly.overhead(job) + round(predict.predicted_bits(spreads, enough, rates) / 8)
    job.warnings.append(
        f"{job.recipe.method} layers take the same bytes in every budget, and the embedding has what is left: from "
        f"about {nbytes:,} bytes on more of them buy nothing"
    )


def _note_distrust(job: Job, ratios: dict[str, float]) -> None:
    name, worst = max(ratios.items(), key=lambda pair: pair[1])
    if worst > rounding.DISTRUST:
        job.warnings.append(
            f"{name}: {worst:.1f} times the predicted distortion on held-out inputs, the most of any map; "
            "more calibration tokens would help"
        )
