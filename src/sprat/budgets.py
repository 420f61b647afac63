"""What a fit or a plan must stay within: budgets as bytes, which of them binds, and what no model can keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sprat import assembly
from sprat.job import Job
from sprat.level import predict, search
from sprat.level.curve import curve
from sprat.level.layout import fixed_layout, predicted_layout
from sprat.level.limits import Limits
from sprat.level.targets import shapes
from sprat.run.price import cache_bytes
from sprat.sense.statistics import layer_groups
from sprat.sizes import Budget, parse_budget
from sprat.source.load import Source
from sprat.source.maps import groups, head


def limits(
    source: Source, file: str | Budget | None, ram: str | Budget | None, context: int, cache: str | None
) -> Limits:
    """Both budgets in bytes. Raises UnsupportedError for a family that the native engine does not serve."""

    def count(given: str | Budget | None) -> int | None:
        parsed = parse_budget(given) if isinstance(given, str) else given
        return None if parsed is None else parsed.bytes(source.original_bytes, source.original_bytes // 2)

    held = cache_bytes(source.config, context, cache) if ram is not None else 0
    return Limits(count(file), count(ram), held, context, "ram" if file is None else "file")


def refuse(source: Source, limits: Limits) -> None:
    """What is impossible whatever the statistics will say: BudgetError before anything long begins."""
    if limits.ram is not None:
        empty = fixed_layout(shapes(layer_groups(groups(source.model)), head(source.model)), threads=1)
        limits.refuse_memory(empty, source.name, known=False)
    if limits.file is not None:
        search.refuse_impossible(limits.file, source.original_bytes, 0, source.name)


def nearer(job: Job, limits: Limits, spreads: list[predict.Spread]) -> Limits:
    """`limits` with the one first that asks for the coarser level; BudgetError where one cannot be kept."""
    name = job.source.name
    if limits.file is not None:
        floor = assembly.floor(job, spreads, assembly.overhead(job))
        search.refuse_impossible(limits.file, job.source.original_bytes, floor, name)
    if limits.ram is None:
        return limits
    limits.refuse_memory(assembly.layout_floor(job, spreads), name, known=True)
    kinds = ["ram"] if limits.file is None else ["file", "ram"]
    return max((replace(limits, first=kind) for kind in kinds), key=lambda found: level(job, found, spreads))


def level(job: Job, limits: Limits, spreads: list[predict.Spread]) -> float:
    """The level that should fill the first of the limits."""
    varying, fixed = predicted(job, limits, spreads)
    held_back = assembly.reserve(job) if limits.first == "file" else 0
    return predict.solve_level(varying, search.AIM * limits.target - fixed - held_back)


def predicted(
    job: Job, limits: Limits, spreads: list[predict.Spread]
) -> tuple[Callable[[float], float], int]:
    """What the first of the limits counts: the bytes that a level gives, and those that no level changes."""
    if limits.first == "ram":
        trellis, fixed = bool(job.recipe.trellis), limits.cache + assembly.layout_overhead(job)
        return lambda level: predicted_layout(spreads, level, trellis), fixed
    rates = curve(job.recipe)
    return lambda level: predict.predicted_bits(spreads, level, rates) / 8, assembly.overhead(job)
