"""Evaluation texts cut into contexts, with the exact bytes that each context's scored tokens stand for.

A text is one document, or several where it marks them: by `<|endoftext|>`, else by form feeds, else by runs of
three blank lines or more. Several files are several documents. No context spans two documents.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sprat.errors import ProofError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: An excerpt this many characters a token long holds the tokens that are asked for in every common script.
_CHARACTERS_A_TOKEN = 12
#: What stands between documents: the first of these that a text has.
_MARKS = (re.compile(r"<\|endoftext\|>"), re.compile("\f"), re.compile(r"\n(?:[ \t\r]*\n){3,}"))


@dataclass(frozen=True)
class Text:
    """A text as read: its content, where it came from, and its hash."""

    content: str
    name: str
    nbytes: int
    sha256: str

    def documents(self) -> list[str]:
        """The documents that the text marks, without the marks and without empty ones."""
        mark = next((mark for mark in _MARKS if mark.search(self.content)), None)
        pieces = [self.content] if mark is None else mark.split(self.content)
        return [piece for piece in pieces if piece.strip()]


@dataclass(frozen=True)
class Contexts:
    """Windows of tokens over which two models are compared.

    ids: (contexts, length) int64, each row `prefix` special tokens and then text, and zeros behind its length;
    bytes_scored: (contexts,) UTF-8 bytes of the text that positions skip+1 .. length-1 stand for;
    lengths: (contexts,) tokens of each row, None where all are full; documents: (contexts,) which document each
    row is from, None where that is unknown; passages: of each row the text in front of what is scored, and that.
    """

    ids: np.ndarray
    bytes_scored: np.ndarray
    skip: int
    lengths: np.ndarray | None = None
    documents: np.ndarray | None = None
    passages: tuple[tuple[str, str], ...] = ()
    altered: str = ""
    """How the tokens fail to give the text back; empty where they do."""
    left_out: int = 0
    """Documents that were looked at and are too short for a context."""

    @property
    def scored(self) -> int:
        """Scored tokens of a full context: the logits at skip .. length-2 predict the tokens skip+1 .. length-1."""
        return self.ids.shape[1] - 1 - self.skip

    @property
    def mask(self) -> np.ndarray:
        """(contexts, scored) bool: what of each row is text."""
        full = np.full(len(self.ids), self.ids.shape[1]) if self.lengths is None else self.lengths
        return np.arange(self.skip + 1, self.ids.shape[1]) < full[:, None]

    @property
    def document_count(self) -> int:
        return 1 if self.documents is None else len(np.unique(self.documents))

    @property
    def clusters(self) -> np.ndarray:
        """(contexts,): what belongs together in the bootstrap, see `unit`."""
        own = np.arange(len(self.ids))
        return own if self.documents is None or self.unit == "context" else self.documents

    @property
    def unit(self) -> str:
        """What intervals take as independent: "document", or "context" where all are from one document."""
        return "context" if self.document_count < 2 else "document"


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


def described(texts: Sequence[Text]) -> dict[str, Any]:
    """Where the texts lie, their bytes and their hash: of several texts that of their hashes, one behind the other."""
    files = [{"path": text.name, "bytes": text.nbytes, "sha256": text.sha256} for text in texts]
    if len(files) == 1:
        return files[0]
    digest = hashlib.sha256("".join(text.sha256 for text in texts).encode()).hexdigest()
    names = ", ".join(text.name for text in texts)
    return {"path": names, "bytes": sum(text.nbytes for text in texts), "sha256": digest, "files": files}


def excerpts(documents: Sequence[str], count: int, length: int) -> list[tuple[int, str]]:
    """(document, piece of it): all whole when `count` contexts of `length` tokens could use them, else evenly
    spread pieces.

    A piece starts after a line or word break, so that no context starts inside a word.
    """
    size = length * _CHARACTERS_A_TOKEN
    ends = np.cumsum([len(document) for document in documents])
    if ends[-1] <= 2 * count * size:
        return list(enumerate(documents))
    places: dict[tuple[int, int], None] = {}  # an ordered set: short documents may be met several times
    for start in np.linspace(0, ends[-1] - size, count).astype(int).tolist():
        which = int(np.searchsorted(ends, start, side="right"))
        inside = start - (int(ends[which - 1]) if which else 0)
        places[which, max(0, min(inside, len(documents[which]) - size))] = None
    pieces = []
    for which, start in places:
        content = documents[which]
        line, word = content.find("\n", start, start + size // 4), content.find(" ", start, start + size // 4)
        cut = max(line, word) if line < 0 or word < 0 else line
        pieces.append((which, content[(cut if cut >= 0 and start else start) : start + size]))
    return pieces


def cut(
    tokenizer: Tokenizer,
    text: Text | Sequence[Text],
    *,
    length: int,
    skip: int,
    tokens: int,
    prefix: Sequence[int] = (),
) -> Contexts:
    """At most tokens // length contexts of `length` tokens, spread evenly over the documents of the text.

    `prefix`: special tokens that open every context, as the model expects. A document shorter than a context is
    a shorter context, if something of it can be scored. Raises `ProofError` where nothing can.
    """
    texts = [text] if isinstance(text, Text) else list(text)
    documents = [document for one in texts for document in one.documents()]
    count = max(1, tokens // length)
    size, before = length - len(prefix), skip - len(prefix)
    windows: list[_Window] = []
    longest, altered, left_out = 0, "", 0
    for which, piece in excerpts(documents, count, length):
        encoding = tokenizer.encode(piece, add_special_tokens=False)
        longest = max(longest, len(encoding.ids))
        altered = altered or _altered(piece, tokenizer.decode(encoding.ids, skip_special_tokens=False))
        found = list(_windows(which, piece, encoding.ids, encoding.offsets, size, before))
        left_out += not found
        windows.extend(found)
    if not windows:
        raise ProofError(
            f"{', '.join(one.name for one in texts)} is too short: the longest document has {longest} tokens, and "
            f"the first {before + 1} of a context are not scored; give more text, a smaller context or a smaller skip"
        )
    places = np.linspace(0, len(windows) - 1, min(count, len(windows))).round().astype(int)
    chosen = [windows[i] for i in np.unique(places).tolist()]
    ids = np.zeros((len(chosen), length), np.int64)
    for row, window in zip(ids, chosen, strict=True):
        row[: len(prefix) + len(window.ids)] = [*prefix, *window.ids]
    return Contexts(
        ids,
        np.array([len(window.scored.encode()) for window in chosen], np.int64),
        skip,
        np.array([len(prefix) + len(window.ids) for window in chosen], np.int64),
        np.array([window.document for window in chosen], np.int64),
        tuple((window.unscored, window.scored) for window in chosen),
        altered,
        left_out,
    )


@dataclass(frozen=True)
class _Window:
    document: int
    ids: list[int]
    unscored: str
    scored: str


def _windows(
    document: int, piece: str, ids: list[int], offsets: Sequence[tuple[int, int]], length: int, skip: int
) -> Iterator[_Window]:
    """Consecutive windows of `length` tokens whose scored span starts and ends between characters.

    Byte-level tokens can hold part of a character, and then share its offsets; a span that starts or ends
    there would count bytes that it did not predict, so the window moves on by a token.
    """
    ends = np.maximum.accumulate(np.array([0, *(end for _, end in offsets)], np.int64))
    starts = np.array([start for start, _ in offsets], np.int64)
    clean = np.concatenate([starts >= ends[:-1], [True]])
    length = min(length, len(ids))
    at = 0
    while skip + 1 < length and at + length <= len(ids):
        first, last = at + skip + 1, at + length
        if not (clean[first] and clean[last]):
            at += 1
            continue
        # The bytes of a span run from the end of the token before it, so that spaces which a tokenizer trims
        # from its offsets are counted, and each once.
        begin, middle, end = (int(ends[i]) for i in (at, first, last))
        if end > middle:
            yield _Window(document, ids[at:last], piece[begin:middle], piece[middle:end])
        at = last


def _altered(piece: str, decoded: str) -> str:
    """Where the text that comes back from the tokens first differs; empty where it does not."""
    if decoded == piece:
        return ""
    at = next((i for i, (a, b) in enumerate(zip(piece, decoded, strict=False)) if a != b), None)
    at = min(len(piece), len(decoded)) if at is None else at
    return f"{piece[at : at + 20]!r} comes back as {decoded[at : at + 20]!r}"
