"""`--method auto`: the candidates of level/planner.py, predicted and tried on a real job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from sprat import assembly
from sprat import budgets as bounds
from sprat import job as jobs
from sprat.job import Job
from sprat.level import planner
from sprat.level.limits import Limits
from sprat.level.planner import Candidate, Considered, Tried
from sprat.methods.structure import removals
from sprat.methods.structure.layers import layer_losses
from sprat.recipe import Recipe
from sprat.source.experts import mixtures
from sprat.source.load import Source
from sprat.source.maps import decoder_layers
from sprat.trial import Trial, brief, healed


def best(
    recipe: Recipe,
    begin: Callable[[Recipe], Job],
    limits_of: Callable[[Source], Limits],
    settle: Callable[[Job], Trial],
) -> tuple[Trial, list[Considered]]:
    """The best trial at the limits, healed as `recipe` says, and what was considered.

    begin: a job whose statistics are not measured yet; settle: the job rounded. Whatever is tried is healed briefly,
    since healing takes more off one candidate than off another.
    """
    first = begin(planner.candidates(recipe, 1)[0].recipe)
    layers = len(decoder_layers(first.source.model)[1])
    experts = max((len(mixture) for mixture in mixtures(first.source.model).values()), default=0)
    plain, *others = planner.candidates(recipe, layers, experts)
    seconds = first.seconds

    @cache
    def losses() -> list[tuple[float, float]]:
        """Of layers, without refitting any candidate."""
        most = max(candidate.recipe.remove_layers for candidate in others)
        with first.stage("structure"):
            return layer_losses(first.source, first.calibration, plain.recipe, most, first.progress)

    @cache
    def neurons(ffn: float) -> tuple[float, float]:
        """KL and share of the weights that stay, of neurons, refitted."""
        job = _counted(begin(replace(plain.recipe, ffn=ffn)), seconds)
        return job.lost, _weights(job) / _weights(first)

    def removal(recipe: Recipe) -> tuple[float, float]:
        """Of layers and neurons together, as if neither knew of the other."""
        count, (lost, share) = recipe.remove_layers, (0.0, 1.0)
        if count:
            lost, share = losses()[count - 1]
        if recipe.ffn < 1:
            more, left = neurons(recipe.ffn)
            lost, share = lost + more, share - (1 - left) * (1 - count / layers)
        return lost, share

    def attempt(candidate: Candidate) -> Tried[Trial]:
        job = first if candidate is plain else _counted(begin(candidate.recipe), seconds)
        trial = healed(settle(job), briefly=True)
        return Tried(trial.measured, trial.fitted.file.nbytes, trial)

    def damage(recipe: Recipe, base: Trial) -> tuple[float, float]:
        """KL of what `recipe` removes, and of the level that its maps would have, both as they are predicted."""
        removes = removals.wanted(recipe) and not removals.wanted(plain.recipe)
        if removes and recipe.experts == plain.recipe.experts:
            lost, share = removal(recipe)
            return lost, _level_kl(base, share)
        job = _counted(begin(recipe), seconds)
        if removals.asked(recipe) != removals.asked(plain.recipe):
            return job.lost, _level_kl(base, _weights(job) / _weights(base.job))
        jobs.sense(job, job.seed)  # the plain trial's, from the cache
        spreads = assembly.spreads(job)
        level = bounds.level(job, bounds.nearer(job, limits_of(job.source), spreads), spreads)
        return job.lost, assembly.predicted_kl(job, spreads, level)

    def expected(candidate: Candidate, base: Tried[Trial]) -> float:
        found, (lost, level) = base.result, damage(candidate.recipe, base.result)
        # What predictions are short of on this model; what the recipe itself removes is lost in all candidates.
        trust = max(found.unhealed - found.job.lost, 0.0) / max(found.predicted, 1e-9)
        healing = base.kl / max(found.unhealed, 1e-9)
        return healing * (lost + trust * level)

    won, considered = planner.choose(plain, others, expected, attempt)
    trial = won.result
    if brief(trial.job.recipe) != trial.job.recipe:
        # A long healing begins again from what rounding gave, and may end above the brief one.
        trial = min(healed(trial), trial, key=lambda found: found.measured)
    return trial, considered


def _level_kl(trial: Trial, share: float) -> float:
    """What the level would cost if the maps had but `share` of their weights and the whole budget."""
    level = bounds.level(trial.job, trial.limits, trial.spreads, share)
    return share * assembly.predicted_kl(trial.job, trial.spreads, level)


def _weights(job: Job) -> int:
    return sum(p.numel() for p in job.source.model.parameters())


def _counted(job: Job, seconds: dict[str, float]) -> Job:
    """`job`, whose time is part of the first one's."""
    for stage, spent in job.seconds.items():
        seconds[stage] = seconds.get(stage, 0.0) + spent
    job.seconds = seconds
    return job
