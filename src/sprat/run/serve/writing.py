"""The tokens of a choice become text: characters made whole, stop strings found, log-probabilities kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sprat.run.sampling import largest, log_softmax
from sprat.run.tokenizer import Pieces, TextTokenizer

#: What an impossible token's log-probability is written as: JSON has no infinity.
FLOOR = -9999.0


@dataclass(frozen=True)
class TokenLogprob:
    """A written token, what the model gave it, and the likeliest at its place; nats."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    offset: int  #: characters of the answer in front of it


@dataclass(frozen=True)
class Piece:
    """Text that is safe to show, and the log-probabilities of the tokens that begin in it."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class Writer:
    """Collects one choice's text. What may turn out to be the beginning of a stop string is held back."""

    def __init__(
        self, tokenizer: TextTokenizer, prompt: Sequence[int], stops: Sequence[str], top: int | None
    ):
        """top: how many alternatives to report; None for no log-probabilities."""
        self._pieces = Pieces(tokenizer, prompt)
        self._stops, self._top = tuple(stops), top
        self._held = ""
        self._shown = 0  # characters that were let go
        self._waiting: list[TokenLogprob] = []
        self.stopped = False

    def push(self, token: int, logits: np.ndarray) -> Piece:
        """What `token`, drawn from `logits`, lets go. Sets `stopped` where it completes a stop string."""
        if self._top is not None:
            self._waiting.append(self._scored(token, logits))
        return self._grow(self._pieces.push(token))

    def end(self) -> Piece:
        """What is left when the model ends, or was cut."""
        last = self._grow(self._pieces.rest())
        if self.stopped:
            return last
        rest = self._release(len(self._held), everything=True)
        return Piece(last.text + rest.text, last.logprobs + rest.logprobs)

    def _grow(self, text: str) -> Piece:
        if not text:
            return Piece("")
        self._held += text
        if found := [at for stop in self._stops if (at := self._held.find(stop)) >= 0]:
            self.stopped = True
            return self._release(min(found))
        return self._release(len(self._held) - beginning(self._held, self._stops))

    def _release(self, count: int, everything: bool = False) -> Piece:
        text, self._held = self._held[:count], self._held[count:]
        self._shown += count
        known = [x for x in self._waiting if everything or x.offset < self._shown]
        self._waiting = self._waiting[len(known) :]
        return Piece(text, tuple(known))

    def _scored(self, token: int, logits: np.ndarray) -> TokenLogprob:
        logprobs = np.maximum(log_softmax(logits), FLOOR)
        best = largest(logprobs, self._top) if self._top else []
        top = tuple((int(i), float(logprobs[i])) for i in best)
        return TokenLogprob(token, float(logprobs[token]), top, self._shown + len(self._held))


def beginning(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of `text` that a stop string may begin with: the longest such end."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0
