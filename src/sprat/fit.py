"""`fit`: a model into a byte budget. The way of the data on one page, one call a folder.

source  →  sense  →  level  →  methods  →  coding  →  .sprat
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sprat import assembly, auto, trust
from sprat import budgets as bounds
from sprat import job as jobs
from sprat.coding.ledger import Ledger
from sprat.errors import BudgetError
from sprat.folders import refuse_target
from sprat.job import Job
from sprat.level import predict
from sprat.level.check import bits_per_byte, rebuilt
from sprat.level.limits import Limits
from sprat.level.planner import AUTO, Considered
from sprat.progress import Progress, silent
from sprat.recipe import Recipe
from sprat.sizes import CONTEXT, Budget
from sprat.source.load import Source
from sprat.trial import Trial, healed, rounded


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
    device: str = "cpu",
) -> FitResult:
    """Fit `model` into `budget` (the whole file's bytes), `ram` (what running it takes) or both; write it to `out`.

    model: what `sprat.load` takes; budget: "50MB", "40%", "3.2bpw" or a Budget; calibrate: "self" (the model writes the
    text), or text files, "-" for standard input, "hub:NAME". ram counts the native engine's weights and the key-value
    cache of `context` tokens, kept in `cache` ("int8" or "bf16"; default: what the engine takes by itself); without a
    recipe the trellis is off then, whose integers take a bit more of it. unhealed: where to leave what rounding alone
    gave, where healing changed it. device: where models compute (training/devices.py); weights are rounded and coded
    on the processor. The same arguments on the same machine give the same file, on the processor.

    Raises BudgetError (naming the smallest budget that works), RecipeError, SourceError, StatisticsError; SpratError
    for a device that is not there or has too little memory. Nothing is written then.
    """
    out = Path(out)
    refuse_target(out, model, *([calibrate] if isinstance(calibrate, str) else calibrate))
    if budget is None and ram is None:
        raise BudgetError("a fit needs a budget for the file, for memory (ram), or both")
    recipe = recipe or bounds.default_recipe(ram)
    recipe.refuse_idle()

    def limits_of(source: Source) -> Limits:
        return bounds.limits(source, budget, ram, context, cache)

    def begin(recipe: Recipe) -> Job:
        def refuse(source: Source) -> None:
            bounds.refuse(source, limits_of(source))

        return jobs.start(model, calibrate, seed, recipe, progress, refuse, device)

    def settle(job: Job) -> Trial:
        jobs.sense(job, seed)
        spreads = assembly.spreads(job)
        return rounded(job, bounds.nearer(job, limits_of(job.source), spreads), spreads)

    if recipe.method == AUTO:
        trial, considered = auto.best(recipe, begin, limits_of, settle)
    else:
        trial, considered = healed(settle(begin(recipe))), []
    return replace(_written(trial, out, unhealed), considered=tuple(considered))


def finish(job: Job, limits: Limits, spreads: list[predict.Spread], out: Path) -> FitResult:
    """The rest of a fit, behind the statistics: round to the limits, check, heal, write.

    Statistics that turn out not to deserve trust change `job`'s recipe and targets: give a copy to use it again.
    """
    return _written(healed(rounded(job, limits, spreads)), out)


def _written(trial: Trial, out: Path, unhealed: Path | None = None) -> FitResult:
    """Write; to `unhealed` what was there before healing, where that changed it."""
    job, fitted = trial.job, trial.fitted
    if unhealed is not None and fitted is not trial.rounded:
        trial.rounded.file.save(unhealed)
    memory = trial.memory
    job.warnings += trust.doubtful(fitted.rounded.ratios)
    job.warnings += bounds.plenty(job, trial.spreads, fitted.level, trial.measured)
    job.warnings += bounds.unused(trial.limits, fitted.file.nbytes, memory)
    with job.stage("writing"):
        ledger = fitted.file.save(out)
    return FitResult(
        path=out,
        nbytes=fitted.file.nbytes,
        level=fitted.level,
        bits_per_weight=8 * fitted.file.nbytes / job.weights,
        predicted_kl=job.lost + trial.predicted,
        measured_kl=trial.measured,
        unhealed_kl=trial.unhealed,
        seconds=job.seconds,
        warnings=job.warnings,
        ledger=ledger,
        ram_nbytes=memory,
        bits_per_byte=_bits_per_byte(trial),
    )


def _bits_per_byte(trial: Trial) -> tuple[float, float] | None:
    job = trial.job
    if not job.passages:
        return None
    with job.stage("check"):
        model = rebuilt(job.source.model, trial.fitted.rounded.entries)
        return job.removed["vocabulary"]["bits_per_byte"], bits_per_byte(model, job.passages)
