"""`fit`: a model into a byte budget. The way of the data on one page, one call a folder.

source  →  sense  →  level  →  methods  →  coding  →  .sprat
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from sprat import __version__, methods
from sprat.coding import container, entropy
from sprat.coding.container import Assembled
from sprat.coding.ledger import Ledger
from sprat.coding.tensors import Entry
from sprat.coding.tokenizer import pack
from sprat.errors import SpratError, StatisticsError
from sprat.level import predict, rounding, search
from sprat.level.check import held_out_kl
from sprat.level.targets import Targets
from sprat.progress import Progress, silent
from sprat.prove.overlap import sketch
from sprat.recipe import Recipe
from sprat.sense.cache import Cache
from sprat.sense.statistics import VERSION as STATISTICS
from sprat.sense.statistics import measure
from sprat.sense.walk import Walk, working_dtype
from sprat.sizes import Budget, parse_budget
from sprat.source.load import Source, load
from sprat.source.maps import groups
from sprat.source.text import Calibration, calibration_ids

__all__ = ["FitResult", "PlanRow", "Recipe", "fit", "plan"]

#: A measured KL of more than this many times the predicted one (and above the noise of bfloat16) means that the
#: statistics lied: see docs/design.md, "A trap, measured".
TRUST = 4.0
NOISE = 0.01
#: At this level (√nats) hardly a weight of any model is left.
FLOOR_LEVEL = 0.02


@dataclass(frozen=True)
class FitResult:
    """What `fit` did. KL in nats per token, sizes in bytes, seconds by stage."""

    path: Path
    nbytes: int
    level: float
    bits_per_weight: float
    predicted_kl: float
    measured_kl: float
    """On calibration text that the statistics never saw."""
    seconds: dict[str, float]
    warnings: list[str]
    ledger: Ledger


@dataclass(frozen=True)
class PlanRow:
    """What one budget would give."""

    budget_bytes: int
    predicted_bytes: int
    predicted_kl: float
    bits_per_weight: float
    level: float


@dataclass(frozen=True)
class Written:
    """Calibration text in the cache. ids: (contexts, context) int64."""

    ids: torch.Tensor


@dataclass
class _Job:
    """A fit under way."""

    source: Source
    recipe: Recipe
    calibrate: list[str]
    calibration: Calibration
    targets: Targets
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

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


def fit(
    model: str | Path,
    budget: str | Budget,
    out: str | Path,
    calibrate: str | Sequence[str] = "self",
    seed: int = 0,
    recipe: Recipe | None = None,
    progress: Progress = silent,
) -> FitResult:
    """Fit `model` into `budget` (the whole file's bytes) and write it to `out`.

    model: what `sprat.load` takes; budget: "50MB", "40%", "3.2bpw" or a Budget; calibrate: "self" (the model writes the
    text), or text files, "-" for standard input, "hub:NAME". The same arguments on the same machine give the same file.
    Raises BudgetError (naming the smallest budget that works), SourceError, StatisticsError; nothing is written then.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise SpratError(f"cannot write {out}: there is no folder {out.parent}")
    job = _start(model, calibrate, seed, recipe or Recipe(), progress)
    size = (parse_budget(budget) if isinstance(budget, str) else budget).bytes(
        job.source.original_bytes, job.weights
    )
    search.refuse_impossible(size, job.source.original_bytes, 0, job.source.name)
    _sense(job, seed)
    spreads = _spreads(job)
    overhead = _overhead(job)
    search.refuse_impossible(size, job.source.original_bytes, _floor(job, spreads, overhead), job.source.name)
    for attempt in range(3):
        with job.stage("rounding"):
            fitted = search.search(
                size, spreads, bool(job.recipe.trellis), overhead, lambda level: _build(job, level)
            )
        predicted = predict.predicted_kl(spreads, fitted.level, bool(job.recipe.trellis))
        with job.stage("check"):
            progress("held-out check", 0, 1)
            measured = held_out_kl(job.source.model, fitted.rounded.entries, job.held_out)
            progress("held-out check", 1, 1)
        if measured <= TRUST * predicted + NOISE:
            break
        _repair(job, attempt, predicted, measured)
    _note_distrust(job, fitted.rounded.ratios)
    with job.stage("writing"):
        ledger = fitted.file.save(out)
    return FitResult(
        out,
        fitted.file.nbytes,
        fitted.level,
        8 * fitted.file.nbytes / job.weights,
        predicted,
        measured,
        job.seconds,
        job.warnings,
        ledger,
    )


def plan(
    model: str | Path,
    budgets: Sequence[str | Budget],
    calibrate: str | Sequence[str] = "self",
    seed: int = 0,
    recipe: Recipe | None = None,
    progress: Progress = silent,
) -> list[PlanRow]:
    """What each budget would give, predicted from the statistics; nothing is rounded or written."""
    job = _start(model, calibrate, seed, recipe or Recipe(), progress)
    sizes = [
        (parse_budget(b) if isinstance(b, str) else b).bytes(job.source.original_bytes, job.weights)
        for b in budgets
    ]
    _sense(job, seed)
    spreads, overhead, trellis = _spreads(job), _overhead(job), bool(job.recipe.trellis)
    floor = _floor(job, spreads, overhead)
    rows = []
    for size in sizes:
        search.refuse_impossible(size, job.source.original_bytes, floor, job.source.name)
        level = search.level_for(search.AIM * size, spreads, trellis, overhead)
        nbytes = overhead + round(predict.predicted_bits(spreads, level, trellis) / 8)
        kl = predict.predicted_kl(spreads, level, trellis)
        rows.append(PlanRow(size, nbytes, kl, 8 * nbytes / job.weights, level))
    return rows


def _start(
    model: str | Path, calibrate: str | Sequence[str], seed: int, recipe: Recipe, progress: Progress
) -> _Job:
    """Load the model and the calibration text."""
    methods.find(recipe.method)
    torch.manual_seed(seed)
    seconds: dict[str, float] = {}
    started = time.monotonic()
    progress("loading the model", 0, 1)
    source = load(model, dtype=working_dtype())
    progress("loading the model", 1, 1)
    seconds["loading"] = time.monotonic() - started
    started = time.monotonic()
    texts = [calibrate] if isinstance(calibrate, str) else list(calibrate)
    text = _calibration(source, texts, recipe, seed, progress)
    seconds["calibration text"] = time.monotonic() - started
    cache = Cache(
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
    return _Job(source, recipe, texts, text, Targets(source, cache, recipe), progress, seconds)


def _calibration(
    source: Source, calibrate: list[str], recipe: Recipe, seed: int, progress: Progress
) -> Calibration:
    widest = max(g.width for g in groups(source.model))
    tokens = recipe.tokens or min(max(8 * widest, 16384), 65536)
    tokens += recipe.held_out * recipe.context
    if calibrate != ["self"]:
        return calibration_ids(source, calibrate, tokens, recipe.context, seed, progress)
    # What a model writes takes as long as measuring it: kept, so that a second budget starts at once.
    key = {"version": __version__, "model": source.hash, "self": [tokens, recipe.context, seed, str(working_dtype())]}
    cache = Cache(key)
    if "text" not in cache:
        text = calibration_ids(source, calibrate, tokens, recipe.context, seed, progress)
        cache.put("text", {text.description: Written(torch.as_tensor(text.ids))})
    ((description, written),) = cache.get("text", Written).items()
    ids = written.ids.numpy()
    return Calibration(ids, description, hashlib.sha256(ids.tobytes()).hexdigest())


def _sense(job: _Job, seed: int) -> None:
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


def _spreads(job: _Job) -> list[predict.Spread]:
    with job.stage("statistics"):
        return rounding.spreads(job.targets, 1e-4, job.recipe, job.progress)


def _build(job: _Job, level: float) -> tuple[rounding.Rounded, Assembled]:
    rounded = rounding.round_model(job.targets, level, job.recipe, entropy.prior_tables(), job.progress)
    return rounded, _assemble(job, {**job.targets.dense(), **rounded.entries}, rounded.counts, level)


def _assemble(job: _Job, entries: dict[str, Entry], counts: entropy.Counts, level: float) -> Assembled:
    source, text = job.source, job.calibration
    return container.assemble(
        config=source.config,
        entries=entries,
        recipe={**job.recipe.to_dict(), "level": level},
        provenance={
            "sprat": __version__,
            "model": source.name,
            "model_sha256": source.hash,
            "original_bytes": source.original_bytes,
            "calibration": _provenance(job),
        },
        file_extra={"tokenizer/packed": pack(source.tokenizer_files)},
        tables=entropy.Tables.from_counts(counts) if counts.symbols.any() else None,
        threads=torch.get_num_threads(),
    )


def _provenance(job: _Job) -> dict[str, object]:
    """What `prove` needs to tell whether a text was seen in calibration."""
    text = job.calibration
    said: dict[str, object] = {
        "source": "self" if job.calibrate == ["self"] else text.description,
        "tokens": int(torch.as_tensor(text.ids).numel()),
        "sha256": list(text.text_hashes),
    }
    if job.calibrate != ["self"]:
        said["sketch"] = sketch(job.source.tokenizer.decode(torch.as_tensor(text.ids).flatten()))
    return said


def _overhead(job: _Job) -> int:
    """Bytes of the file that no level changes: tokenizer, header, norms, and about seven bits a row and a column."""
    fixed = _assemble(job, job.targets.dense(), entropy.Counts.none(), 0.0).nbytes
    return fixed + job.targets.vectors() * 7 // 8 + 4096


def _floor(job: _Job, spreads: list[predict.Spread], overhead: int) -> int:
    """The smallest budget that works: what is left when nearly every weight is zero."""
    return round(
        (overhead + predict.predicted_bits(spreads, FLOOR_LEVEL, bool(job.recipe.trellis)) / 8) * 1.01
    )


def _repair(job: _Job, attempt: int, predicted: float, measured: float) -> None:
    """Distrust the statistics: shrink them more, or give up."""
    if attempt == 2:
        raise StatisticsError(
            f"the rounded model is {measured / predicted:.0f} times worse on held-out calibration text than its "
            f"statistics predict (KL {measured:.3f}, predicted {predicted:.3f}), with shrinkage "
            f"{job.recipe.shrinkage:g} too; nothing was written. Calibrate on more text, or of another kind "
            "(--calibrate, the recipe's `tokens`)"
        )
    recipe = replace(job.recipe, shrinkage=job.recipe.shrinkage * 8)
    job.warnings.append(
        f"held-out KL {measured:.3f} is {measured / predicted:.1f} times the predicted {predicted:.3f}: the statistics "
        f"cannot be trusted; fitted again with shrinkage {recipe.shrinkage:g}"
    )
    job.recipe = recipe
    job.targets = Targets(job.source, job.targets.cache, recipe)


def _note_distrust(job: _Job, ratios: dict[str, float]) -> None:
    name, worst = max(ratios.items(), key=lambda pair: pair[1])
    if worst > rounding.DISTRUST:
        job.warnings.append(
            f"{name}: {worst:.1f} times the predicted distortion on held-out inputs, the most of any map; "
            "more calibration tokens would help"
        )
