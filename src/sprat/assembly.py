"""The file that a level gives: a job's targets rounded, healed and assembled, and the bytes that no level changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from sprat import methods
from sprat.coding import container, entropy
from sprat.coding.container import Assembled
from sprat.coding.tensors import Entry, lattices
from sprat.job import Job, calibration
from sprat.level import predict, rounding
from sprat.level.check import rebuilt
from sprat.level.curve import curve
from sprat.level.layout import fixed_layout, predicted_layout
from sprat.level.search import Fitted
from sprat.level.sequential import round_sequentially
from sprat.methods import adapter
from sprat.methods.healer import (
    MOST_TOKENS,
    contexts_a_step,
    fitting,
    healer,
    memory,
    steps,
    telling,
    tokens_for,
)
from sprat.run.price import weights_bytes
from sprat.source.text import further
from sprat.training import devices, processes
from sprat.training.loop import train
from sprat.training.schedule import Schedule

#: At this level (√nats) hardly a weight of any model is left.
FLOOR_LEVEL = 0.02


def spreads(job: Job) -> list[predict.Spread]:
    """What predictions need (level.predict)."""
    layers(job)
    with job.stage("statistics"):
        return rounding.spreads(job.targets, 1e-4, job.recipe, job.progress)


def layers(job: Job) -> rounding.Rounded | None:
    """The layers where the recipe's method gives the same ones at every level, else None."""
    if job.recipe.method not in methods.SETTLED:
        return None
    if job.settled is None:
        with job.stage("rounding"):
            tables = entropy.prior_tables()
            job.settled = rounding.round_layers(job.targets, 0.0, job.recipe, tables, job.progress)
    return job.settled


def predicted_kl(job: Job, spreads: list[predict.Spread], level: float) -> float:
    """Nats per token of the whole model at `level`."""
    settled = layers(job)
    return predict.predicted_kl(spreads, level, curve(job.recipe)) + (settled.kl if settled else 0.0)


def build(job: Job, level: float) -> tuple[rounding.Rounded, Assembled]:
    """The whole model at `level`, and its file."""
    recipe = job.recipe
    if recipe.sequential:
        # The held-out contexts judge what comes of it.
        ids = torch.as_tensor(job.calibration.ids)[: -recipe.held_out]
        ids = ids[: max(1, recipe.sequential_tokens // recipe.context)]
        rounded = round_sequentially(job.targets, level, recipe, entropy.prior_tables(), ids, job.progress)
    else:
        tables = entropy.prior_tables()
        rounded = rounding.round_model(job.targets, level, recipe, tables, job.progress, layers(job))
    return rounded, _file(job, rounded, level)


def healed(job: Job, fitted: Fitted, fits: Callable[[Fitted], bool]) -> list[Fitted]:
    """`fitted` trained towards the original: what may be kept of the training, as far as it `fits`."""
    recipe = job.recipe
    entries = {**job.targets.dense(), **fitted.rounded.entries}
    seconds = 60 * recipe.heal_minutes or None
    length = None if seconds else steps(recipe.heal, recipe.heal_deep)
    model, text = rebuilt(job.source.model, entries), heal_text(job)
    with (
        devices.lent(job.device, job.reference, model),
        telling(memory(model, entries, recipe.heal_deep, recipe.context), job.device),
        processes.alone(),
    ):
        learner = healer(job.reference, model, entries, recipe)
        train(
            learner,
            text,
            Schedule(recipe.heal_rate, length, seconds),
            accumulate=contexts_a_step(recipe.heal_deep),
            seed=job.seed,
            name="healing",
            progress=job.progress,
        )

    def made(new: dict[str, Entry]) -> Fitted:
        coded = (lattice for entry in new.values() for lattice in lattices(entry.tensor))
        counts = entropy.count(coded, torch.get_num_threads())
        rounded = replace(fitted.rounded, entries=new, counts=counts)
        return Fitted(fitted.level, rounded, _file(job, rounded, fitted.level))

    return [found for _, found in fitting(learner, made, fits)]


def heal_text(job: Job) -> torch.Tensor:
    """(contexts, context) int64: the calibration text without what is held out, and more of it for a long healing: one
    of many minutes, or of more contexts than the text has, where no recipe says how long the text is."""
    recipe, own = job.recipe, torch.as_tensor(job.calibration.ids)[: -job.recipe.held_out]
    if recipe.heal_minutes:
        wanted = tokens_for(recipe.heal_minutes)
    else:
        wanted = 0 if recipe.tokens else min(recipe.heal * recipe.context, MOST_TOKENS)
    missing = wanted - own.numel()
    if missing <= 0 or recipe.vocabulary:
        return own
    if job.calibrate != ["self"]:
        known = torch.as_tensor(job.calibration.ids).numpy()
        read = torch.as_tensor(further(job.original, job.calibrate, missing, known, job.seed))
        job.learnt_from(read)
        return torch.cat([own, read])
    # Another seed: the same one would write the same text again, what is held out included.
    with devices.lent(job.device, job.original.model):
        more = calibration(job.original, job.calibrate, missing, recipe, job.seed + 1, job.progress)
    return torch.cat([own, torch.as_tensor(more.ids)])


def reserve(job: Job) -> int:
    """Bytes that healing may add: scales that have moved cost a little more, and products are new."""
    if not job.recipe.heals:
        return 0
    return job.targets.vectors(embeddings=False) // 8 + adapter.room(
        job.targets.shapes(False), job.recipe.heal_rank
    )


def _file(job: Job, rounded: rounding.Rounded, level: float) -> Assembled:
    entries = {**job.targets.dense(), **rounded.entries}
    return _assemble(job, entries, entropy.Tables.from_counts(rounded.counts), level)


def _assemble(job: Job, entries: dict[str, Entry], tables: entropy.Tables | None, level: float) -> Assembled:
    source = job.source
    return container.assemble(
        config=source.config,
        entries=entries,
        recipe={**job.recipe.to_dict(), "level": level},
        provenance={**job.provenance, **job.learnt},
        file_extra={"tokenizer/packed": job.tokenizer},
        tables=tables,
        threads=torch.get_num_threads(),
    )


def fixed(job: Job) -> int:
    """Bytes of the file that have nothing to do with any rounding: tokenizer, header, norms."""
    return _assemble(job, job.targets.dense(), None, 0.0).nbytes


def overhead(job: Job) -> int:
    """Bytes of the file that no level changes: `fixed`, settled layers, and seven bits for each scale and class."""
    vectors, settled = job.targets.vectors(), layers(job)
    if settled is None:
        return fixed(job) + vectors * 7 // 8 + 4096
    vectors -= job.targets.vectors(embeddings=False)
    return _file(job, settled, 0.0).nbytes + vectors * 7 // 8 + 4096


def floor(job: Job, spreads: list[predict.Spread], overhead: int) -> int:
    """The smallest budget that works: what is left when nearly every weight is zero."""
    return round(
        (overhead + predict.predicted_bits(spreads, FLOOR_LEVEL, curve(job.recipe)) / 8) * 1.01 + reserve(job)
    )


def layout_overhead(job: Job) -> int:
    """Bytes of the run layout that no level changes: scales and order of maps, norms and biases in float32."""
    shapes, settled = job.targets.shapes(), layers(job)
    entries = job.targets.dense()
    if settled is not None:
        shapes = shapes[len(settled.entries) :]
        entries |= settled.entries
    return fixed_layout(shapes, torch.get_num_threads()) + weights_bytes(entries)


def layout_floor(job: Job, spreads: list[predict.Spread]) -> int:
    """The smallest run layout: what is left when nearly every weight is zero."""
    varying = predicted_layout(spreads, FLOOR_LEVEL, bool(job.recipe.trellis))
    return round((layout_overhead(job) + varying) * 1.01)
