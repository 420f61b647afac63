"""A `.sprat`'s engine that answers requests: what two neighbours have in common is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

import numpy as np

from sprat.errors import ProofError
from sprat.progress import Progress, silent
from sprat.prove.tasks.requests import Answer, Request, Words
from sprat.run.engine import Engine

#: Tokens in front of the continuation are a step of their own, which spares their logits, from so many on.
_APART = 8


class EngineScorer:
    """`sprat.prove.tasks.requests.Scorer` through an engine of `sprat.run`. `name` is what errors call it."""

    def __init__(self, engine: Engine, words: Words, name: str = "compressed"):
        self._engine, self.words, self._name = engine, words, name
        self.context = engine.context

    def score(
        self, requests: Sequence[Request], stage: str = "reading questions", progress: Progress = silent
    ) -> list[Answer]:
        if not requests:
            return []
        answers: list[Answer] = []
        total, done = sum(len(request.ids) for request in requests), 0
        session = self._engine.session(max(len(request.ids) for request in requests))
        held: tuple[int, ...] = ()
        progress(stage, 0, total)
        try:
            for request in requests:
                ids, start = request.ids, request.start
                common = sum(
                    1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(held, ids, strict=False))
                )
                keep = min(common, start)
                session.rewind(keep)
                if start - keep >= _APART:
                    self._engine.step([session], [ids[keep:start]])
                    keep = start
                logits = self._engine.step_all(session, ids[keep:])[start - keep :]
                answers.append(self._answer(logits, request.continuation))
                held = ids
                done += len(ids)
                progress(stage, done, total)
        finally:
            session.close()
        return answers

    def _answer(self, logits: np.ndarray, continuation: Sequence[int]) -> Answer:
        """From logits (len(continuation), vocabulary)."""
        targets = np.array(continuation)
        top = logits.max(axis=1, keepdims=True)
        total = np.exp(logits - top).sum(axis=1, dtype=np.float64)
        logprobs = logits[np.arange(len(targets)), targets] - top[:, 0] - np.log(total)
        if not np.isfinite(logprobs).all():
            raise ProofError(f"the {self._name} model gave logits that are not finite: nothing was measured")
        return Answer(float(logprobs.sum()), bool((logits.argmax(axis=1) == targets).all()))

    def write(self, ids: Sequence[int], most: int, stop: Callable[[list[int]], bool]) -> list[int]:
        room = min(most, self.context - len(ids))
        session = self._engine.session(len(ids) + max(0, room))
        given, written = list(ids), []
        try:
            while len(written) < room and not (written and stop(written)):
                token = int(self._engine.step([session], [given])[0].argmax())
                if token in self.words.ends:
                    break
                written.append(token)
                given = [token]
        finally:
            session.close()
        return written
