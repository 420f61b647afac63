"""The text of a golf: documents, each once, part of them held out by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sprat.errors import ProofError, SourceError
from sprat.prove import text as texts

#: A file that marks no documents and is longer than this many characters is cut, at blank lines, into documents of
#: about this length, so that some of it can be held out.
PIECE = 16384
#: So many characters of a document name it in an error.
_NAMED = 60


@dataclass(frozen=True)
class Corpus:
    """Documents to learn from and documents to score, none in both.

    dropped: documents that had come before, word for word.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    dropped: int = 0

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of what is learnt from, in its order."""
        return _hash("".join(map(_hash, self.train)))

    @property
    def validation_hash(self) -> str:
        """SHA-256 (hex) of what is scored, whatever its order."""
        return _hash("".join(sorted(map(_hash, self.validation))))


def read(
    training: Sequence[str | Path], share: float, validation: Sequence[str | Path] | None = None
) -> Corpus:
    """Documents of text files. `validation` files are scored, or else `share` of the training documents.

    Raises SourceError: a file that is missing, empty, binary or not UTF-8; no document left to learn from or to score;
    validation documents that are among the training documents, or inside one.
    """
    if not training:
        raise SourceError("no training text was named: give --text FILE")
    everything = documents(training)
    once = list(dict.fromkeys(everything))
    dropped = len(everything) - len(once)
    if validation:
        held = tuple(dict.fromkeys(documents(validation)))
        _refuse_overlap(once, held)
        return Corpus(tuple(once), held, dropped)
    held = tuple(document for document in once if held_out(document, share))
    kept = tuple(document for document in once if not held_out(document, share))
    if not held or not kept:
        raise SourceError(
            f"the text has {len(once)} documents, of which {len(held)} would be held out ({share:.0%} by their hash): "
            "give more text, mark its documents (<|endoftext|>, form feeds, three blank lines; each file is one too), "
            "or name what is to be scored with --validation FILE"
        )
    return Corpus(kept, held, dropped)


def documents(files: Sequence[str | Path]) -> list[str]:
    """The documents of all files in order, without white space at either end."""
    found: list[str] = []
    for file in files:
        try:
            text = texts.read(file)
        except ProofError as error:
            raise SourceError(str(error)) from None
        if "\0" in text.content:
            raise SourceError(f"{file} is binary: it holds a zero byte; a corpus is UTF-8 text")
        marked = text.documents()
        found += _cut(marked[0]) if len(marked) == 1 and len(marked[0]) > 2 * PIECE else marked
    return [document.strip() for document in found]


def held_out(document: str, share: float) -> bool:
    """Whether a document belongs to the held-out `share`: a property of its bytes alone."""
    return int(_hash(document)[:8], 16) < share * 2**32


def _cut(document: str) -> list[str]:
    """Pieces of at least PIECE characters that end at blank lines."""
    pieces, piece = [], ""
    for paragraph in document.split("\n\n"):
        piece += ("\n\n" if piece else "") + paragraph
        if len(piece) >= PIECE:
            pieces.append(piece)
            piece = ""
    return [*pieces, piece] if piece.strip() else pieces


def _refuse_overlap(train: Sequence[str], held: Sequence[str]) -> None:
    """Raise SourceError naming the validation documents that the training text holds."""
    whole = "\n".join(" ".join(document.split()) for document in train)
    seen = [document for document in held if " ".join(document.split()) in whole]
    if seen:
        names = "; ".join(repr(" ".join(document.split())[:_NAMED]) for document in seen[:5])
        more = f" and {len(seen) - 5} more" if len(seen) > 5 else ""
        raise SourceError(
            f"{len(seen)} of {len(held)} validation documents are inside the training text: {names}{more}"
        )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
