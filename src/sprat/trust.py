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
    if _near(predicted, measured):
        return True
    with job.stage("check"):
        alike = routed_kl(job.source.model, rounded.entries, job.held_out)
    if alike is None or not _near(predicted, alike):
        return False
    job.warnings.append(
        f"of the held-out KL {measured:.3f} that rounding costs, {measured - alike:.3f} is the price of tokens that "
        "are routed to other experts than in the original, which the statistics cannot foresee"
    )
    return True


def _near(predicted: float, measured: float) -> bool:
    return measured <= TRUST * predicted + NOISE


def repair(job: Job, attempt: int, predicted: float, measured: float) -> None:
    """Shrink the statistics more, or give up: StatisticsError."""
    if attempt == REPAIRS:
        raise StatisticsError(
            f"the rounded model is {measured / predicted:.0f} times worse on held-out calibration text than its "
            f"statistics predict (KL {measured:.3f}, predicted {predicted:.3f}), with shrinkage "
            f"{job.recipe.shrinkage:g} too; nothing was written. Calibrate on more text, or of another kind "
            "(--calibrate, the recipe's `tokens`)"
        )
    recipe = replace(job.recipe, shrinkage=job.recipe.shrinkage * STRONGER)
    job.warnings.append(
        f"held-out KL {measured:.3f} is {measured / predicted:.1f} times the predicted {predicted:.3f}: the statistics "
        f"cannot be trusted; fitted again with shrinkage {recipe.shrinkage:g}"
    )
    job.recipe, job.settled = recipe, None
    job.targets = Targets(job.source, job.targets.cache, recipe)


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
