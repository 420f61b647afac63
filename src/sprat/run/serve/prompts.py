"""A request becomes choices: its text as tokens, its limits checked, its sampling settled."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from sprat.errors import SpratError
from sprat.run.sampling import Sampler, Sampling
from sprat.run.serve.errors import ApiError, invalid
from sprat.run.serve.scheduler import Choice
from sprat.run.serve.schema import ChatRequest, CompletionRequest, Request
from sprat.run.serve.writing import Writer
from sprat.run.tokenizer import TextTokenizer

#: OpenAI's default length of a text completion.
COMPLETION_TOKENS = 16


@dataclass(frozen=True)
class Limits:
    """What the server allows."""

    context: int  #: tokens of a text, the answer included
    max_tokens: int | None  #: tokens of an answer; None: as the context goes
    choices: int  #: texts that one request may ask for
    seconds: float  #: from the request's arrival to its end

    @property
    def body(self) -> int:
        """Bytes of a request: more than a text that fits can have. Reading a text takes a hundred times its size."""
        return (256 << 10) + 64 * self.context


def choices(asked: Request, tokenizer: TextTokenizer, vocabulary: int, limits: Limits) -> list[Choice]:
    """The texts to write, prompt by prompt; `ApiError` 400 for what cannot be."""
    prompts = _prompts(asked, tokenizer, vocabulary)
    count = asked.n or 1
    if len(prompts) * count > limits.choices:
        raise invalid(
            f"{len(prompts) * count} answers at once; this server allows {limits.choices}", "n", "too_many"
        )
    if asked.limit is not None and limits.max_tokens is not None and asked.limit > limits.max_tokens:
        raise invalid(
            f"max_tokens is {asked.limit}; this server allows {limits.max_tokens}", "max_tokens", "too_many"
        )
    default = COMPLETION_TOKENS if isinstance(asked, CompletionRequest) else limits.context
    longest = asked.limit or min(default, limits.max_tokens or default)
    seed = secrets.randbits(63) if asked.seed is None else asked.seed % 2**64
    out = []
    for ids in prompts:
        if not ids:
            raise invalid("the prompt is empty", "prompt", "empty")
        if len(ids) >= limits.context:
            raise invalid(
                f"the text has {len(ids)} tokens; the context holds {limits.context}, the answer included",
                "messages" if isinstance(asked, ChatRequest) else "prompt",
                "context_length_exceeded",
            )
        for _ in range(count):
            sampler = Sampler(_sampling(asked, seed, len(out)), ids)
            writer = Writer(tokenizer, ids, asked.stops, asked.top)
            out.append(Choice(len(out), list(ids), sampler, writer, longest))
    return out


def _prompts(asked: Request, tokenizer: TextTokenizer, vocabulary: int) -> list[list[int]]:
    place = "messages" if isinstance(asked, ChatRequest) else "prompt"
    try:
        if isinstance(asked, ChatRequest):
            roles = {"developer": "system"}
            messages = [{"role": roles.get(m.role, m.role), "content": m.text} for m in asked.messages]
            found = [tokenizer.chat(messages)]
        else:
            assert isinstance(asked, CompletionRequest)
            prompt = asked.prompt
            given = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
            found = [tokenizer.encode(p) if isinstance(p, str) else list(p) for p in given]  # type: ignore[arg-type]
    except SpratError as error:
        raise invalid(str(error), place) from error
    # A tokenizer may know tokens that the model has no row for: one of them would fail a whole batch.
    for ids in found:
        if ids and max(ids) >= vocabulary:
            raise invalid(f"token {max(ids)} is outside the vocabulary of {vocabulary}", place)
    return found


def _sampling(asked: Request, seed: int, choice: int) -> Sampling:
    try:
        bias = {int(token): value for token, value in (asked.logit_bias or {}).items()}
    except ValueError:
        raise invalid("logit_bias maps token ids to numbers", "logit_bias") from None

    def given(value: float | None, default: float) -> float:
        return default if value is None else value

    try:
        return Sampling(
            temperature=given(asked.temperature, 1.0),
            top_k=asked.top_k or 0,
            top_p=given(asked.top_p, 1.0),
            min_p=given(asked.min_p, 0.0),
            repetition_penalty=given(asked.repetition_penalty, 1.0),
            presence_penalty=given(asked.presence_penalty, 0.0),
            frequency_penalty=given(asked.frequency_penalty, 0.0),
            bias=bias,
            seed=[seed, choice] if choice else seed,
        )
    except SpratError as error:
        raise ApiError(400, str(error)) from error
