"""A trial: a job rounded to its limits, checked on text that its statistics never saw, and healed. Not written yet."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sprat import assembly, trust
from sprat import budgets as bounds
from sprat.coding.container import Assembled
from sprat.job import Job
from sprat.level import predict, search
from sprat.level.check import held_out_kl
from sprat.level.limits import Limits
from sprat.level.rounding import Rounded
from sprat.recipe import Recipe
from sprat.training import devices


@dataclass(frozen=True)
class Trial:
    """A job at the level that fills its limits, healed or not yet. KL in nats per token."""

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

    @property
    def memory(self) -> int | None:
        """Bytes that running the result takes; None where that is not limited."""
        return _memory(self.job, self.limits, self.fitted.rounded)


def rounded(job: Job, limits: Limits, spreads: list[predict.Spread]) -> Trial:
    """The level that fills the limits, its predicted KL and the held-out one, with more shrinkage where they part.

    Statistics that turn out not to deserve trust change `job`'s recipe and targets. Raises StatisticsError where no
    shrinkage mends them.
    """
    predicted_bytes, overhead = bounds.predicted(job, limits, spreads)
    held_back = assembly.reserve(job) if limits.first == "file" else 0
    attempt = 0
    while True:
        with job.stage("rounding"):
            fitted = search.search(
                limits.target - held_back,
                predicted_bytes,
                overhead,
                lambda level: assembly.build(job, level),
                lambda rounded, file: _weight(job, limits, rounded, file),
            )
        predicted = assembly.predicted_kl(job, spreads, fitted.level)
        with job.stage("check"):
            job.progress("held-out check", 0, 1)
            # What the statistics of the reduced model predict is what rounding does to that model.
            with devices.lent(job.device, job.source.model):
                measured = held_out_kl(job.source.model, fitted.rounded.entries, job.held_out)
            job.progress("held-out check", 1, 1)
        if trust.foreseen(job, fitted.rounded, predicted, measured):
            if job.reference is not job.source.model:
                measured = _measured(job, fitted)
            return Trial(job, limits, spreads, fitted, predicted, measured, fitted, measured)
        trust.repair(job, attempt, predicted, measured)
        attempt += 1


def healed(trial: Trial, briefly: bool = False) -> Trial:
    """`trial` as rounded, then healed as its recipe says, or only as `brief` says; the better of the two."""
    job = replace(trial.job, recipe=brief(trial.job.recipe)) if briefly else trial.job
    best = replace(trial, fitted=trial.rounded, measured=trial.unhealed)
    if not job.recipe.heals:
        return best
    limits = trial.limits

    def fits(found: search.Fitted) -> bool:
        return _weight(job, limits, found.rounded, found.file) <= limits.target

    with job.stage("healing"):
        candidates = assembly.healed(job, trial.rounded, fits)
        if not candidates:
            job.warnings.append("healing is not kept: with what it learnt no file stays within the budget")
        for found in candidates:
            after = _measured(job, found)
            if after < best.measured:
                best = replace(best, fitted=found, measured=after)
    return best


def brief(recipe: Recipe) -> Recipe:
    """Its healing without what takes long: by contexts, and not of the integers."""
    return replace(recipe, heal_minutes=0.0, heal_deep=False)


def _measured(job: Job, fitted: search.Fitted) -> float:
    with devices.lent(job.device, job.reference, job.source.model):
        return held_out_kl(job.reference, fitted.rounded.entries, job.held_out, job.source.model)


def _weight(job: Job, limits: Limits, rounded: Rounded, file: Assembled) -> int:
    return limits.weight(file.nbytes, _memory(job, limits, rounded))


def _memory(job: Job, limits: Limits, rounded: Rounded) -> int | None:
    return limits.memory({**job.targets.dense(), **rounded.entries}, torch.get_num_threads())
