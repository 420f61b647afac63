"""Peers: other files of the same model, measured on the same text, read from records.

A KL says nothing beside one of another model or text, nor beside one of longer contexts, which are easier to
foresee: a record that is not of the proof's is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NoReturn

from sprat.errors import ProofError

#: A file: (name, bytes, estimate of KL).
Point = tuple[str, int, dict[str, Any]]


@dataclass(frozen=True)
class Said:
    """What a record says. model: its hash; text: its SHA-256; context: tokens; contexts: how many were read."""

    model: str
    text: str
    context: int
    contexts: int
    points: list[Point]


@dataclass(frozen=True)
class Records:
    """Records that have been read; which model and text they are of is known, and not yet compared."""

    said: tuple[tuple[str, Said], ...]

    def points(self, model: str, text: str, context: int) -> list[dict[str, Any]]:
        """[{name, bytes, kl, contexts, record}] of a proof's `peers`. model: hash; text: SHA-256; context: tokens.

        Raises `ProofError` where a record is of another of these.
        """
        for path, found in self.said:
            for what, theirs, mine in (
                ("model is another", found.model, model),
                ("text is another", found.text, text),
            ):
                if theirs != mine:
                    _refuse(path, f"{what} (hash {theirs[:12]}…, this proof's {mine[:12]}…)")
            if found.context != context:
                _refuse(path, f"contexts are of {found.context} tokens, this proof's of {context}")
        return [
            {"name": name, "bytes": size, "kl": kl, "contexts": found.contexts, "record": path}
            for path, found in self.said
            for name, size, kl in found.points
        ]


def _refuse(path: str, why: str) -> NoReturn:
    raise ProofError(
        f"{path} cannot stand beside this proof: its {why}; `sprat compare` measures files on one text"
    )


def read(records: Sequence[str | Path]) -> Records:
    """The records, each a result.json or its folder; `ProofError` for one that holds no files' KL."""
    return Records(tuple((Path(record).as_posix(), _read(Path(record))) for record in records))


def _read(path: Path) -> Said:
    path = path / "result.json" if path.is_dir() else path
    try:
        said = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ProofError(f"cannot read the peers' record {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ProofError(f"the peers' record {path} is no JSON: {error}") from None
    schema = said.get("schema") if isinstance(said, dict) else None
    if not isinstance(schema, str) or schema not in _KINDS:
        raise ProofError(
            f"{path} holds no peers: its schema is {schema!r}; known are {', '.join(map(repr, _KINDS))}"
        )
    try:
        return _KINDS[schema](said)
    except (KeyError, TypeError, AttributeError) as error:
        raise ProofError(f"the peers' record {path} is not whole: {type(error).__name__}: {error}") from None


def _quality(said: dict[str, Any]) -> Said:
    """bench.quality: its rows of other methods."""
    rows = (row for row in said["rows"].values() if row["section"] == "peers" and "failed" not in row)
    points = [(row["label"], row["bytes"], row["kl"]) for row in rows]
    return _said(said["original"]["sha256"], said["settings"]["text_sha256"]["evaluation"], said, points)


def _engines(said: dict[str, Any]) -> Said:
    """bench.llamacpp: llama.cpp's files."""
    rows = ((name, row) for name, row in said["rows"].items() if row["engine"] != "sprat")
    points = [(f"{row['engine']} {name}", row["bytes"], row["kl"]) for name, row in rows]
    return _said(said["original"]["sha256"], said["settings"]["text_sha256"], said, points)


def _comparison(said: dict[str, Any]) -> Said:
    """sprat compare: every file that has a KL."""
    rows = (row for row in said["rows"] if row["metrics"].get("kl") is not None)
    points = [(row["name"], row["bytes"], row["metrics"]["kl"]) for row in rows]
    return _said(said["against"]["hash"], said["text"]["sha256"], said, points)


def _proof(said: dict[str, Any]) -> Said:
    """sprat prove: its one file."""
    points = [(PurePath(said["file"]["path"]).name, said["file"]["bytes"], said["metrics"]["kl"])]
    return _said(said["against"]["hash"], said["text"]["sha256"], said, points)


def _said(model: str, text: str, said: dict[str, Any], points: list[Point]) -> Said:
    return Said(model, text, said["settings"]["context"], said["settings"]["contexts"], points)


_KINDS: dict[str, Callable[[dict[str, Any]], Said]] = {
    "sprat.quality/1": _quality,
    "sprat.engine-peers/1": _engines,
    "sprat.comparison/1": _comparison,
    "sprat.proof/2": _proof,
}
