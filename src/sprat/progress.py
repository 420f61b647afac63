"""How the silent library reports long work: a callable that cli/ turns into a bar with the time left."""

from __future__ import annotations

from collections.abc import Callable

#: progress(stage, done, total): `stage` is a short noun phrase, behind a comma what it says of itself ("training, loss
#: 0.12"); `done` and `total` count the same thing.
Progress = Callable[[str, float, float], None]


def silent(stage: str, done: float, total: float) -> None:
    """The default: say nothing."""
