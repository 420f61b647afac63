"""A fit under way: the model, its calibration text, its statistics, and the file that a level gives."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sprat import __version__, methods, sparsity
from sprat import reduce as structure
from sprat.coding import container, entropy
from sprat.coding.container import Assembled
from sprat.coding.tensors import Entry, lattices
from sprat.coding.tokenizer import pack
from sprat.level import predict, rounding
from sprat.level.check import Passage, rebuilt
from sprat.level.curve import curve
from sprat.level.layout import fixed_layout, predicted_layout
from sprat.level.search import Fitted
from sprat.level.sequential import round_sequentially
from sprat.level.targets import Targets
from sprat.methods.healer import contexts_a_step, fitting, healer, memory, steps, telling, tokens_for
from sprat.progress import Progress
from sprat.prove.overlap import sketch
from sprat.recipe import Recipe
from sprat.run.price import weights_bytes
from sprat.sense.cache import Cache
from sprat.sense.statistics import VERSION as STATISTICS
from sprat.sense.statistics import measure
from sprat.sense.walk import Walk, working_dtype
from sprat.source.load import Source, load
from sprat.source.maps import groups
from sprat.source.text import Calibration, calibration_ids
from sprat.training.loop import train
from sprat.training.schedule import Schedule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: At this level (√nats) hardly a weight of any model is left.
FLOOR_LEVEL = 0.02


@dataclass(frozen=True)
class Written:
    """Calibration text in the cache. ids: (contexts, context) int64."""

    ids: torch.Tensor


@dataclass
class Job:
    """A fit under way."""

    source: Source
    """What is rounded: the original, or the structurally reduced model."""
    reference: PreTrainedModel
    """What the result is compared with: the original; where tokens were removed, it without their rows."""
    recipe: Recipe
    calibrate: list[str]
    calibration: Calibration
    targets: Targets
    progress: Progress
    seed: int
    original: Source
    """What was loaded: `source`, but for structural pruning."""
    removed: dict[str, Any] = field(default_factory=dict)
    """What structural pruning removed, as the file says it."""
    passages: list[Passage] = field(default_factory=list)
    """Held-out text for bits per byte, where tokens were removed."""
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    settled: rounding.Rounded | None = None
    """The layers, once they are rounded by a method that no level changes."""

    @functools.cached_property
    def tokenizer(self) -> bytes:
        return pack(self.source.tokenizer_files)

    @functools.cached_property
    def provenance(self) -> dict[str, object]:
        """What the file says of its origin, and what `prove` needs to tell whether a text was seen in calibration."""
        text = self.calibration
        own = self.calibrate == ["self"]
        said: dict[str, object] = {
            "source": "self" if own else text.description,
            "tokens": int(torch.as_tensor(text.ids).numel()),
            "sha256": list(text.text_hashes),
        }
        if not own:
            said["sketch"] = sketch(str(self.source.tokenizer.decode(torch.as_tensor(text.ids).flatten())))
        return {
            "sprat": __version__,
            "model": self.source.name,
            "model_sha256": self.original.hash,
            "original_bytes": self.source.original_bytes,
            "calibration": said,
            **({"structure": self.removed} if self.removed else {}),
        }

    @property
    def lost(self) -> float:
        """KL of the reduced model to the reference on held-out text, before anything is rounded; else 0."""
        return float(self.removed.get("kl", 0.0))

    @property
    def weights(self) -> int:
        return self.source.original_bytes // 2

    @property
    def held_out(self) -> torch.Tensor:
        """(held_out, context) int64: calibration contexts that the statistics do not see."""
        return torch.as_tensor(self.calibration.ids)[-self.recipe.held_out :]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


def start(
    model: str | Path,
    calibrate: str | Sequence[str],
    seed: int,
    recipe: Recipe,
    progress: Progress,
    refuse: Callable[[Source], None] = lambda _: None,
) -> Job:
    """Load the model and the calibration text; `refuse` may raise between the two: the text can take minutes."""
    methods.find(recipe.method)
    torch.manual_seed(seed)
    seconds: dict[str, float] = {}
    started = time.monotonic()
    progress("loading the model", 0, 1)
    source = load(model, dtype=working_dtype())
    progress("loading the model", 1, 1)
    seconds["loading"] = time.monotonic() - started
    sparsity.parse(recipe.sparsity).check((g.name, g.width) for g in groups(source.model))
    reduced = structure.wanted(recipe)
    if reduced:
        structure.refuse(source, recipe)
    else:
        refuse(source)
    started = time.monotonic()
    texts = [calibrate] if isinstance(calibrate, str) else list(calibrate)
    text = _calibration(source, texts, recipe, seed, progress)
    seconds["calibration text"] = time.monotonic() - started
    targets = Targets(source, _statistics(source, text, recipe, seed), recipe)
    job = Job(source, source.model, recipe, texts, text, targets, progress, seed, source, seconds=seconds)
    if reduced:
        _reduce(job, seed)
        refuse(job.source)
    return job


def _statistics(source: Source, text: Calibration, recipe: Recipe, seed: int) -> Cache:
    """Where the statistics of this model on this text are kept."""
    return Cache(
        {
            "version": __version__,
            "statistics": STATISTICS,
            "model": source.hash,
            "text": text.hash,
            "context": recipe.context,
            "held_out": recipe.held_out,
            "seed": seed,
            "dtype": str(working_dtype()),
        }
    )


def _reduce(job: Job, seed: int) -> None:
    """The smaller model in the original's place; the original's statistics first, where the choice asks for them."""
    if structure.needs_statistics(job.recipe):
        sense(job, seed)
    with job.stage("structure"):
        found = structure.reduce(
            job.source, job.calibration, job.targets.cache, job.recipe, seed, job.progress
        )
    job.source, job.reference, job.calibration = found.source, found.reference, found.text
    job.removed, job.passages = found.removed, found.passages
    job.targets = Targets(job.source, _statistics(job.source, found.text, job.recipe, seed), job.recipe)


def _calibration(
    source: Source, calibrate: list[str], recipe: Recipe, seed: int, progress: Progress
) -> Calibration:
    widest = max(g.width for g in groups(source.model))
    tokens = recipe.tokens or calibration_tokens(widest)
    return calibration(source, calibrate, tokens + recipe.held_out * recipe.context, recipe, seed, progress)


def calibration_tokens(widest: int) -> int:
    """How many, for maps whose inputs are at most `widest`: several times that, as H is of that many numbers a side."""
    return min(max(8 * widest, 16384), 65536)


def calibration(
    source: Source, calibrate: list[str], tokens: int, recipe: Recipe, seed: int, progress: Progress
) -> Calibration:
    """At least `tokens` tokens of text in whole contexts; what the model writes itself is kept in the cache."""
    if calibrate != ["self"]:
        return calibration_ids(source, calibrate, tokens, recipe.context, seed, progress)
    # What a model writes takes as long as measuring it: kept, so that a second budget starts at once.
    how = [tokens, recipe.context, seed, str(working_dtype())]
    key = {"version": __version__, "model": source.hash, "self": how}
    cache = Cache(key)
    if "text" not in cache:
        text = calibration_ids(source, calibrate, tokens, recipe.context, seed, progress)
        cache.put("text", {text.description: Written(torch.as_tensor(text.ids))})
    ((description, written),) = cache.get("text", Written).items()
    ids = written.ids.numpy()
    return Calibration(ids, description, hashlib.sha256(ids.tobytes()).hexdigest())


def sense(job: Job, seed: int) -> None:
    """Measure what is not cached yet; a warning where the text is short for the widest input."""
    widest = max(g.width for g in groups(job.source.model))
    ids = torch.as_tensor(job.calibration.ids)
    learning = ids.numel() - job.held_out.numel()
    if learning < 2 * widest:
        job.warnings.append(
            f"{learning:,} calibration tokens for inputs up to {widest:,} wide: several times the width is needed for "
            "statistics that can be trusted; more text (or the recipe's `tokens`) lowers the KL"
        )
    with job.stage("statistics"):
        measure(
            Walk(job.source.model, ids),
            groups(job.source.model),
            job.targets.cache,
            held_out=job.recipe.held_out,
            seed=seed,
            progress=job.progress,
        )


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
        ids = torch.as_tensor(job.calibration.ids)[: max(1, recipe.sequential_tokens // recipe.context)]
        rounded = round_sequentially(job.targets, level, recipe, entropy.prior_tables(), ids, job.progress)
    else:
        tables = entropy.prior_tables()
        rounded = rounding.round_model(job.targets, level, recipe, tables, job.progress, layers(job))
    return rounded, _file(job, rounded, level)


def healed(job: Job, fitted: Fitted, size: int | None) -> list[Fitted]:
    """`fitted` trained towards the original: what may be kept of the training and fits into `size` bytes."""
    recipe = job.recipe
    entries = {**job.targets.dense(), **fitted.rounded.entries}
    seconds = 60 * recipe.heal_minutes or None
    length = None if seconds else steps(recipe.heal, recipe.heal_deep)
    model = rebuilt(job.source.model, entries)
    with telling(memory(model, entries, recipe.heal_deep, recipe.context)):
        learner = healer(job.reference, model, entries, recipe.heal_deep)
        train(
            learner,
            heal_text(job),
            Schedule(recipe.heal_rate, length, seconds),
            accumulate=contexts_a_step(recipe.heal_deep),
            name="healing",
            progress=job.progress,
        )

    def made(new: dict[str, Entry]) -> Fitted:
        coded = (lattice for entry in new.values() for lattice in lattices(entry.tensor))
        counts = entropy.count(coded, torch.get_num_threads())
        rounded = replace(fitted.rounded, entries=new, counts=counts)
        return Fitted(fitted.level, rounded, _file(job, rounded, fitted.level))

    return [found for _, found in fitting(learner, made, lambda f: size is None or f.file.nbytes <= size)]


def heal_text(job: Job) -> torch.Tensor:
    """(contexts, context) int64: the calibration text without what is held out, and more of it for a long healing."""
    recipe, own = job.recipe, torch.as_tensor(job.calibration.ids)[: -job.recipe.held_out]
    missing = tokens_for(recipe.heal_minutes) - own.numel()
    if not recipe.heal_minutes or missing <= 0 or job.calibrate != ["self"] or recipe.vocabulary:
        return own
    # Another seed: the same one would write the same text again, what is held out included.
    more = calibration(job.original, job.calibrate, missing, recipe, job.seed + 1, job.progress)
    return torch.cat([own, torch.as_tensor(more.ids)])


def reserve(job: Job) -> int:
    """Bytes that healing may add: scales that have moved cost a little more."""
    return job.targets.vectors(embeddings=False) // 8 if job.recipe.heals else 0


def _file(job: Job, rounded: rounding.Rounded, level: float) -> Assembled:
    entries = {**job.targets.dense(), **rounded.entries}
    return _assemble(job, entries, entropy.Tables.from_counts(rounded.counts), level)


def _assemble(job: Job, entries: dict[str, Entry], tables: entropy.Tables | None, level: float) -> Assembled:
    source = job.source
    return container.assemble(
        config=source.config,
        entries=entries,
        recipe={**job.recipe.to_dict(), "level": level},
        provenance=job.provenance,
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
