"""Text from a `.sprat`: prompt in, pieces of text out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sprat.errors import RequestError
from sprat.run.engine import Engine, Session, open_engine
from sprat.run.sampling import Sampler, Sampling
from sprat.run.tokenizer import TextTokenizer, open_tokenizer

if TYPE_CHECKING:
    from sprat.coding.container import Artifact

#: Tokens of a prompt that one step takes: an interrupt need not wait for a long prompt's end.
PREFILL = 512


class Generation:
    """The tokens that a model writes behind `ids` in a session: iterate over it, then read how it went.

    finish: None until it is over; then "stop" (the model ended its text), "length" (`max_tokens`), "context"
    (the session is full) or "stopped" (from outside). read: tokens of the prompt that were computed. tokens:
    what was written. read_seconds: up to the first token; write_seconds: for the `steps` tokens behind it.
    """

    def __init__(
        self,
        engine: Engine,
        session: Session,
        ids: Sequence[int],
        sampler: Sampler,
        eos_ids: frozenset[int],
        max_tokens: int,
        context: int | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ):
        """context: tokens that the session can hold, default the engine's. stopped: asked between steps."""
        if max_tokens < 1:
            raise RequestError(f"max tokens must be at least 1, not {max_tokens}", "max_tokens")
        self.engine, self.session, self.ids = engine, session, list(ids)
        self.sampler, self.eos_ids, self.max_tokens = sampler, eos_ids, max_tokens
        self.context = engine.context if context is None else context
        self.stopped = stopped
        check_fits(session.length + len(self.ids), self.context)
        self._logits = np.empty(0, np.float32)
        self.finish: str | None = None
        self.tokens: list[int] = []
        self.read = self.steps = 0
        self.read_seconds = self.write_seconds = 0.0

    def __iter__(self) -> Iterator[int]:
        token = self._first()
        while token is not None and token not in self.eos_ids:
            self.tokens.append(token)
            yield token
            if len(self.tokens) == self.max_tokens:
                self.finish = "length"
            elif self.session.length == self.context:
                self.finish = "context"
            elif self.stopped():
                self.finish = "stopped"
            if self.finish:
                return
            started = time.perf_counter()
            token = self.sampler.draw(self.engine.step([self.session], [[token]])[0])
            self.write_seconds += time.perf_counter() - started
            self.steps += 1
        self.finish = "stopped" if token is None else "stop"

    def _first(self) -> int | None:
        """Read the prompt, in parts, and draw; None where it was stopped."""
        started = time.perf_counter()
        for at in range(0, len(self.ids), PREFILL):
            if self.stopped():
                return None
            part = self.ids[at : at + PREFILL]
            self._logits = self.engine.step([self.session], [part])[0]
            self.read += len(part)
        token = self.sampler.draw(self._logits)
        self.read_seconds = time.perf_counter() - started
        return token

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens behind the first; 0 where there are none."""
        return self.steps / self.write_seconds if self.write_seconds else 0.0


def generate(
    artifact: Artifact,
    prompt: str,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    chat: bool | None = None,
    engine: Engine | None = None,
    threads: int | None = None,
    context: int | None = None,
) -> Iterator[str]:
    """Stream what the model writes after `prompt`, at most `max_tokens` tokens.

    chat: answer the prompt as a user's message (True), continue it as text (False), or answer where the file
    has a chat template (None). sampling: default the likeliest token each time. engine: one that is open
    already; else one is opened with `threads` and `context`. `RequestError` where a setting is out of range
    or the prompt does not fit.
    """
    tokenizer = open_tokenizer(artifact)
    ids = prompt_ids(tokenizer, prompt, chat)
    if max_tokens < 1:
        raise RequestError(f"max tokens must be at least 1, not {max_tokens}", "max_tokens")
    if engine is None:
        engine = open_engine(artifact, threads, context)
    sampler = Sampler(sampling or Sampling(), ids)
    session = engine.session(context)
    try:
        going = Generation(engine, session, ids, sampler, tokenizer.eos_ids, max_tokens, context)
        yield from tokenizer.stream(ids, going)
    finally:
        session.close()


def prompt_ids(tokenizer: TextTokenizer, prompt: str, chat: bool | None = None) -> list[int]:
    """The tokens that a generation starts from; `RequestError` for a prompt of none."""
    if chat or (chat is None and tokenizer.chat_template is not None):
        ids = tokenizer.chat([{"role": "user", "content": prompt}])
    else:
        ids = tokenizer.encode(prompt)
    if not ids:
        raise RequestError("the prompt is empty: give the model at least one word to continue", "prompt")
    return ids


def check_fits(tokens: int, context: int) -> None:
    """`RequestError` unless `tokens` leave room for at least one more."""
    if tokens >= context:
        raise RequestError(
            f"the text has {tokens} tokens, and the context holds {context}, the answer included: "
            "shorten the text, or open the model with a larger --context",
            "context",
        )
