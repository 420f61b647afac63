"""`plan`: what each budget would give, predicted from the statistics; nothing is rounded or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sprat import assembly
from sprat import budgets as bounds
from sprat import job as jobs
from sprat.errors import BudgetError
from sprat.level.limits import Limits
from sprat.level.planner import AUTO
from sprat.progress import Progress, silent
from sprat.recipe import Recipe
from sprat.sizes import CONTEXT, Budget
from sprat.source.load import Source


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
    device: str = "cpu",
) -> list[PlanRow]:
    """A row for each of `budgets`.

    The other arguments are those of `fit`; each budget's file must stay within `ram` too, and `ram` alone is one row.
    """
    if not budgets and ram is None:
        raise BudgetError("a plan needs budgets for the file, one for memory (ram), or both")
    files = [*budgets] or [None]

    def limits_of(source: Source, size: str | Budget | None) -> Limits:
        return bounds.limits(source, size, ram, context, cache)

    def refuse(source: Source) -> None:
        for size in files:
            bounds.refuse(source, limits_of(source, size))

    recipe = recipe or bounds.default_recipe(ram)
    if recipe.method == AUTO:  # what it gives is never worse
        recipe = replace(recipe, method="waterlevel")
    job = jobs.start(model, calibrate, seed, recipe, progress, refuse, device)
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
