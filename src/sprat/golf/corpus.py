"""The text of a golf: documents, each once, part of them held out by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sprat.errors import ProofError, SourceError
from sprat.prove import text as texts
from sprat.source.text import rows

#: So many characters of a data set of the hub are read, unless the recipe's `stream` says otherwise.
STREAM = 100_000_000
#: So many characters of a document name it in an error.
_NAMED = 60


@dataclass(frozen=True)
class Corpus:
    """Documents to learn from and documents to score, none in both.

    dropped: documents that had come before, word for word, and of those to score any that one to learn from holds.
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
    training: Sequence[str | Path],
    share: float,
    validation: Sequence[str | Path] | None = None,
    stream: int = STREAM,
) -> Corpus:
    """Documents of texts (`documents`). Those of `validation` are scored, or else `share` of the training documents.

    Raises SourceError: a text that is missing, empty, binary or not UTF-8; no document left to learn from or to score;
    `validation` documents that are among the training documents, or inside one.
    """
    if not training:
        raise SourceError("no training text was named: give --text FILE")
    everything = documents(training, stream)
    once = list(dict.fromkeys(everything))
    dropped = len(everything) - len(once)
    if validation:
        held = list(dict.fromkeys(documents(validation, stream)))
        _refuse_overlap(once, held)
        return Corpus(tuple(once), tuple(held), dropped)
    kept = [document for document in once if not held_out(document, share)]
    held = [document for document in once if held_out(document, share)]
    inside = set(_inside(kept, held))
    held = [document for document in held if document not in inside]
    if not held or not kept:
        raise SourceError(
            f"the text has {len(once)} documents, of which {len(held)} would be held out ({share:.0%} by their hash): "
            "give more text, mark its documents (<|endoftext|>, form feeds, three blank lines; each file is one too), "
            "or name what is to be scored with --validation FILE"
        )
    return Corpus(tuple(kept), tuple(held), dropped + len(inside))


def documents(named: Sequence[str | Path], stream: int = STREAM) -> list[str]:
    """The documents of all texts in order, without white space at either end.

    A text is a UTF-8 file, a folder of them, a pattern such as "shards/*.txt", or "hub:NAME[:SPLIT]", of which `stream`
    characters are read. A file is a document, or those that it marks; so is a row of the hub's.
    """
    found: list[str] = []
    for name in map(str, named):
        if name.startswith("hub:"):
            found += _streamed(name, stream)
            continue
        for file in _files(name):
            try:
                text = texts.read(file)
            except ProofError as error:
                raise SourceError(str(error)) from None
            if "\0" in text.content:
                raise SourceError(f"{file} is binary: it holds a zero byte; a corpus is UTF-8 text")
            found += text.documents()
    return [document.strip() for document in found]


def held_out(document: str, share: float) -> bool:
    """Whether a document belongs to the held-out `share`: a property of its bytes alone."""
    return int(_hash(document)[:8], 16) < share * 2**32


def _files(name: str) -> list[Path]:
    """The files that a name stands for, in the order of their paths; hidden ones are left out."""
    path = Path(name).expanduser()
    if path.is_dir():
        found = [p for p in path.rglob("*") if not any(part[0] == "." for part in p.relative_to(path).parts)]
    elif set(name) & set("*?[") and not path.exists():
        found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    else:
        return [path]
    if not (files := sorted(p for p in found if p.is_file())):
        raise SourceError(f"there is no file in {name}" if path.is_dir() else f"no file matches {name}")
    return files


def _streamed(name: str, characters: int) -> Iterator[str]:
    """Rows of a data set until there are so many characters."""
    for row in rows(name):
        if row.strip():
            yield row
        characters -= len(row)
        if characters <= 0:
            return


def _refuse_overlap(train: Sequence[str], held: Sequence[str]) -> None:
    """Raise SourceError naming the validation documents that the training text holds."""
    if seen := _inside(train, held):
        names = "; ".join(repr(" ".join(document.split())[:_NAMED]) for document in seen[:5])
        more = f" and {len(seen) - 5} more" if len(seen) > 5 else ""
        raise SourceError(
            f"{len(seen)} of {len(held)} validation documents are inside the training text: {names}{more}"
        )


def _inside(train: Sequence[str], held: Sequence[str]) -> list[str]:
    """The documents of `held` that `train` holds, however either breaks its lines."""
    whole = "\n".join(" ".join(document.split()) for document in train)
    return [document for document in held if " ".join(document.split()) in whole]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
