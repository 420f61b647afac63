"""`golf`: text in, the best model that fits a cap out. The story on one page.

corpus  →  tokenizer  →  training  →  into the cap  →  bits per byte
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from sprat.errors import BudgetError, RecipeError, SpratError
from sprat.folders import refuse_target, write_whole
from sprat.golf import checkpoints, corpus, finish, words
from sprat.golf import teacher as teachers
from sprat.golf.batches import Batches
from sprat.golf.corpus import Corpus
from sprat.golf.curriculum import Curriculum
from sprat.golf.ended import end
from sprat.golf.loop import Point, counted, run
from sprat.golf.model import Decoder
from sprat.golf.recipe import Recipe
from sprat.golf.result import figures, finished, result
from sprat.golf.schedule import Length
from sprat.golf.teacher import Teacher
from sprat.golf.training import Training
from sprat.progress import Progress, silent
from sprat.prove.environment import sha256
from sprat.sizes import Budget, parse_budget
from sprat.training import devices, processes
from sprat.training.devices import CPU


@dataclass(frozen=True)
class Golf:
    """What every seed of one golf shares."""

    recipe: Recipe
    cap: int
    length: Length
    corpus: Corpus
    teacher: str = ""
    """SHA-256 (hex) of the recipe's teacher, if any."""
    device: torch.device = CPU
    """Where it is trained."""


def golf(
    recipe: Recipe,
    text: Sequence[str | Path] | None,
    cap: str | Budget,
    length: Length,
    out: str | Path,
    *,
    seed: int = 0,
    seeds: int = 1,
    validation: Sequence[str | Path] | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
    watch: Callable[[Point, float], None] = lambda point, bits: None,
) -> dict[str, Any]:
    """Train `recipe` on `text` for `length`, end in at most `cap` bytes at `out`, and score it.

    text, validation: None for the recipe's own. seeds: so many trainings, with seeds `seed`, `seed` + 1, …; the second
    one's file is `out` with -seed1 in its name, and so on. Beside `out` stands a JSON (`result.figures`) with every
    figure, which is returned; and, while it trains, a checkpoint, from which `resume` goes on to the same bits (on one
    thread). device: where it is trained (training/devices.py); it ends on the processor. watch: is told points of the
    training and their bits per byte of training text.

    Raises SourceError, RecipeError, BudgetError (naming the smallest cap that works), TrainingError; SpratError for a
    device that is not there.
    """
    out, place = Path(out), devices.find(device)
    for written in (out, figures(out)):
        refuse_target(
            written, *(text or recipe.text), *(validation or recipe.validation_text), recipe.teacher
        )
    if out.suffix == ".json":
        raise SpratError(
            f"cannot write {out}: .json is what the figures beside it end in; call it {out.stem}.sprat"
        )
    if place.type != "cpu" and length.kind == "processor seconds":
        raise RecipeError(
            "processor minutes do not count what a GPU does: give --minutes, by the clock, or --tokens"
        )
    game = replace(prepare(recipe, text, cap, length, validation), device=place)
    runs: list[dict[str, Any]] = []
    found = result(game, runs)
    # One that writes nothing, on another machine perhaps, goes on from what the first one has.
    over = processes.shared(lambda: finished(game, out) if resume else {})
    for number in range(seeds):
        file = out if number == 0 else out.with_name(f"{out.stem}-seed{number}{out.suffix}")
        row = over.get(seed + number) or play(game, file, seed + number, resume, progress, watch)
        runs.append(row)
        found = result(game, runs)
        if processes.rank() == 0:
            write_whole(figures(out), json.dumps(found, indent=1, allow_nan=False))
    return found


def prepare(
    recipe: Recipe,
    text: Sequence[str | Path] | None,
    cap: str | Budget,
    length: Length,
    validation: Sequence[str | Path] | None = None,
) -> Golf:
    """What `golf` is asked for, read and checked: SourceError, BudgetError."""
    size = parse_budget(cap) if isinstance(cap, str) else cap
    if size.kind != "bytes":
        raise BudgetError(f"a cap is a number of bytes, such as 250kB or 16MB, not {size}")
    taught = teachers.digest(recipe.teacher) if recipe.teacher else ""
    return Golf(recipe, int(size.value), length, corpus.of(recipe, text, validation), taught)


def play(
    game: Golf,
    out: Path,
    seed: int,
    resume: bool = False,
    progress: Progress = silent,
    watch: Callable[[Point, float], None] = lambda point, bits: None,
) -> dict[str, Any]:
    """One seed of a golf: a row of its result."""
    recipe, given = game.recipe, game.corpus
    torch.manual_seed(seed)
    checkpoint = checkpoints.of(game, out, seed)
    checkpoints.refuse_others(checkpoint)
    saved = checkpoints.saved(checkpoint, resume)
    progress("tokenizer", 0, 1)
    tokenizer = words.learn(given.train, recipe.vocabulary)
    progress("tokenizer", 1, 1)
    ids = words.stream(tokenizer, given.train)
    vocabulary = tokenizer.get_vocab_size()
    weighed = finish.weigh(Decoder(recipe, vocabulary), recipe, tokenizer)
    finish.refuse_impossible(game.cap, weighed, recipe, len(ids))
    # A token of the training text stands for so many bytes; its mark is a token too.
    nbytes = sum(len(document.encode()) for document in given.train) / len(ids)

    def tell(point: Point) -> None:
        watch(point, point.loss / nbytes / math.log(2))

    teacher, own = _teacher(game, out, tokenizer, ids, seed, resume, progress, tell)
    share = 1 - recipe.teach_share if own else 1
    length = replace(game.length, amount=share * game.length.amount)
    training = _training(recipe, vocabulary, ids, length, seed, teacher, game.device)
    training.noise_bits = weighed.bits(game.cap)
    points = run(training, checkpoint, progress, tell, saved)
    if processes.rank():
        return {}
    model = training.result()
    ended = end(model, recipe, tokenizer, game.cap, given, out, seed, progress)
    checkpoint.remove()
    checkpoints.teachers(game, out, seed).remove()
    return {
        "seed": seed,
        "file": out.name,
        "bytes": out.stat().st_size,
        "sha256": sha256(out),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": vocabulary,
        "steps": training.step,
        "tokens": training.tokens,
        "epochs": training.tokens / len(ids),
        "seconds": training.seconds,
        "teacher": own
        and {
            "parameters": sum(p.numel() for p in own.model.parameters()),
            "tokens": own.tokens,
            "seconds": own.seconds,
        },
        **ended.figures(),
        "points": [vars(point) for point in points],
    }


def _training(
    recipe: Recipe,
    vocabulary: int,
    ids: np.ndarray,
    length: Length,
    seed: int,
    teacher: Teacher | None = None,
    device: torch.device = CPU,
) -> Training:
    """At its first step; what is spent on a curriculum counts."""
    started = length.now()
    if recipe.easy or recipe.drop:
        batches: Batches = Curriculum(
            ids, recipe.context, recipe.batch, seed, vocabulary, recipe.easy, recipe.drop
        )
    else:
        batches = Batches(ids, recipe.context, recipe.batch, seed)
    spent = length.now() - started
    training = Training(recipe, vocabulary, batches, length, seed, teacher, device)
    training.seconds = counted(length, spent)
    return training


def _teacher(
    game: Golf,
    out: Path,
    tokenizer: Tokenizer,
    ids: np.ndarray,
    seed: int,
    resume: bool,
    progress: Progress,
    tell: Callable[[Point], None],
) -> tuple[Teacher | None, Training | None]:
    """What the recipe learns from beside the text, and its training where it is trained here."""
    recipe = game.recipe
    if recipe.teacher:
        return teachers.load(recipe.teacher, tokenizer, game.device), None
    if not recipe.teach:
        return None, None
    length = replace(game.length, amount=recipe.teach_share * game.length.amount)
    vocabulary = tokenizer.get_vocab_size()
    own = _training(recipe.teacher_recipe(), vocabulary, ids, length, seed, device=game.device)
    checkpoint = checkpoints.teachers(game, out, seed)
    run(own, checkpoint, progress, tell, checkpoints.saved(checkpoint, resume))
    return own.result().to(game.device), own
