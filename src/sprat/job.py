"""A fit under way: the model, its calibration text and its statistics."""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sprat import __version__, methods, sparsity
from sprat.coding.tokenizer import pack
from sprat.level import rounding
from sprat.level.check import Passage
from sprat.level.targets import Targets
from sprat.methods.structure import removals
from sprat.progress import Progress
from sprat.prove.overlap import sketch
from sprat.recipe import Recipe
from sprat.reduce import reduce
from sprat.sense.cache import Cache
from sprat.sense.measure import measure
from sprat.sense.statistics import VERSION as STATISTICS
from sprat.sense.walk import Walk, working_dtype
from sprat.source.load import Source, load
from sprat.source.maps import Group, groups, layer_groups
from sprat.source.text import Calibration, calibration_ids
from sprat.training import devices
from sprat.training.devices import CPU

if TYPE_CHECKING:
    from transformers import PreTrainedModel


#: Calibration tokens for each of a map's inputs, below which a warning says that they are few.
ENOUGH = 2


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
    device: torch.device = CPU
    """Where the models write, are measured, compared and healed; all else is the processor's."""
    learnt: dict[str, Any] = field(default_factory=dict)
    """What the file says of text that healing learnt from beside `calibration`."""
    settled: rounding.Rounded | None = None
    """The layers, once they are rounded by a method that no level changes."""

    @functools.cached_property
    def tokenizer(self) -> bytes:
        return pack(self.source.tokenizer_files)

    @functools.cached_property
    def provenance(self) -> dict[str, object]:
        """What the file says of its origin, and what `prove` needs to tell whether a text was seen in calibration."""
        text = self.calibration
        if self.calibrate == ["self"]:
            said = {"source": "self", "tokens": int(torch.as_tensor(text.ids).numel()), "sha256": []}
        else:
            said = told(self.source, text, torch.as_tensor(text.ids))
        return {
            "sprat": __version__,
            "model": self.source.name,
            "model_sha256": self.original.hash,
            "original_bytes": self.source.original_bytes,
            "calibration": said,
            **({"structure": self.removed} if self.removed else {}),
        }

    def learnt_from(self, ids: torch.Tensor) -> None:
        """Healing learns from `ids` too, (contexts, context) int64 of the texts that were read."""
        self.learnt = {"heal": [told(self.source, self.calibration, ids)]} if ids.numel() else {}

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


def told(source: Source, text: Calibration, ids: torch.Tensor, size: int = 64) -> dict[str, Any]:
    """What a file says of `ids` of a text that was read and learnt from. size: hashes in the sketch."""
    return {
        "source": text.description,
        "tokens": ids.numel(),
        "sha256": list(text.text_hashes),
        "sketch": sketch(str(source.tokenizer.decode(ids.flatten())), size),
    }


def start(
    model: str | Path,
    calibrate: str | Sequence[str],
    seed: int,
    recipe: Recipe,
    progress: Progress,
    refuse: Callable[[Source], None] = lambda _: None,
    device: str = "cpu",
) -> Job:
    """Load the model and the calibration text; `refuse` may raise between the two: the text can take minutes.

    device: see `Job.device`; a name of training/devices.py."""
    methods.find(recipe.method)
    place = devices.find(device)
    torch.manual_seed(seed)
    seconds: dict[str, float] = {}
    started = time.monotonic()
    progress("loading the model", 0, 1)
    source = load(model, dtype=working_dtype(place))
    progress("loading the model", 1, 1)
    seconds["loading"] = time.monotonic() - started
    Targets(source, Cache({}), recipe).dense()  # refuses what its type cannot hold
    reduced = removals.wanted(recipe)
    if reduced:
        removals.refuse(source, recipe)
    else:
        sparsity.parse(recipe.sparsity).check((g.name, g.width) for g in groups(source.model))
        refuse(source)
    started = time.monotonic()
    texts = [calibrate] if isinstance(calibrate, str) else list(calibrate)
    with devices.lent(place, source.model):
        text = _calibration(source, texts, recipe, seed, progress)
    seconds["calibration text"] = time.monotonic() - started
    targets = Targets(source, _statistics(source, text, recipe, seed), recipe)
    job = Job(
        source,
        source.model,
        recipe,
        texts,
        text,
        targets,
        progress,
        seed,
        source,
        seconds=seconds,
        device=place,
    )
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
            "dtype": str(source.model.dtype),
        }
    )


def _reduce(job: Job, seed: int) -> None:
    """The smaller model in the original's place; the original's statistics first, where the choice asks for them."""
    if removals.needs_statistics(job.recipe):
        sense(job, seed)
    with job.stage("structure"):
        found = reduce(job.source, job.calibration, job.targets.cache, job.recipe, seed, job.progress)
    job.source, job.reference, job.calibration = found.source, found.reference, found.text
    job.removed, job.passages = found.removed, found.passages
    job.targets = Targets(job.source, _statistics(job.source, found.text, job.recipe, seed), job.recipe)


def _calibration(
    source: Source, calibrate: list[str], recipe: Recipe, seed: int, progress: Progress
) -> Calibration:
    tokens = recipe.tokens or calibration_tokens(hungriest(groups(source.model)))
    return calibration(source, calibrate, tokens + recipe.held_out * recipe.context, recipe, seed, progress)


def calibration_tokens(widest: int) -> int:
    """How many, for maps whose inputs are at most `widest`: several times that, as H is of that many numbers a side."""
    return min(max(8 * widest, 16384), 65536)


def hungriest(found: Sequence[Group]) -> int:
    """The width of the widest input; one of an expert counts as wider, as it sees but a share of the tokens.

    The bound on the tokens is the same for all: where an expert then sees few of them a warning says so.
    """
    return math.ceil(max(group.width / group.share for group in found))


def calibration(
    source: Source, calibrate: list[str], tokens: int, recipe: Recipe, seed: int, progress: Progress
) -> Calibration:
    """At least `tokens` tokens of text in whole contexts; what the model writes itself is kept in the cache."""
    if calibrate != ["self"]:
        return calibration_ids(source, calibrate, tokens, recipe.context, seed, progress)
    # What a model writes takes as long as measuring it: kept, so that a second budget starts at once.
    how = [tokens, recipe.context, seed, str(source.model.dtype)]
    if source.model.device.type != "cpu":
        how.append(source.model.device.type)  # the same seed writes another text there
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
    if learning < ENOUGH * widest:
        job.warnings.append(
            f"{learning:,} calibration tokens for inputs up to {widest:,} wide: several times the width is needed for "
            "statistics that can be trusted; more text (or the recipe's `tokens`) lowers the KL"
        )
    with job.stage("statistics"), devices.lent(job.device, job.source.model):
        measure(
            Walk(job.source.model, ids),
            groups(job.source.model),
            job.targets.cache,
            held_out=job.recipe.held_out,
            seed=seed,
            progress=job.progress,
        )
    job.warnings += rare_experts(groups(job.source.model), job.targets.cache)


def rare_experts(found: list[Group], cache: Cache) -> list[str]:
    """A warning where experts saw too few calibration tokens; none without experts."""
    tokens, wanted = dict[str, int](), dict[str, int]()
    for layer, members in layer_groups([g for g in found if g.mixture]).items():
        served = cache.numbers(f"layer/{layer}", "tokens")
        for group in members:
            expert = group.name.rsplit(".", 2)[0]
            tokens[expert] = served[group.name]
            wanted[expert] = max(wanted.get(expert, 0), ENOUGH * group.width)
    short = [expert for expert in tokens if tokens[expert] < wanted[expert]]
    if not short:
        return []
    rarest = min(short, key=lambda expert: tokens[expert] / wanted[expert])
    return [
        f"{len(short):,} of {len(tokens):,} experts saw fewer calibration tokens than {ENOUGH} for each of their "
        f"inputs; the rarest ({rarest}) saw {tokens[rarest]:,} for a width of {wanted[rarest] // ENOUGH:,}: what they "
        "do on other text is hardly known; more text (or the recipe's `tokens`) lowers the KL"
    ]
