"""The checkpoints of a golf: what they depend on, and what all processes go on from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.errors import SpratError
from sprat.training import processes
from sprat.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from sprat.golf.golf import Golf

#: Seconds between two of them.
EVERY = 60.0


def of(game: Golf, out: Path, seed: int) -> Checkpoint:
    """Beside `out`; what the training depends on is its key, so that no other goes on from it."""
    key = {
        "recipe": json.dumps({**game.recipe.to_dict(), "teacher": ""}, sort_keys=True),
        "teacher": game.teacher or "none",
        "text": game.corpus.hash,
        "length": f"{float(game.length.amount)} {game.length.kind}",
        "pace": f"{game.length.pace} seconds a token",
        "cap": str(game.cap),
        "seed": str(seed),
        "number of processes": str(processes.count()),
    }
    return Checkpoint(out.with_name(f"{out.name}.checkpoint"), key, EVERY)


def teachers(game: Golf, out: Path, seed: int) -> Checkpoint:
    """That of the teacher which is trained for `out`."""
    return replace(of(game, out, seed), path=out.with_name(f"{out.name}.teacher.checkpoint"))


def saved(checkpoint: Checkpoint, resume: bool) -> dict[str, Any] | None:
    """What the first process has, perhaps on another machine, for all; None for a training from its first step."""
    return processes.shared(lambda: checkpoint.load() if resume and checkpoint.path.exists() else None)


def refuse_others(checkpoint: Checkpoint) -> None:
    """SpratError in a process that trains something else than the first one does."""
    first = processes.shared(lambda: dict(checkpoint.key))
    if other := [name for name in first if first[name] != checkpoint.key[name]]:
        name = other[0]
        raise SpratError(
            f"process {processes.rank()} trains something else than the first one: its {name} is "
            f"{checkpoint.key[name]}, the first one's {first[name]}"
        )
