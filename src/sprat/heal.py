"""`heal`: a `.sprat` trained towards the model that it was made from, within the bytes that it has.

open  →  text  →  train  →  weigh  →  compare on held-out text  →  write what is better
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sprat import __version__
from sprat import job as jobs
from sprat.coding import container
from sprat.coding.artifact import Artifact
from sprat.coding.container import Assembled
from sprat.coding.tensors import Entry
from sprat.errors import BudgetError, RecipeError, SpratError
from sprat.folders import refuse_target
from sprat.level.check import kl_between, rebuilt
from sprat.methods.healer import Healer, contexts_a_step, fitting, healer, memory, steps, telling, tokens_for
from sprat.progress import Progress, silent
from sprat.prove.honesty import healings
from sprat.recipe import Recipe
from sprat.run.model import to_torch
from sprat.sense.walk import working_dtype
from sprat.sizes import Budget, parse_budget
from sprat.source.load import Source, load
from sprat.source.text import Calibration
from sprat.training import devices, processes
from sprat.training.checkpoint import Checkpoint
from sprat.training.loop import Point, train
from sprat.training.schedule import Schedule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["HealResult", "heal"]

#: Seconds between two checkpoints.
CHECKPOINT_SECONDS = 120.0
#: Hashes in the sketch of a heal text: each takes eight bytes of the file.
SKETCH = 32


@dataclass(frozen=True)
class HealResult:
    """What `heal` did. KL in nats a token on text that was not learnt from; sizes in bytes."""

    path: Path
    nbytes: int
    before_nbytes: int
    kl: float
    before_kl: float
    rejected: str
    """Why healing was not kept: `path` is then the file that was given, byte for byte. Empty where it was kept."""
    points: list[Point] = field(repr=False)
    """The training, a point a step."""

    @property
    def kept(self) -> bool:
        return not self.rejected


def heal(
    file: str | Path,
    against: str | Path,
    out: str | Path,
    *,
    minutes: float | None = None,
    contexts: int | None = None,
    calibrate: str | Sequence[str] = "self",
    tokens: int | None = None,
    deep: bool = False,
    rank: int = 0,
    budget: str | Budget | None = None,
    rate: float | None = None,
    seed: int = 0,
    resume: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
) -> HealResult:
    """Train the free parameters of `file` towards the model `against`, from which it was made; write `out`.

    minutes of training, or contexts to learn from: one of the two. calibrate and seed: the text, as for `sprat.fit`;
    `tokens` of it are learnt from (default: `tokens_for`), and some contexts more compared on. deep: train the integers
    too, within the zeros and few values that the recipe holds them to; for a file without a trellis and products. rank:
    of products beside the maps that learn as well, and need room in the budget (methods/adapter.py); those that the
    file has learn anyway. budget: what `out` may weigh, by default what `file` weighs. rate: of Adam, by default the
    recipe's. A checkpoint lies beside `out` while it trains; `resume` goes on from it. `out` is the better of the two
    on the text held out. device: where the original writes, and both learn and are compared (training/devices.py).
    Within `training.processes.joined` all processes learn, each from other contexts, which `contexts` counts together;
    the first one writes, and all return the same.

    Raises SpratError where `file` was not made from `against`, for a device that is not there, and where memory ends,
    with what is needed; RecipeError for no time, and for deep or rank where the file has products; BudgetError for a
    budget that `file` does not keep.
    """
    file, out = Path(file), Path(out)
    length = None if contexts is None else steps(contexts, deep, processes.count())
    schedule = Schedule(rate or 1.0, length, None if minutes is None else 60 * minutes)
    place = devices.find(device)
    # `file` itself may be improved in place.
    refuse_target(out, against, *([calibrate] if isinstance(calibrate, str) else calibrate))
    with container.open(file) as artifact:
        recipe = _recipe(artifact)
        # Refuses what no recipe allows.
        recipe = replace(recipe, heal_deep=deep, heal_rank=rank, trellis=0 if deep else recipe.trellis)
        _refuse(artifact, deep, rank)
        source = _original(artifact, against, place, progress)
        size = _size(artifact, source, budget, rank)
        rounded = to_torch(artifact, str(source.model.dtype).removeprefix("torch."))
        entries = artifact.entries(torch.get_num_threads(), progress)
        with telling(memory(rounded, entries, deep, recipe.context), place):
            for model in (source.model, rounded):
                model.to(place)  # type: ignore[arg-type]
            texts = [calibrate] if isinstance(calibrate, str) else list(calibrate)
            wanted = (tokens or tokens_for(minutes, processes.count())) + recipe.held_out * recipe.context
            text = processes.shared(lambda: jobs.calibration(source, texts, wanted, recipe, seed, progress))
            schedule = replace(schedule, rate=rate or recipe.heal_rate)
            lesson = _Lesson(artifact, source, text, recipe, schedule, seed, out, size)
            return _taught(lesson, rounded, entries, resume, progress)


@dataclass(frozen=True)
class _Lesson:
    """What is learnt by which file, from which original and text, and how; where it goes, in at most `size` bytes."""

    artifact: Artifact
    source: Source
    text: Calibration
    recipe: Recipe
    schedule: Schedule
    seed: int
    out: Path
    size: int

    @property
    def learning(self) -> torch.Tensor:
        """(contexts, context) int64."""
        return torch.as_tensor(self.text.ids)[: -self.recipe.held_out]

    @property
    def held_out(self) -> torch.Tensor:
        """(held_out, context) int64: compared on, not learnt from."""
        return torch.as_tensor(self.text.ids)[-self.recipe.held_out :]

    @property
    def checkpoint(self) -> Checkpoint:
        """Of what this depends on, and no other goes on from it."""
        key = {
            "file": self.artifact.digest,
            "model": self.source.hash,
            "length": _length(self.schedule),
            "rate": f"{self.schedule.rate:g}",
            "deep": str(self.recipe.heal_deep),
            "rank": str(self.recipe.heal_rank),
            "seed": str(self.seed),
            "text": self.text.hash,
            "version": __version__,
        }
        return Checkpoint(checkpoint_path(self.out), key, CHECKPOINT_SECONDS)


def _taught(
    lesson: _Lesson, rounded: PreTrainedModel, entries: Mapping[str, Entry], resume: bool, progress: Progress
) -> HealResult:
    """`rounded`, the model that `entries` stand for, trained, compared and written."""
    original, recipe = lesson.source.model, lesson.recipe
    before = processes.shared(lambda: kl_between(original, rounded, lesson.held_out))
    learner = healer(original, rounded, entries, recipe)
    points = train(
        learner,
        lesson.learning,
        lesson.schedule,
        accumulate=contexts_a_step(recipe.heal_deep),
        seed=lesson.seed,
        checkpoint=lesson.checkpoint,
        resume=resume,
        name="healing",
        progress=progress,
    )

    def write() -> HealResult:
        found = _written(lesson, rounded, learner, points, before)
        lesson.checkpoint.remove()  # not before: a full disk must not cost the training
        return found

    return processes.shared(write)


def _written(
    lesson: _Lesson, rounded: nn.Module, learner: Healer, points: list[Point], before: float
) -> HealResult:
    """The better of the file, whose KL is `before`, and what was learnt."""
    artifact, original, out, size = lesson.artifact, lesson.source.model, lesson.out, lesson.size
    # What was learnt from before was learnt from.
    learnt = {"heal": [*healings(artifact.provenance), _said(lesson, points[-1].contexts)]}
    after, best, rejected = before, None, f"it did not fit into {size:,} bytes"
    for healed, made in fitting(
        learner, lambda new: _assembled(artifact, new, learnt), lambda made: made.nbytes <= size
    ):
        kl = kl_between(original, rebuilt(rounded, healed), lesson.held_out)
        rejected = f"its KL was {kl:.4f}"
        if kl < after:
            after, best = kl, made
    if best is not None:
        best.save(out)
        return HealResult(out, best.nbytes, artifact.nbytes, after, before, "", points)
    if artifact.path.resolve() != out.resolve():
        Assembled((artifact.path.read_bytes(),), artifact.ledger()).save(out)
    return HealResult(out, artifact.nbytes, artifact.nbytes, before, before, rejected, points)


def _length(schedule: Schedule) -> str:
    return f"{schedule.steps} steps" if schedule.seconds is None else f"{schedule.seconds / 60:g} minutes"


def checkpoint_path(out: Path) -> Path:
    """Where a run that ends in `out` is kept until then."""
    return out.with_name(f"{out.name}.checkpoint")


def _recipe(artifact: Artifact) -> Recipe:
    """The recipe that the file was made by, as far as this version knows its fields, without what a fit healed."""
    known = {f.name for f in fields(Recipe)} - {"heal_deep", "heal_rank"}
    return Recipe.from_dict({name: value for name, value in artifact.recipe.items() if name in known})


def _original(artifact: Artifact, against: str | Path, place: torch.device, progress: Progress) -> Source:
    progress("loading the model", 0, 1)
    source = load(against, dtype=working_dtype(place))
    progress("loading the model", 1, 1)
    made_from = artifact.provenance.get("model_sha256")
    if made_from != source.hash:
        name = artifact.provenance.get("model", "a model that it does not name")
        raise SpratError(
            f"{artifact.path.name} was made from {name} (SHA-256 {str(made_from)[:12]}…), not from {source.name} "
            f"({source.hash[:12]}…): healing needs the very model"
        )
    mine, its = (c.get("vocab_size") for c in (artifact.config, source.config))
    if mine != its:
        raise SpratError(
            f"{artifact.path.name} knows {mine} tokens, {source.name} {its}: their predictions cannot be "
            "compared, so it cannot be healed"
        )
    return source


def _size(artifact: Artifact, source: Source, budget: str | Budget | None, rank: int) -> int:
    size = artifact.nbytes
    if budget is not None:
        parsed = parse_budget(budget) if isinstance(budget, str) else budget
        size = parsed.bytes(source.original_bytes, source.original_bytes // 2)
    if size < artifact.nbytes:
        raise BudgetError(
            f"{artifact.path.name} weighs {artifact.nbytes:,} bytes, above the budget of {size:,}: healing makes no "
            "file smaller, sprat fit does"
        )
    if rank and size == artifact.nbytes:
        raise BudgetError(
            f"products of rank {rank} need bytes beside the {artifact.nbytes:,} of {artifact.path.name}: give a "
            "budget above that (--budget), or fit with room for them (--set heal_rank)"
        )
    return size


def _refuse(artifact: Artifact, deep: bool, rank: int) -> None:
    """What this file does not allow; its products count whatever its recipe says, as a healing may have made them."""
    name, states = artifact.path.name, artifact.recipe.get("trellis", 0)
    if deep and states:
        raise SpratError(
            f"{name} was rounded along a trellis of {states} states, on which no integer can move alone: deep healing "
            "needs a file that was fitted without one (--set trellis=0)"
        )
    if (deep or rank) and any(line.kind == "left" for line in artifact.ledger().lines):
        raise RecipeError(
            f"{name} has products of low rank beside its maps, which learn in every healing but a deep one, and there "
            "is one for a map: leave out --rank and --deep"
        )


def _said(lesson: _Lesson, contexts: int) -> dict[str, Any]:
    """What the file's provenance says of this healing, as `Job.provenance` does of its calibration."""
    text, learning = lesson.text, lesson.learning
    said: dict[str, Any] = {"source": "self", "tokens": learning.numel(), "contexts": contexts}
    if text.text_hashes:  # what was read has some
        said |= jobs.told(lesson.source, text, learning, SKETCH)
    return said


def _assembled(artifact: Artifact, entries: dict[str, Entry], said: dict[str, Any]) -> Assembled:
    """The artifact with other entries, and what is said of them."""
    return container.assemble(
        config=artifact.config,
        entries=entries,
        recipe=artifact.recipe,
        provenance={**artifact.provenance, **said},
        file_extra={name: artifact.file(name) for name in artifact.files},
        threads=torch.get_num_threads(),
    )
