"""The tokenizer inside a `.sprat`, with its chat template: `tokenizers` and jinja2, no transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from tokenizers import Tokenizer

from sprat import _core
from sprat.coding.tokenizer import unpack, unpack_parsed
from sprat.errors import FormatError, RequestError, SourceError
from sprat.run.backend import build
from sprat.run.template import render

if TYPE_CHECKING:
    from sprat.coding.container import Artifact

#: A chat message: {"role": "user" | "assistant" | "system", "content": text}.
Message = dict[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class TextTokenizer:
    """Text to tokens and back, for one model."""

    backend: Tokenizer
    chat_template: str | None = None
    special: dict[str, str] = field(default_factory=dict)
    eos_ids: frozenset[int] = frozenset()

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids; `special` adds what the model expects around a text (a beginning-of-text token, say).

        `RequestError` for what is no text: bytes that were no UTF-8 come from a terminal as half surrogate pairs.
        """
        try:
            return self.backend.encode(text, add_special_tokens=special).ids
        except TypeError:
            half = next(c for c in text if "\ud800" <= c <= "\udfff")
            raise RequestError(f"the text is not UTF-8: it holds {half!a}", "prompt") from None

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def prefix(self) -> list[int]:
        """The special tokens that the model expects before a text."""
        plain, full = self.encode("a", special=False), self.encode("a")
        for start in range(len(full) - len(plain) + 1):
            if full[start : start + len(plain)] == plain:
                return full[:start]
        return []

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation, up to where the model's answer begins."""
        if self.chat_template is None:
            raise SourceError("this model has no chat template: give it a text to continue")
        text = render(self.chat_template, messages, self.special)
        return self.encode(text, special=False)

    def stream(self, prompt: Sequence[int], ids: Iterable[int]) -> Iterator[str]:
        """The text of `ids` as it comes, each piece as soon as its characters are whole."""
        pieces = Pieces(self, prompt)
        for token in ids:
            if piece := pieces.push(token):
                yield piece
        if piece := pieces.rest():
            yield piece

    def token_text(self, token: int) -> str:
        """What a token is called where it stands alone (in log-probabilities): special tokens by their name."""
        name = self.backend.id_to_token(token) or ""
        if name.startswith("▁"):  # decoding would drop the space before a word
            return name.replace("▁", " ")
        return self.backend.decode([token], skip_special_tokens=False) or name

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; a part of a character is what it is only here."""
        text = self.token_text(token)
        if "�" not in text:
            return text.encode()
        name = self.backend.id_to_token(token) or ""
        if match := re.fullmatch(r"<0x([0-9A-F]{2})>", name):
            return bytes([int(match[1], 16)])
        letters = _byte_letters()
        return bytes(letters[c] for c in name) if all(c in letters for c in name) else text.encode()


class Pieces:
    """Tokens in, text out, each piece as soon as its characters are whole.

    Tokens may hold parts of a character, and spaces depend on what stands before, so a piece is what
    decoding gains with the last tokens in front of it.
    """

    #: Tokens kept in front. A character has at most 4 bytes: what waits longer is no character, and is let go.
    FRONT, PATIENCE = 4, 8

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int] = ()):
        self._decode = tokenizer.decode
        self._window = list(prompt[-self.FRONT :])
        self._shown = self._decode(self._window)

    def push(self, token: int) -> str:
        """The text that `token` completes, often none."""
        self._window.append(token)
        text = self._decode(self._window)
        waiting = len(self._window) > self.FRONT + self.PATIENCE
        # Special tokens have no text: many of them are not decoded again each time.
        if waiting and text == self._shown:
            self._window.pop()
            return ""
        whole = waiting or not text.endswith("�")
        if len(text) <= len(self._shown) or not whole:
            return ""
        piece = text[len(self._shown) :]
        self._window = self._window[-self.FRONT :]
        self._shown = self._decode(self._window)
        return piece

    def rest(self) -> str:
        """What is left at the end: a character that never became whole."""
        return self._decode(self._window)[len(self._shown) :]


@cache
def _byte_letters() -> dict[str, int]:
    """The letters that byte-level tokenizers write bytes with (GPT-2, Radford et al. 2019): printable Latin-1
    characters stand for themselves, the other bytes for U+0100 and on, in order."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(others)}


def open_tokenizer(artifact: Artifact) -> TextTokenizer:
    """The tokenizer of a file, with the ids that end a text."""
    made = from_files(_files(artifact, unpack_parsed), artifact.config)
    _core.trim_memory()
    return made


def tokenizer_files(artifact: Artifact) -> dict[str, bytes]:
    """The tokenizer as the original had it: tokenizer.json and what stands beside it."""
    return _files(artifact, unpack)


def _files(artifact: Artifact, unpacked: Callable[[bytes], T]) -> dict[str, bytes] | T:
    files = artifact.tokenizer
    if "tokenizer.json" in files:
        return files
    if "packed" not in files:
        raise FormatError("section 'tokenizer': the file holds no tokenizer")
    return unpacked(files["packed"])


def from_files(files: Mapping[str, bytes | dict[str, Any]], config: dict[str, Any]) -> TextTokenizer:
    """From tokenizer.json (bytes, or parsed) and what stands beside it (chat_template.jinja, …)."""
    if "tokenizer.json" not in files:
        raise FormatError("section 'tokenizer': no tokenizer.json in it")
    whole = files["tokenizer.json"]
    rest = {name: part for name, part in files.items() if isinstance(part, bytes)}
    try:
        backend = Tokenizer.from_str(whole.decode()) if isinstance(whole, bytes) else build(whole)
        settings = _json(rest, "tokenizer_config.json")
        generation = _json(rest, "generation_config.json")
    except Exception as error:  # tokenizers raises a bare Exception
        raise FormatError(f"section 'tokenizer': {error}") from error
    # Whoever wrote the tokenizer may have left its training-time settings on.
    backend.no_truncation()
    backend.no_padding()
    special = {
        name: _token(value) for name, value in settings.items() if name.endswith("_token") and _token(value)
    }
    ends = {backend.token_to_id(special["eos_token"])} if "eos_token" in special else set()
    for source in (config, generation):
        value = source.get("eos_token_id")
        ends |= {i for i in (value if isinstance(value, list) else [value]) if type(i) is int}
    return TextTokenizer(
        backend, _template(rest, settings), special, frozenset(i for i in ends if i is not None)
    )


def _template(files: Mapping[str, bytes], settings: dict[str, Any]) -> str | None:
    """The chat template: a file of its own, or a setting; of several with names the one called "default"."""
    found: Any = settings.get("chat_template")
    if "chat_template.jinja" in files:
        try:
            found = files["chat_template.jinja"].decode()
        except UnicodeDecodeError:
            raise FormatError("section 'tokenizer': chat_template.jinja is no UTF-8") from None
    if isinstance(found, list):
        named = [t for t in found if isinstance(t, dict) and t.get("name") == "default"]
        found = named[0].get("template") if named else None
    if found is not None and not isinstance(found, str):
        raise FormatError("section 'tokenizer': the chat template is no text")
    return found


def _json(files: dict[str, bytes], name: str) -> dict[str, Any]:
    value = json.loads(files[name]) if name in files else {}
    return value if isinstance(value, dict) else {}


def _token(value: Any) -> str:
    """A special token is written as a string or as {"content": string, ...}."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""
