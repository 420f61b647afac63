"""What computes a model: engines shared by sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Session(Protocol):
    """One text under way: its key-value cache."""

    @property
    def length(self) -> int:
        """Tokens in it."""
        ...

    def rewind(self, length: int) -> None:
        """Forget everything behind the first `length` tokens."""
        ...

    def close(self) -> None: ...


class Engine(Protocol):
    """A model that computes, shared by any number of sessions."""

    name: str
    vocabulary: int
    context: int

    def session(self, context: int | None = None) -> Session: ...

    def step(self, sessions: Sequence[Session], ids: Sequence[Sequence[int]]) -> np.ndarray: ...

    def all_logits(self, ids: Sequence[int]) -> np.ndarray: ...
