"""`run_tasks`: the same questions to both models, one entry of the proof's `tasks` for each task."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sprat.errors import ProofError
from sprat.progress import Progress, silent
from sprat.prove.intervals import estimate, resample
from sprat.prove.tasks import files
from sprat.prove.tasks.local import Outcome, answer
from sprat.prove.tasks.pairs import paired
from sprat.prove.tasks.remembered import RememberedScorer, was_remembered
from sprat.prove.tasks.requests import Scorer, words, words_of_transformers

if TYPE_CHECKING:
    from sprat.coding.container import Artifact
    from sprat.prove.tasks.harness import Harness
    from sprat.source.load import Source


@dataclass(frozen=True)
class Questions:
    """Tasks that have been read and found good, before any model is asked."""

    local: tuple[files.Task, ...]
    harness: Harness | None


def read_tasks(names: Sequence[str], items: int | None = None) -> Questions:
    """names: JSON-lines files (what ends in .jsonl or .json, or holds a slash), else tasks or groups of
    lm-evaluation-harness, by name or as a .yaml of their own. items: at most so many of each, evenly spread.
    Raises `ProofError` where one cannot be read or a name is unknown.
    """
    if items is not None and items < 1:
        raise ProofError(f"a task needs at least one item, not {items}")
    local = tuple(files.read(name, items) for name in names if is_file(name))
    others = [name for name in names if not is_file(name)]
    if not others:
        return Questions(local, None)
    from sprat.prove.tasks.harness import Harness

    return Questions(local, Harness(others, items))


def run_tasks(
    original: Source,
    compressed: Artifact,
    names: Sequence[str] | Questions,
    items: int | None = None,
    *,
    engine: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    remember: bool = False,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Entries of the proof's `tasks` (docs/tasks.md), JSON-able: those of files, then the harness's.

    names, items: as `read_tasks` takes them, or what it gave. engine, threads: what computes the file, as
    `sprat.run.engine.open_engine` takes it. seed: of the bootstrap of perplexities. remember: keep the original's
    answers in the cache folder, and take them from there: only where its weights are those that its hash names.
    """
    asked = names if isinstance(names, Questions) else read_tasks(names, items)
    theirs = compressed_scorer(compressed, engine, threads)

    def scorers() -> tuple[Scorer, Scorer]:
        return original_scorer(original, remember), theirs

    return ask(scorers, asked, seed, progress)


def ask(
    scorers: Callable[[], tuple[Scorer, Scorer]],
    questions: Questions,
    seed: int = 0,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """As `run_tasks`, of whatever answers. scorers: the original's and the other's, made anew for each task."""
    entries = [_local(task, scorers(), seed, progress) for task in questions.local]
    return entries + (questions.harness.run(scorers(), progress) if questions.harness else [])


def is_file(name: str) -> bool:
    """Is it questions that are meant, and not a task of lm-evaluation-harness (by name, or its own .yaml)?"""
    if name.endswith(".yaml"):
        return False
    return name.endswith((".jsonl", ".json")) or "/" in name or Path(name).is_file()


def original_scorer(source: Source, remember: bool = False) -> Scorer:
    """The original, in batches through torch; remember: as `run_tasks` takes it."""
    from sprat.prove.tasks.torch_scorer import TorchScorer

    scorer = TorchScorer(source.model, words_of_transformers(source.tokenizer))
    if not remember:
        return scorer
    return RememberedScorer(scorer, source.hash, str(next(source.model.parameters()).dtype))


def compressed_scorer(artifact: Artifact, engine: str = "auto", threads: int | None = None) -> Scorer:
    """The file, through the engine that `sprat.run.engine.open_engine` gives."""
    from sprat.prove.tasks.engine_scorer import EngineScorer
    from sprat.run.engine import open_engine
    from sprat.run.tokenizer import open_tokenizer

    return EngineScorer(open_engine(artifact, threads, kind=engine), words(open_tokenizer(artifact)))


def _local(task: files.Task, scorers: tuple[Scorer, Scorer], seed: int, progress: Progress) -> dict[str, Any]:
    outcomes, seconds = [], []
    for scorer, side in zip(scorers, ("original", "compressed"), strict=True):
        started = time.perf_counter()
        outcomes.append(answer(scorer, task, f"{task.name}: {side}", progress))
        seconds.append(round(time.perf_counter() - started, 3))
    before, after = outcomes
    entry = {
        "name": task.name,
        "metric": "acc",
        **paired(before.right, after.right).to_json(),
        "chance": task.chance,
        "format": task.format,
        "source": {"path": task.path, "bytes": task.nbytes, "sha256": task.sha256, "items": task.found},
        "seconds": dict(zip(("original", "compressed"), seconds, strict=True)),
        "remembered": was_remembered(scorers[0]),
    }
    if task.cloze:
        return entry | _perplexities(before, after, seed)
    if task.format == "blimp":  # whole sentences, which nobody divides by their length
        return entry
    return entry | {"acc_norm": paired(before.right_by_bytes, after.right_by_bytes).to_json()}


def _perplexities(before: Outcome, after: Outcome, seed: int) -> dict[str, Any]:
    """Of an answer, as lm-evaluation-harness has it for LAMBADA: exp of the mean, over questions, of −log p.

    Nothing where an answer of hundreds of tokens makes one, or an end of its interval, more than a number can hold.
    """
    sums = np.stack([before.nll, after.nll, np.ones(len(before.nll))], axis=1)
    draws = resample(sums, seed=seed)
    figures = {
        "perplexity_original": lambda s: np.exp(s[..., 0] / s[..., 2]),
        "perplexity_compressed": lambda s: np.exp(s[..., 1] / s[..., 2]),
        "perplexity_ratio": lambda s: np.exp((s[..., 1] - s[..., 0]) / s[..., 2]),
    }
    with np.errstate(over="ignore", invalid="ignore"):
        found = {name: estimate(sums, draws, statistic) for name, statistic in figures.items()}
    several = len(sums) > 1
    if not all(np.isfinite([e.value, *((e.low, e.high) if several else ())]).all() for e in found.values()):
        return {}
    return {name: figure.to_json() for name, figure in found.items()}
