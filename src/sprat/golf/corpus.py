"""The text of a golf: documents, each once, part of them held out by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sprat.errors import ProofError, SourceError
from sprat.golf.overlap import inside, plain
from sprat.prove import text as texts
from sprat.source.packages import text_files
from sprat.source.text import rows

if TYPE_CHECKING:
    from sprat.golf.recipe import Recipe

#: So many characters of a data set of the hub are read, unless the recipe's `stream` says otherwise.
STREAM = 100_000_000
#: A document that is learnt from and has fewer characters, white space being one, may stand inside one that is scored:
#: a few words are everywhere by chance.
SHORTEST = 100
#: So many characters of a document name it in an error.
_NAMED = 60


@dataclass(frozen=True)
class Corpus:
    """Documents to learn from and documents to score, none in both.

    dropped: documents that had come before, word for word, and any that a document of the other side holds.
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

    Of a document that is scored and one that is learnt from, the one that stands inside the other is left out.

    Raises SourceError: a text that is missing, empty, binary or not UTF-8; no document left to learn from or to score;
    `validation` documents that are among the training documents, inside one, or around one of SHORTEST characters.
    """
    if not training:
        raise SourceError("no training text was named: give --text FILE, or the recipe a key `text`")
    everything = documents(training, stream)
    once = list(dict.fromkeys(everything))
    dropped = len(everything) - len(once)
    if validation:
        held = list(dict.fromkeys(documents(validation, stream)))
        _refuse_overlap(once, held)
        return Corpus(tuple(once), tuple(held), dropped)
    kept = [document for document in once if not held_out(document, share)]
    held = [document for document in once if held_out(document, share)]
    within = set(inside(kept, held))
    held = [document for document in held if document not in within]
    around = set(_surrounded(kept, held))
    kept = [document for document in kept if document not in around]
    if not held or not kept:
        raise SourceError(
            f"the text has {len(once)} documents, of which {len(held)} would be held out ({share:.0%} by their hash): "
            "give more text, mark its documents (<|endoftext|>, form feeds, three blank lines; each file is one too), "
            "or name what is to be scored with --validation FILE"
        )
    return Corpus(tuple(kept), tuple(held), dropped + len(within) + len(around))


def of(
    recipe: Recipe, text: Sequence[str | Path] | None = None, validation: Sequence[str | Path] | None = None
) -> Corpus:
    """`read` as a recipe asks for it; its own texts where no others are named."""
    return read(text or recipe.text, recipe.validation, validation or recipe.validation_text, recipe.stream)


def documents(named: Sequence[str | Path], stream: int = STREAM) -> list[str]:
    """The documents of all texts in order, without white space at either end.

    A text is a UTF-8 file, a folder of them, a pattern such as "shards/*.txt", "package:NAME", the *.txt files of an
    installed Python package, or "hub:NAME[:SPLIT]", of which `stream` characters are read. A file is a document, or
    those that it marks; so is a row of the hub's.
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
    if name.startswith("package:"):
        return text_files(name.removeprefix("package:"))
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
    """Raise SourceError naming the documents that both texts hold."""
    if seen := inside(train, held):
        raise SourceError(
            f"{len(seen)} of {len(held)} validation documents are inside the training text: {_names(seen)}"
        )
    if seen := _surrounded(train, held):
        raise SourceError(
            f"{len(seen)} of {len(train)} training documents are inside the validation text: {_names(seen)}"
        )


def _names(documents: Sequence[str]) -> str:
    names = "; ".join(repr(plain(document)[:_NAMED]) for document in documents[:5])
    return names + (f" and {len(documents) - 5} more" if len(documents) > 5 else "")


def _surrounded(train: Sequence[str], held: Sequence[str]) -> list[str]:
    """The documents of `train`, of SHORTEST characters or more, that `held` holds."""
    return inside(held, [document for document in train if len(plain(document)) >= SHORTEST])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
