"""Which methods to use: candidates beside the water level, predicted first, the most promising ones tried.

What a candidate is worth at a budget is a KL: what its removals cost alone, and what the level costs at the bytes that
are left. Predictions only choose what is tried; what decides is the KL of the rounded model on held-out calibration
text. The water level alone is always tried, so nothing worse than it is ever returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from sprat.errors import SpratError
from sprat.recipe import Recipe

T = TypeVar("T")
#: The recipe's method that stands for all of them.
AUTO = "auto"
#: A prediction this many times the water level's KL is not worth a try: predictions are good to about as much.
MARGIN = 1.15
#: Shares of the layers, of the feed-forward neurons and of a mixture's experts that candidates remove.
LAYERS, NEURONS, EXPERTS = (0.04, 0.1, 0.2, 0.3, 0.4, 0.5), (0.1, 0.25), (0.125, 0.25)


@dataclass(frozen=True)
class Candidate:
    """A combination of methods, as a recipe."""

    name: str
    recipe: Recipe


@dataclass(frozen=True)
class Tried(Generic[T]):
    """A candidate that was rounded. kl: measured, in nats per token."""

    kl: float
    nbytes: int
    result: T


@dataclass(frozen=True)
class Considered:
    """A candidate and what came of it; KL in nats per token, None where it was not predicted or tried."""

    name: str
    predicted_kl: float | None
    measured_kl: float | None
    nbytes: int | None
    verdict: str


def candidates(recipe: Recipe, layers: int, experts: int = 0) -> list[Candidate]:
    """What `recipe`, whose method is AUTO, leaves open; the water level alone stands first.

    layers: of the model; experts: that each of them has. Settings that the recipe makes itself (layers to remove,
    zeros to force) are in all of them.
    """
    plain = replace(recipe, method="waterlevel")
    found = [Candidate("water level", plain)]
    if not recipe.remove_layers:
        for count in sorted({round(layers * share) for share in LAYERS} - {0, layers}):
            name = f"{count} layer{'s' * (count > 1)} fewer"
            found.append(Candidate(name, replace(plain, remove_layers=count)))
    if recipe.ffn == 1:
        found += [Candidate(f"{s:.0%} of the neurons fewer", replace(plain, ffn=1 - s)) for s in NEURONS]
        most = NEURONS[-1]
        found += [
            Candidate(
                f"{c.name.removesuffix(' fewer')} and {most:.0%} of the neurons fewer",
                replace(c.recipe, ffn=1 - most),
            )
            for c in found
            if c.recipe.remove_layers != recipe.remove_layers
        ]
    if experts and not recipe.experts:
        for count in sorted({round(experts * share) for share in EXPERTS} - {0}):
            name = f"{count} expert{'s' * (count > 1)} a layer fewer"
            found.append(Candidate(name, replace(plain, experts=experts - count)))
    if not recipe.sparsity:
        patterns = ["2:4"] * (recipe.order == "natural") + ["0.5"]  # a pattern is of neighbours
        found += [Candidate(f"zeros forced, {p}", replace(plain, sparsity=p)) for p in patterns]
        if not (recipe.heal_deep or recipe.heal_rank):  # neither goes with products
            name, beside = "low rank beside it", replace(plain, method="waterlevel+lowrank", rank=1)
            found.append(Candidate(name, beside))
    return found


def choose(
    plain: Candidate,
    others: Sequence[Candidate],
    predict: Callable[[Candidate, Tried[T]], float],
    attempt: Callable[[Candidate], Tried[T]],
    misses: int = 2,
) -> tuple[Tried[T], list[Considered]]:
    """The best of what was tried, and what was considered, in the order of `others` behind `plain`.

    predict: the KL that a candidate should have, given what the water level had; attempt rounds one. Both may raise
    SpratError for what this model does not allow. `misses` tries that are no better than the best before them end it.
    """
    best = base = attempt(plain)
    chosen = plain.name
    said: dict[str, Considered] = {}
    for candidate in others:
        try:
            kl = predict(candidate, base)
        except SpratError as error:
            said[candidate.name] = Considered(candidate.name, None, None, None, f"not possible: {error}")
            continue
        said[candidate.name] = Considered(
            candidate.name, kl, None, None, "not tried: no better by prediction"
        )
    hopeful = [c for c in others if _hopeful(said[c.name], base.kl)]
    hopeful.sort(key=lambda c: said[c.name].predicted_kl or 0.0)
    for candidate in hopeful:
        row = said[candidate.name]
        if not misses:
            said[candidate.name] = replace(row, verdict="not tried: others promised more")
            continue
        try:
            tried = attempt(candidate)
        except SpratError as error:
            said[candidate.name] = replace(row, verdict=f"tried, not possible: {error}")
            misses -= 1
            continue
        better = tried.kl < best.kl
        said[candidate.name] = replace(
            row,
            measured_kl=tried.kl,
            nbytes=tried.nbytes,
            verdict="tried, better, then beaten" if better else "tried, no better",
        )
        if better:
            best, chosen = tried, candidate.name
        else:
            misses -= 1
    rows = [Considered(plain.name, None, base.kl, base.nbytes, "always tried"), *said.values()]
    return best, [replace(row, verdict="chosen") if row.name == chosen else row for row in rows]


def _hopeful(row: Considered, base: float) -> bool:
    return row.predicted_kl is not None and row.predicted_kl < MARGIN * base
