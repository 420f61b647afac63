"""What is asked of a model, in tokens, and how its answers are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sprat.errors import ProofError
from sprat.progress import Progress, silent

if TYPE_CHECKING:
    from sprat.run.tokenizer import TextTokenizer

#: encode(text, special) -> token ids; `special` adds what the model expects around a text
Encode = Callable[[str, bool], list[int]]


class Request(NamedTuple):
    """How likely is `continuation` behind `context`? Both in tokens, both at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """What the model reads: everything but the last token."""
        return (self.context + self.continuation)[:-1]

    @property
    def start(self) -> int:
        """Of the logits behind `ids`, where those of the continuation begin."""
        return len(self.context) - 1


class Answer(NamedTuple):
    """log p(continuation | context) in nats, and whether each of its tokens is the likeliest."""

    logprob: float
    greedy: bool


class Scorer(Protocol):
    """A model that answers requests."""

    context: int  #: tokens that it can read at once
    words: Words

    def score(
        self, requests: Sequence[Request], stage: str = "reading questions", progress: Progress = silent
    ) -> list[Answer]:
        """An answer to each request, in order; `ProofError` where logits are not finite."""
        ...

    def write(self, ids: Sequence[int], most: int, stop: Callable[[list[int]], bool]) -> list[int]:
        """The likeliest continuation: until `stop(tokens so far)`, `most` tokens, or no room is left."""
        ...


@dataclass(frozen=True)
class Words:
    """A model's tokenizer, as far as requests need it."""

    encode: Encode
    decode: Callable[[Sequence[int]], str]
    opening: int | None
    """The token in front of a text that has no context: what begins a text, else what ends one."""
    ends: frozenset[int]
    """The tokens that end a text."""

    def request(self, context: str, continuation: str, limit: int) -> Request:
        """As lm-evaluation-harness cuts it: spaces at the context's end belong to the continuation, which is
        what the whole text's tokens have behind the context's own. What exceeds the model's `limit` is cut off
        at the left."""
        if not context:
            tokens = self.encode(continuation, False)
            front, tokens = (
                ([self.begin()], tokens) if tokens[:1] != [self.opening] else (tokens[:1], tokens[1:])
            )
        else:
            bare = context.rstrip()
            front, whole = self.encode(bare, True), self.encode(context + continuation, True)
            tokens = whole[len(front) :]
            front = front or [self.begin()]
        if not tokens:
            raise ProofError(
                f"{continuation!r} behind {context[-40:]!r} is no token of its own: it cannot be scored"
            )
        if len(tokens) > limit:
            raise ProofError(
                f"an answer of {len(tokens)} tokens does not fit into the model's context of {limit}"
            )
        return Request(tuple(front[-(limit + 1 - len(tokens)) :]), tuple(tokens))

    def begin(self) -> int:
        """`opening`; `ProofError` where there is none."""
        if self.opening is None:
            raise ProofError(
                "this model's tokenizer names no token that begins or ends a text: give every question a context"
            )
        return self.opening


def words(tokenizer: TextTokenizer) -> Words:
    """Of the tokenizer inside a `.sprat`."""
    named = (tokenizer.special.get(name) for name in ("bos_token", "eos_token"))
    known = (tokenizer.backend.token_to_id(token) for token in named if token)
    return Words(
        tokenizer.encode,
        tokenizer.decode,
        next((token for token in known if token is not None), None),
        tokenizer.eos_ids,
    )


def words_of_transformers(tokenizer: Any) -> Words:
    """Of a tokenizer of transformers."""
    named = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None]
    return Words(
        lambda text, special: list(tokenizer(text, add_special_tokens=special)["input_ids"]),
        lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True),
        next(iter(named), None),
        frozenset(named[-1:]),
    )
