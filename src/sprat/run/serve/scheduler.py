"""One thread owns the engine and writes all texts side by side (continuous batching, as in Orca, Yu et al.,
OSDI 2022): a text joins when there is room and leaves when it is done, between any two steps.

Each round: let waiting choices in, one client after another; read a part of the prompts; then one batched step
gives every text that is being written its next token. Long prompts are read in parts, so that they hold up the
others by no more than a part.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sprat.errors import SpratError
from sprat.run.engine import Engine, Session
from sprat.run.sampling import Sampler
from sprat.run.serve.errors import ApiError, busy, closing, late
from sprat.run.serve.sessions import Sessions
from sprat.run.serve.writing import Piece, Writer

#: Prompt tokens that one round reads.
PART = 256


@dataclass(frozen=True)
class Event:
    """News of a choice: text, its end, or that it failed."""

    choice: int
    piece: Piece = field(default_factory=lambda: Piece(""))
    finish: str | None = None  #: "stop" or "length" with the last event
    failure: ApiError | None = None


@dataclass(eq=False)
class Choice:
    """One text to write."""

    index: int
    ids: list[int]
    sampler: Sampler
    writer: Writer
    max_tokens: int
    tokens: list[int] = field(default_factory=list)
    reused: int = 0  #: tokens of the prompt that a kept session held already
    session: Session | None = None
    entered: float = 0.0  #: when it left the queue, in `time.monotonic`


@dataclass(eq=False)
class Job:
    """A request: its choices, whom it is for, and where the news goes.

    news is called on the scheduler's thread and must neither block nor raise. deadline: in `time.monotonic`.
    """

    client: str
    choices: list[Choice]
    news: Callable[[Event], None]
    deadline: float
    seconds: float  #: the limit that the deadline came from
    cancelled: bool = False

    def cancel(self) -> None:
        """Nobody waits for it any more; it stops before the next step. From any thread."""
        self.cancelled = True


class Scheduler:
    """The thread. `submit` from any other; `close` ends it."""

    def __init__(
        self, engine: Engine, eos_ids: frozenset[int], context: int, running: int, waiting: int, keep: int
    ):
        """running, waiting: choices that are written at a time, and that may wait. keep: idle sessions kept."""
        self._engine, self._eos_ids = engine, eos_ids
        self.context, self.limit, self.queue = context, running, waiting
        self._sessions = Sessions(engine, context, keep)
        self._changed = threading.Condition()
        self._closing = False
        self._waiting: dict[str, deque[tuple[Job, Choice]]] = {}  # by client; whose turn is next stands first
        self._queued = 0
        self._reading: list[tuple[Job, Choice]] = []
        self._writing: list[tuple[Job, Choice]] = []
        self._pace = 1.0  # seconds that a choice took, lately
        self._thread = threading.Thread(target=self._run, name="sprat-scheduler", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        return len(self._reading) + len(self._writing)

    @property
    def waiting(self) -> int:
        return self._queued

    @property
    def sessions(self) -> tuple[int, int]:
        """Open, and idle of them."""
        return self._sessions.open, self._sessions.idle

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def submit(self, job: Job) -> None:
        """Queue all choices of a job, or none: `ApiError` 429 where too many wait, 503 at the end."""
        with self._changed:
            if not self.alive:
                raise closing()
            # What the next round lets in does not wait.
            room = self.queue + max(0, self.limit - self.running)
            if self._queued + len(job.choices) > room:
                raise busy(self._pace * (self._queued + 1) / self.limit)
            self._waiting.setdefault(job.client, deque()).extend((job, choice) for choice in job.choices)
            self._queued += len(job.choices)
            self._changed.notify()

    def close(self) -> None:
        """Stop; whatever is not done is told so."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    while not (self._closing or self._queued or self._reading or self._writing):
                        self._changed.wait()
                    if self._closing:
                        return
                    entering = self._admit()
                self._enter(entering)
                self._sweep()
                self._read()
                self._write()
        finally:
            self._shut()

    def _admit(self) -> list[tuple[Job, Choice]]:
        """Take waiting choices, clients in turn, while there is room. Cancelled and late ones leave the queue."""
        now = time.monotonic()
        for queue in self._waiting.values():
            gone = [pair for pair in queue if pair[0].cancelled or pair[0].deadline < now]
            for pair in gone:
                queue.remove(pair)
                self._fail(*pair, late(pair[0].seconds))
            self._queued -= len(gone)
        out: list[tuple[Job, Choice]] = []
        self._waiting = {client: queue for client, queue in self._waiting.items() if queue}
        while self._waiting and self.running + len(out) < self.limit:
            client = next(iter(self._waiting))
            queue = self._waiting.pop(client)
            out.append(queue.popleft())
            self._queued -= 1
            if queue:
                self._waiting[client] = queue  # to the end of the row
        return out

    def _enter(self, entering: Sequence[tuple[Job, Choice]]) -> None:
        for job, choice in entering:
            try:
                choice.session, choice.reused = self._sessions.take(choice.ids)
            except (MemoryError, SpratError) as error:
                self._fail(job, choice, ApiError(503, f"no room for another text: {error}", code="no_room"))
                continue
            choice.entered = time.monotonic()
            self._reading.append((job, choice))

    def _sweep(self) -> None:
        """Let go of what nobody waits for, and of what took too long."""
        now = time.monotonic()
        for pairs in (self._reading, self._writing):
            for job, choice in [pair for pair in pairs if pair[0].cancelled or pair[0].deadline < now]:
                self._leave(job, choice)
                self._fail(job, choice, late(job.seconds))

    def _read(self) -> None:
        """Read at most `PART` tokens of prompts, the first come first; who is through draws its first token."""
        batch: list[tuple[Job, Choice]] = []
        parts: list[list[int]] = []
        room = PART
        for job, choice in self._reading:
            if room == 0:
                break
            at = choice.session.length if choice.session else 0
            parts.append(choice.ids[at : at + room])
            room -= len(parts[-1])
            batch.append((job, choice))
        for (job, choice), row in self._step(batch, parts):
            if choice.session is not None and choice.session.length == len(choice.ids):
                self._reading.remove((job, choice))
                self._writing.append((job, choice))
                self._advance(job, choice, row)

    def _write(self) -> None:
        """One batched step: a token for every text."""
        batch = list(self._writing)
        for (job, choice), row in self._step(batch, [[choice.tokens[-1]] for _, choice in batch]):
            self._advance(job, choice, row)

    def _step(
        self, batch: list[tuple[Job, Choice]], ids: list[list[int]]
    ) -> list[tuple[tuple[Job, Choice], np.ndarray]]:
        """Each with its logits; none where the engine failed, which ends those texts and not the server."""
        if not batch:
            return []
        try:
            sessions = [choice.session for _, choice in batch if choice.session is not None]
            return list(zip(batch, self._engine.step(sessions, ids), strict=True))
        except Exception as error:
            for job, choice in batch:
                self._leave(job, choice, keep=False)
                self._fail(job, choice, ApiError(500, f"the engine failed: {error}", code="engine"))
            return []

    def _advance(self, job: Job, choice: Choice, logits: np.ndarray) -> None:
        """Draw a token from `logits` (vocabulary,), tell of it, and see whether the text is over."""
        piece, finish = Piece(""), None
        try:
            token = choice.sampler.draw(logits)
            if token in self._eos_ids:
                finish = "stop"
            else:
                choice.tokens.append(token)
                piece = choice.writer.push(token, logits)
        except Exception as error:
            self._leave(job, choice, keep=False)
            self._fail(job, choice, ApiError(500, f"no token could be drawn: {error}", code="engine"))
            return
        if choice.writer.stopped:
            finish = "stop"
        elif finish is None and (
            len(choice.tokens) >= choice.max_tokens or len(choice.ids) + len(choice.tokens) >= self.context
        ):
            finish = "length"
        if finish is None:
            if piece.text or piece.logprobs:
                job.news(Event(choice.index, piece))
            return
        if not choice.writer.stopped:
            rest = choice.writer.end()
            piece = Piece(piece.text + rest.text, piece.logprobs + rest.logprobs)
            finish = "stop" if choice.writer.stopped else finish
        self._leave(job, choice)
        self._pace += 0.1 * (time.monotonic() - choice.entered - self._pace)
        job.news(Event(choice.index, piece, finish))

    def _leave(self, job: Job, choice: Choice, keep: bool = True) -> None:
        """A choice gives its place and its session back."""
        for pairs in (self._reading, self._writing):
            if (job, choice) in pairs:
                pairs.remove((job, choice))
        session, choice.session = choice.session, None
        if session is None:
            return
        if keep and session.length:
            self._sessions.give(session, (choice.ids + choice.tokens)[: session.length])
        else:
            self._sessions.drop(session)

    def _fail(self, job: Job, choice: Choice, error: ApiError) -> None:
        job.news(Event(choice.index, failure=error))

    def _shut(self) -> None:
        """The thread ends: by `close`, or by a fault of its own, and then nobody may wait for ever."""
        with self._changed:
            self._closing = True
            left = [pair for queue in self._waiting.values() for pair in queue]
            self._waiting, self._queued = {}, 0
        for job, choice in [*left, *self._reading, *self._writing]:
            self._leave(job, choice, keep=False)
            self._fail(job, choice, closing())
        self._sessions.clear()
