"""What is sent back: OpenAI's objects, whole or in parts."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sprat.run.serve.scheduler import Choice
from sprat.run.serve.writing import TokenLogprob
from sprat.run.tokenizer import TextTokenizer


def to_json(value: Any) -> str:
    """ASCII, so that nothing in a text can break a line of an event stream or fail to encode."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def usage(choices: Sequence[Choice], count: int) -> dict[str, Any]:
    """Tokens read and written; of `count` choices a prompt, one counts for it."""
    read = sum(len(choice.ids) for choice in choices[::count])
    written = sum(len(choice.tokens) for choice in choices)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": sum(choice.reused for choice in choices[::count])},
    }


@dataclass
class Reply:
    """The shape of one request's answer."""

    chat: bool
    model: str
    tokenizer: TextTokenizer
    logprobs: bool
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)

    def whole(
        self, texts: Sequence[tuple[str, Sequence[TokenLogprob], str]], used: dict[str, Any]
    ) -> dict[str, Any]:
        """texts: (text, log-probabilities, why it ended) of each choice."""
        choices = []
        for index, (text, logprobs, finish) in enumerate(texts):
            said = {"role": "assistant", "content": text, "refusal": None}
            choices.append(
                {"index": index}
                | ({"message": said} if self.chat else {"text": text})
                | {"logprobs": self._logprobs(logprobs), "finish_reason": finish}
            )
        return self._head("chat.completion" if self.chat else "text_completion", choices) | {"usage": used}

    def first(self, index: int) -> dict[str, Any]:
        """A chat choice begins: whose words these are."""
        return self._part(index, {"role": "assistant", "content": ""}, None, None)

    def part(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob], finish: str | None
    ) -> dict[str, Any]:
        known = self._logprobs(logprobs) if logprobs else None
        if not self.chat:
            return self._head(
                "text_completion",
                [{"index": index, "text": text, "logprobs": known, "finish_reason": finish}],
            )
        return self._part(index, {"content": text} if text or logprobs or not finish else {}, known, finish)

    def last(self, used: dict[str, Any]) -> dict[str, Any]:
        """The part that only tells the usage."""
        return self._head("chat.completion.chunk" if self.chat else "text_completion", []) | {"usage": used}

    def _part(self, index: int, delta: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._head("chat.completion.chunk", [choice])

    def _head(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _logprobs(self, found: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        name = self.tokenizer.token_text
        if not self.chat:
            return {
                "tokens": [self._key(x.token) for x in found],
                "token_logprobs": [x.logprob for x in found],
                # Of two tokens that are written alike the likelier stays.
                "top_logprobs": [{self._key(t): value for t, value in reversed(x.top)} for x in found],
                "text_offset": [x.offset for x in found],
            }

        def one(token: int, logprob: float) -> dict[str, Any]:
            return {
                "token": name(token),
                "logprob": logprob,
                "bytes": list(self.tokenizer.token_bytes(token)),
            }

        content = [one(x.token, x.logprob) | {"top_logprobs": [one(*t) for t in x.top]} for x in found]
        return {"content": content, "refusal": None}

    def _key(self, token: int) -> str:
        """A token as completions name it: parts of a character by their bytes."""
        text = self.tokenizer.token_text(token)
        if "�" not in text:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.tokenizer.token_bytes(token))
