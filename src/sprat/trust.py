"""Whether statistics deserve trust: what rounding costs on text that they never saw, beside what they promise.

Where an input is wider than the text is long, rounding hides its error in directions that the statistics never saw and
call free (docs/design.md, "A trap: the statistics must deserve trust"). More shrinkage mends most of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sprat.errors import StatisticsError
from sprat.job import Job
from sprat.level.check import routed_kl
from sprat.level.rounding import DISTRUST, Rounded
from sprat.level.targets import Targets
from sprat.recipe import Recipe
from sprat.training import devices

#: A measured KL of more than this many times the predicted one (and above the noise of bfloat16) means that the
#: statistics lied.
TRUST = 4.0
NOISE = 0.01
#: How often a fit may start again with more shrinkage, and by what factor.
REPAIRS, STRONGER = 2, 8


def foreseen(job: Job, rounded: Rounded, predicted: float, measured: float) -> bool:
    """Whether rounding costs about the KL that the statistics predict, in nats per token on held-out text.

    Where it does but for tokens that other experts serve than in the original, a warning says so.
    """
    if near(predicted, measured):
        return True
    with job.stage("check"), devices.lent(job.device, job.source.model):
        alike = routed_kl(job.source.model, rounded.entries, job.held_out)
    if alike is None or not near(predicted, alike):
        return False
    job.warnings.append(
        f"of the held-out KL {measured:.3f} that rounding costs, {measured - alike:.3f} is the price of tokens that "
        "are routed to other experts than in the original, which the statistics cannot foresee"
    )
    return True


def near(predicted: float, measured: float) -> bool:
    """Whether a KL was foreseen, in nats per token."""
    return measured <= TRUST * predicted + NOISE


def repair(job: Job, attempt: int, predicted: float, measured: float) -> None:
    """Shrink the statistics more, or give up: StatisticsError."""
    advice = "Calibrate on more text, or of another kind (--calibrate, the recipe's `tokens`)"
    recipe, warning = stronger(job.recipe, attempt, predicted, measured, advice)
    job.warnings.append(warning)
    job.recipe, job.settled = recipe, None
    job.targets = Targets(job.source, job.targets.cache, recipe)


def stronger(
    recipe: Recipe, attempt: int, predicted: float, measured: float, advice: str
) -> tuple[Recipe, str]:
    """The recipe with more shrinkage, and a warning that says so; where that was tried enough, StatisticsError with
    `advice`. attempt: how often it was tried.
    """
    if attempt == REPAIRS:
        raise StatisticsError(
            f"the rounded model is {measured / predicted:.0f} times worse on held-out calibration text than its "
            f"statistics predict (KL {measured:.3f}, predicted {predicted:.3f}), with shrinkage "
            f"{recipe.shrinkage:g} too; nothing was written. {advice}"
        )
    more = replace(recipe, shrinkage=recipe.shrinkage * STRONGER)
    return more, (
        f"held-out KL {measured:.3f} is {measured / predicted:.1f} times the predicted {predicted:.3f}: the statistics "
        f"cannot be trusted; fitted again with shrinkage {more.shrinkage:g}"
    )


def doubtful(ratios: Mapping[str, float]) -> list[str]:
    """A warning that names the map whose distortion on held-out inputs is furthest above the predicted one.

    ratios: of the two, by map.
    """
    name, worst = max(ratios.items(), key=lambda pair: pair[1])
    if worst <= DISTRUST:
        return []
    return [
        f"{name}: {worst:.1f} times the predicted distortion on held-out inputs, the most of any map; "
        "more calibration tokens would help"
    ]
