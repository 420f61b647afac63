"""A conversation: its messages, what of them the session already holds, and the answers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sprat.errors import RequestError
from sprat.folders import write_whole
from sprat.run.engine import Engine
from sprat.run.generate import Generation, check_fits
from sprat.run.sampling import Sampler, Sampling
from sprat.run.tokenizer import Message, TextTokenizer

#: An answer gets at least this share of the context: older turns make room for it.
ANSWER_SHARE = 8


@dataclass
class Stats:
    """What a conversation cost so far."""

    answers: int = 0
    read_tokens: int = 0  #: tokens that were computed before answers
    reused_tokens: int = 0  #: tokens that an answer needed and the session still had
    written_tokens: int = 0
    steps: int = 0  #: tokens behind each answer's first, and what they took:
    read_seconds: float = 0.0
    write_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.steps / self.write_seconds if self.write_seconds else 0.0

    @property
    def read_per_second(self) -> float:
        return self.read_tokens / self.read_seconds if self.read_seconds else 0.0


class Answer:
    """One answer under way: iterate for its text. What was said stays in the conversation, however it ends.

    dropped: turns (a message and its answer) that had to be forgotten to make room.
    """

    def __init__(self, conversation: Conversation, prompt: list[int], generation: Generation, dropped: int):
        self._conversation, self.prompt = conversation, prompt
        self.generation, self.dropped = generation, dropped
        self.text = ""

    def __iter__(self) -> Iterator[str]:
        conversation = self._conversation
        try:
            for piece in conversation.tokenizer.stream(self.prompt, self.generation):
                self.text += piece
                yield piece
        finally:
            conversation.end(self)


class Conversation:
    """Messages and a session that keeps what they have in common with the turn before."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: TextTokenizer,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        context: int | None = None,
        system: str | None = None,
    ):
        """max_tokens: of one answer; None is as long as the context goes. `RequestError` for a file without a
        chat template."""
        if tokenizer.chat_template is None:
            raise RequestError(
                "this model has no chat template: let it continue a text with `sprat run FILE PROMPT --raw`"
            )
        self.engine, self.tokenizer = engine, tokenizer
        self.sampling, self.max_tokens = sampling or Sampling(), max_tokens
        self.context = engine.context if context is None else context
        self.session = engine.session(self.context)
        self.system = system
        self.messages: list[Message] = []
        self.held: list[int] = []  #: the tokens in the session
        self.stats = Stats()
        self.reset()

    def reset(self) -> None:
        """Forget what was said; the system message stays."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def ask(self, text: str, stopped: Callable[[], bool] = lambda: False) -> Answer:
        """Say `text` and begin the answer; `stopped` is asked between tokens.

        Where the context is too small for all, the oldest turns go, and the answer says how many. A message that
        does not fit alone is refused with `RequestError` and not kept.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        start, dropped = (0 if self.system is None else 1), 0
        ids = self.tokenizer.chat(messages)
        while len(ids) + self.context // ANSWER_SHARE >= self.context and len(messages) > start + 1:
            del messages[start : start + 2]
            dropped += 1
            ids = self.tokenizer.chat(messages)
        check_fits(len(ids), self.context)
        reused = common(self.held, ids)
        self.session.rewind(reused)
        self.held = self.held[:reused]
        seed = self.sampling.seed
        seeds = [seed, self.stats.answers] if isinstance(seed, int) else [*seed, self.stats.answers]
        going = Generation(
            self.engine,
            self.session,
            ids[reused:],
            Sampler(replace(self.sampling, seed=seeds), ids),
            self.tokenizer.eos_ids,
            self.max_tokens or self.context,
            self.context,
            stopped,
        )
        self.messages = messages
        self.stats.reused_tokens += reused
        return Answer(self, ids, going, dropped)

    def end(self, answer: Answer) -> None:
        """An answer is over: keep its text; a question that got none is taken back."""
        going = answer.generation
        self.held = (answer.prompt + going.tokens)[: self.session.length]
        if answer.text or going.finish == "stop":
            self.messages.append({"role": "assistant", "content": answer.text})
        else:
            self.messages.pop()
        self.stats.answers += 1
        self.stats.read_tokens += going.read
        self.stats.written_tokens += len(going.tokens)
        self.stats.steps += going.steps
        self.stats.read_seconds += going.read_seconds
        self.stats.write_seconds += going.write_seconds

    def save(self, path: str | os.PathLike[str], model: str) -> None:
        """Write the messages, settings and figures as JSON; `SpratError` where that fails."""
        said = {
            "schema": "sprat.chat/1",
            "model": model,
            "messages": self.messages,
            "sampling": asdict(self.sampling),
            "stats": asdict(self.stats),
        }
        text = json.dumps(said, indent=2, ensure_ascii=False) + "\n"
        write_whole(Path(path), text)

    def close(self) -> None:
        self.session.close()


def common(held: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens of `ids` need not be computed again: what both begin with, but never all of `ids`."""
    longest = min(len(held), len(ids) - 1)
    return next((i for i in range(longest) if held[i] != ids[i]), longest)
