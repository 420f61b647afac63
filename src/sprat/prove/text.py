"""Evaluation text cut into contexts, with the exact bytes that each context's scored tokens stand for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sprat.errors import ProofError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: An excerpt this many characters a token long holds the tokens that are asked for in every common script.
_CHARACTERS_A_TOKEN = 12


@dataclass(frozen=True)
class Text:
    """A text as read: its content, where it came from, and its hash."""

    content: str
    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Contexts:
    """Windows of tokens over which two models are compared.

    ids: (contexts, length) int64, each row `prefix` special tokens and then text;
    bytes_scored: (contexts,) UTF-8 bytes of the text that positions skip+1 .. length-1 stand for.
    """

    ids: np.ndarray
    bytes_scored: np.ndarray
    skip: int

    @property
    def scored(self) -> int:
        """Scored tokens a context: the logits at skip .. length-2 predict the tokens skip+1 .. length-1."""
        return self.ids.shape[1] - 1 - self.skip


def read(text: str | Path) -> Text:
    """Read a UTF-8 text file; `ProofError` where it is missing, empty or in another encoding."""
    path = Path(text)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ProofError(f"there is no text file {str(path)!r}") from None
    except OSError as error:
        raise ProofError(f"cannot read the text {str(path)!r}: {error.strerror or error}") from None
    try:
        content = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProofError(
            f"{path} is not UTF-8 text: byte 0x{raw[error.start]:02x} at offset {error.start}; "
            f"convert it first, e.g. iconv -f latin1 -t utf-8"
        ) from None
    if not content.strip():
        raise ProofError(f"{path} is empty: a proof needs text")
    return Text(content, str(path), len(raw), hashlib.sha256(raw).hexdigest())


def excerpts(content: str, count: int, length: int) -> list[str]:
    """The whole text when `count` contexts of `length` tokens could use it, else evenly spread pieces of it.

    A piece starts after a line or word break, so that no context starts inside a word.
    """
    size = length * _CHARACTERS_A_TOKEN
    if len(content) <= 2 * count * size:
        return [content]
    pieces = []
    for start in np.linspace(0, len(content) - size, count).astype(int).tolist():
        line, word = content.find("\n", start, start + size // 4), content.find(" ", start, start + size // 4)
        cut = max(line, word) if line < 0 or word < 0 else line
        pieces.append(content[(cut if cut >= 0 and start else start) : start + size])
    return pieces


def cut(
    tokenizer: Tokenizer, text: Text, *, length: int, skip: int, tokens: int, prefix: Sequence[int] = ()
) -> Contexts:
    """At most tokens // length contexts of `length` tokens, spread evenly over the text.

    `prefix`: special tokens that open every context, as the model expects. Raises `ProofError` for a text
    that is too short for one context.
    """
    count = max(1, tokens // length)
    windows: list[tuple[list[int], int]] = []
    found = 0
    for piece in excerpts(text.content, count, length):
        encoding = tokenizer.encode(piece, add_special_tokens=False)
        found += len(encoding.ids)
        windows.extend(
            _windows(piece, encoding.ids, encoding.offsets, length - len(prefix), skip - len(prefix))
        )
    if not windows:
        raise ProofError(
            f"{text.name} is too short: it has {found} tokens and one context needs {length - len(prefix)}; "
            f"give more text or a smaller context"
        )
    chosen = np.unique(
        np.linspace(0, len(windows) - 1, min(count, len(windows))).round().astype(int)
    ).tolist()
    ids = np.array([[*prefix, *windows[i][0]] for i in chosen], np.int64)
    return Contexts(ids, np.array([windows[i][1] for i in chosen], np.int64), skip)


def _windows(
    piece: str, ids: list[int], offsets: Sequence[tuple[int, int]], length: int, skip: int
) -> Iterator[tuple[list[int], int]]:
    """Consecutive windows of `length` tokens whose scored span starts and ends between characters.

    Byte-level tokens can hold part of a character, and then share its offsets; a span that starts or ends
    there would count bytes that it did not predict, so the window moves on by a token.
    """
    ends = (
        np.maximum.accumulate(np.array([end for _, end in offsets], np.int64))
        if offsets
        else np.zeros(0, int)
    )
    starts = np.array([start for start, _ in offsets], np.int64)
    clean = np.concatenate([[True], starts[1:] >= ends[:-1], [True]])
    at = 0
    while at + length <= len(ids):
        first, last = at + skip + 1, at + length
        if not (clean[first] and clean[last]):
            at += 1
            continue
        # The bytes of a span run from the end of the token before it, so that spaces which a tokenizer trims
        # from its offsets are counted, and each once.
        span = piece[int(ends[first - 1]) : int(ends[last - 1])]
        if span:
            yield ids[at:last], len(span.encode())
        at = last
