"""What a request may say. Unknown fields are refused, as a misspelt one would otherwise be ignored silently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sprat.errors import nearest
from sprat.run.serve.errors import ApiError, invalid

#: OpenAI's fields that change nothing here: they are about accounts, caches and tools of a larger service.
IGNORED = {
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "reasoning_effort",
    "safety_identifier", "service_tier", "store", "verbosity",
}  # fmt: skip
#: OpenAI's fields that would change the answer and are not served -> values that ask for nothing.
UNSERVED: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prediction": (None,),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "web_search_options": (None,),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class StreamOptions(_Strict):
    """Of a stream: whether a last chunk tells the tokens used."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Text = Annotated[str, Field(max_length=4_000_000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Request(_Strict):
    """What both kinds of completion share."""

    model: str | None = None  #: the one model answers to any name
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    user: str | None = None
    # Not in OpenAI's API; other servers of local models call them so too.
    top_k: int | None = Field(None, ge=0, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)

    @property
    def limit(self) -> int | None:
        """Tokens that the answer may have, if it says."""
        return self.max_tokens

    @property
    def top(self) -> int | None:
        """Alternatives to report the log-probabilities of; None for no log-probabilities."""
        return None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(Request):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=128)]
        | Annotated[list[TokenId], Field(min_length=1, max_length=4_000_000)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=128)]
    )
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def top(self) -> int | None:
        return self.logprobs


class TextPart(_Strict):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: str | None = None
    # What an answer of OpenAI's may have beside its text, and clients send back with it: nothing, or it is refused.
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Request):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def limit(self) -> int | None:
        given = [x for x in (self.max_tokens, self.max_completion_tokens) if x is not None]
        return min(given, default=None)

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


R = TypeVar("R", bound=Request)


def parse(kind: type[R], body: Any) -> R:
    """The request in a JSON body; `ApiError` 400 names the first field that is wrong."""
    if not isinstance(body, dict):
        raise invalid("the body must be a JSON object")
    rest = {}
    for name, value in body.items():
        if name in kind.model_fields:
            rest[name] = value
        elif name in UNSERVED:
            if not any(value == fine and type(value) is type(fine) for fine in UNSERVED[name]):
                raise invalid(f"{name} is not supported by this server: leave it out", name, "unsupported")
        elif name not in IGNORED:
            raise invalid(
                f"unknown field {name!r}{nearest(name, kind.model_fields)}", name[:100], "unknown_field"
            )
    try:
        made = kind.model_validate(rest)
    except ValidationError as error:
        raise _refusal(error, rest) from None
    if isinstance(made, ChatRequest) and made.top_logprobs is not None and not made.logprobs:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    if made.stream_options is not None and not made.stream:
        raise invalid("stream_options needs stream: true", "stream_options")
    return made


def _refusal(error: ValidationError, body: Mapping[str, Any]) -> ApiError:
    """The complaint that lies deepest: of alternatives (a text or a list), it is of the one that was meant."""
    complaints = error.errors(include_url=False, include_context=False)
    for complaint in complaints:
        for at, part in enumerate(place := complaint["loc"]):
            # A text that is missing beside a call of tools is no news.
            if place[0] == "messages" and part in _ABSENT:
                shown = ".".join(str(step) for step in place[: at + 1])
                return invalid(f"{shown} is not supported by this server: leave it out", shown, "unsupported")
    place = complaints[0]["loc"]
    if place and isinstance(body.get(str(place[0])), list | dict):
        chosen = max(complaints, key=lambda c: (len(c["loc"]), c["type"] not in ("string_type", "list_type")))
    else:
        chosen = complaints[0]
    # In between pydantic names the alternatives: no part of what the client wrote. A field that nobody knows is, and
    # stands last.
    first, *inner = chosen["loc"] or ("the body",)
    unknown = inner and chosen["type"] == "extra_forbidden"
    names = [str(first), *(str(part) for part in inner if isinstance(part, int) or part in _WRITTEN)]
    if unknown and inner[-1] not in _WRITTEN:
        names.append(str(inner[-1]))
    shown = ".".join(names)[:100]
    text = f"unknown field{nearest(str(inner[-1]), _WRITTEN)}" if unknown else chosen["msg"]
    return invalid(f"{shown}: {text}", shown if chosen["loc"] else None)


#: What a message may have in OpenAI's API and not here.
_ABSENT = ("annotations", "audio", "function_call", "tool_calls")
#: The names of fields within fields.
_WRITTEN = {*StreamOptions.model_fields, *ChatMessage.model_fields, *TextPart.model_fields}
