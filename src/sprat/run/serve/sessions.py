"""The caches of texts: those that ended are kept a while, as the next message of a chat begins with the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

from sprat.errors import SpratError
from sprat.run.chat import common
from sprat.run.engine import Engine, Session

#: A shared beginning of fewer tokens is no reason to take a cache from the text that it belongs to.
WORTHWHILE = 16


class Sessions:
    """Open sessions of an engine, used by the scheduler's thread alone."""

    def __init__(self, engine: Engine, context: int, keep: int):
        """context: tokens of each; keep: how many may lie idle."""
        self._engine, self._context, self._keep = engine, context, keep
        self._idle: list[tuple[Session, list[int]]] = []  # the longest unused first
        self.open = 0

    @property
    def idle(self) -> int:
        return len(self._idle)

    def take(self, ids: Sequence[int]) -> tuple[Session, int]:
        """A session for a text that begins with `ids`, and how many of them it holds already (never all)."""
        shared = [common(held, ids) for _, held in self._idle]
        best = max(range(len(shared)), key=lambda i: shared[i], default=None)
        if best is not None and shared[best] >= WORTHWHILE:
            session, _ = self._idle.pop(best)
            session.rewind(shared[best])
            return session, shared[best]
        # Not one of another text: that one holds the pages of the longest text it ever had, a new one none.
        try:
            session = self._engine.session(self._context)
        except (MemoryError, SpratError):  # the native engine says what the memory was for
            if not self._idle:
                raise
            self.clear()
            session = self._engine.session(self._context)
        self.open += 1
        return session, 0

    def give(self, session: Session, held: list[int]) -> None:
        """A text is over; `held` are the tokens in its session."""
        self._idle.append((session, held))
        if len(self._idle) > self._keep:
            self.drop(self._idle.pop(0)[0])

    def drop(self, session: Session) -> None:
        """Close a session for good."""
        self.open -= 1
        session.close()

    def clear(self) -> None:
        """Close all that lie idle."""
        while self._idle:
            self.drop(self._idle.pop()[0])
