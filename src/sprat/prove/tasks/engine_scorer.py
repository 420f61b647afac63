"""A `.sprat`'s engine that answers requests: several at once, and a context that neighbours share read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, zip_longest
from typing import Any

import numpy as np

from sprat.errors import ProofError
from sprat.progress import Progress, silent
from sprat.prove.tasks.requests import Answer, Request, Words
from sprat.run.engine import Engine

#: Texts read side by side, and tokens of them whose logits are held at once.
_LANES, _TOKENS = 4, 256
#: A context of so many tokens is a step of its own, which its continuations share and which spares its logits.
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
        total, done = sum(len(request.ids) for request in requests), 0
        longest = max(len(request.ids) for request in requests)
        lanes = [self._engine.session(longest) for _ in range(min(_LANES, len(requests)))]
        answers: dict[int, Answer] = {}
        progress(stage, 0, total)
        try:
            for groups in self._side_by_side(requests):
                self._read_contexts(lanes, [requests[group[0]].context for group in groups])
                # Each group's first request, then each one's second, …
                for turn in zip_longest(*groups):
                    now = [(lane, i) for lane, i in zip(lanes, turn, strict=False) if i is not None]
                    found = self._answers([lane for lane, _ in now], [requests[i] for _, i in now])
                    answers.update(zip((i for _, i in now), found, strict=True))
                    done += sum(len(requests[i].ids) for _, i in now)
                    progress(stage, done, total)
        finally:
            for lane in lanes:
                lane.close()
        return [answers[i] for i in range(len(requests))]

    def _side_by_side(self, requests: Sequence[Request]) -> Iterator[list[list[int]]]:
        """Groups of neighbours with one context, by number, as many as may be read side by side."""
        groups: list[list[int]] = []
        tokens = 0
        for _, members in groupby(range(len(requests)), lambda i: requests[i].context):
            group = list(members)
            more = max(_logits(requests[i]) for i in group)
            if groups and (len(groups) == _LANES or tokens + more > _TOKENS):
                yield groups
                groups, tokens = [], 0
            groups.append(group)
            tokens += more
        yield groups

    def _read_contexts(self, lanes: Sequence[Any], contexts: Sequence[Sequence[int]]) -> None:
        """Leave in each lane what its requests have in common and no logits are wanted of, if it is much."""
        for lane in lanes:
            lane.rewind(0)
        long = [(lane, ids[:-1]) for lane, ids in zip(lanes, contexts, strict=False) if len(ids) > _APART]
        if long:
            self._engine.step([lane for lane, _ in long], [ids for _, ids in long])

    def _answers(self, lanes: Sequence[Any], requests: Sequence[Request]) -> list[Answer]:
        """One request a lane, behind what the lane holds of its context."""
        answers = [Answer(0.0, True)] * len(requests)
        rest = []
        for lane, request in zip(lanes, requests, strict=True):
            lane.rewind(request.start if len(request.context) > _APART else 0)
            rest.append(request.ids[lane.length :])
        for at in range(0, max(map(len, rest)), _TOKENS):  # more than once only where there is one lane
            rows = self._engine.step_all(lanes, [ids[at : at + _TOKENS] for ids in rest])
            for i, (logits, request) in enumerate(zip(rows, requests, strict=True)):
                text = request.context + request.continuation
                first = len(text) - 1 - len(rest[i]) + at  # the token behind which the first row stands
                skip = min(len(logits), max(0, request.start - first))
                part = self._answer(logits[skip:], text[first + skip + 1 : first + len(logits) + 1])
                answers[i] = Answer(answers[i].logprob + part.logprob, answers[i].greedy and part.greedy)
        return answers

    def _answer(self, logits: np.ndarray, continuation: Sequence[int]) -> Answer:
        """From logits (len(continuation), vocabulary)."""
        targets = np.array(continuation, np.int64)
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


def _logits(request: Request) -> int:
    """Tokens of a request whose logits are computed: not those of a context that is read apart."""
    return len(request.ids) - (request.start if len(request.context) > _APART else 0)
