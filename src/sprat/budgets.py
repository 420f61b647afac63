"""What a fit or a plan must stay within: budgets as bytes, which of them binds, what no model can keep or use."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from sprat import assembly
from sprat.coding.tokenizer import pack
from sprat.errors import BudgetError, RecipeError
from sprat.job import Job
from sprat.level import predict, search
from sprat.level.curve import curve
from sprat.level.layout import fixed_layout, predicted_layout
from sprat.level.limits import Limits
from sprat.level.targets import shapes
from sprat.recipe import Recipe
from sprat.run.price import cache_bytes
from sprat.sizes import Budget, format_bytes, parse_budget
from sprat.source.load import Source
from sprat.source.maps import groups, head, layer_groups

#: An embedding that costs less than this share of the KL is fine enough.
PLENTY = 0.01


def default_recipe(ram: str | Budget | None) -> Recipe:
    """What is taken where no recipe is given: in memory the integers of a trellis take a bit more."""
    return Recipe(trellis=4 if ram is None else 0)


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
        files = source.tokenizer_files
        # Packing takes a second: only where the files as they lie would not fit.
        if limits.file < sum(map(len, files.values())) and limits.file < (least := len(pack(files))):
            raise BudgetError(
                f"{source.name} does not fit into {limits.file:,} bytes: its tokenizer alone takes {least:,} "
                f"({format_bytes(least)})"
            )


def nearer(job: Job, limits: Limits, spreads: list[predict.Spread]) -> Limits:
    """`limits` with the one first that asks for the coarser level; BudgetError where one cannot be kept."""
    name = job.source.name
    if limits.file is not None:
        floor = assembly.floor(job, spreads, assembly.overhead(job))
        search.refuse_impossible(limits.file, job.source.original_bytes, floor, name)
    if limits.ram is None:
        return limits
    limits.refuse_memory(assembly.layout_floor(job, spreads), name, known=True)
    _refuse_products(job, limits)
    kinds = ["ram"] if limits.file is None else ["file", "ram"]
    return max((replace(limits, first=kind) for kind in kinds), key=lambda found: level(job, found, spreads))


def _refuse_products(job: Job, limits: Limits) -> None:
    """RecipeError where products that healing would add take more memory than there is: none of it would be kept."""
    if not job.recipe.heal_rank or limits.ram is None:
        return
    least = limits.cache + 2 * sum(math.prod(shape) for shape in job.targets.shapes(False))
    if least > limits.ram:
        raise RecipeError(
            f"recipe: heal_rank = {job.recipe.heal_rank} is not allowed in {format_bytes(limits.ram)} of memory: the "
            f"engine keeps maps with a product beside them in 16-bit integers, here {format_bytes(least)} with the "
            "cache; leave it at 0, or allow more (ram)"
        )


def level(job: Job, limits: Limits, spreads: list[predict.Spread], share: float = 1.0) -> float:
    """The level that should fill the first of the limits, with so much of the weights."""
    varying, fixed = predicted(job, limits, spreads)
    held_back = assembly.reserve(job) if limits.first == "file" else 0
    room = search.AIM * limits.target - fixed - held_back
    return predict.solve_level(lambda level: share * varying(level), room)


def predicted(
    job: Job, limits: Limits, spreads: list[predict.Spread]
) -> tuple[Callable[[float], float], int]:
    """What the first of the limits counts: the bytes that a level gives, and those that no level changes."""
    if limits.first == "ram":
        trellis, fixed = bool(job.recipe.trellis), limits.cache + assembly.layout_overhead(job)
        return lambda level: predicted_layout(spreads, level, trellis), fixed
    rates = curve(job.recipe)
    return lambda level: predict.predicted_bits(spreads, level, rates) / 8, assembly.overhead(job)


def unused(limits: Limits, nbytes: int, memory: int | None) -> list[str]:
    """A warning where the search ended far below the limits. nbytes, memory: of the file, and of running it."""
    used = limits.weight(nbytes, memory) / limits.target
    if used >= search.LEAST:
        return []
    return [f"the result uses {used:.1%} of the budget; no level was found between"]


def plenty(job: Job, spreads: list[predict.Spread], level: float, measured: float) -> list[str]:
    """A warning where all that the budget leaves beside layers that no level changes buys next to nothing.

    measured: KL in nats per token of the result, which is at `level`.
    """
    rates, settled = curve(job.recipe), assembly.layers(job)
    rest = predict.predicted_kl(spreads, level, rates)
    if settled is None or rest >= PLENTY * measured:
        return []
    enough = level * math.sqrt(PLENTY * measured / max(rest, 1e-30))
    nbytes = assembly.overhead(job) + round(predict.predicted_bits(spreads, enough, rates) / 8)
    return [
        f"{job.recipe.method} layers take the same bytes in every budget, and the embedding has what is left: from "
        f"about {nbytes:,} bytes on more of them buy nothing"
    ]
