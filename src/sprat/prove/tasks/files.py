"""Questions from local JSON-lines files, in the fields that ARC, PIQA, BLiMP and LAMBADA are published with.

Prompts are worded as lm-evaluation-harness words them (tasks arc_easy, piqa, blimp_* and lambada_openai, version
1.0), so that accuracies can be compared with published ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sprat.errors import ProofError, nearest


@dataclass(frozen=True)
class Item:
    """A question: which of `choices` follows `context`? One choice alone is a cloze: is it what the model writes?"""

    context: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Task:
    """A file's questions."""

    name: str
    format: str
    items: tuple[Item, ...]
    found: int
    """Questions in the file, of which `items` may be a part."""
    path: str
    nbytes: int
    sha256: str

    @property
    def cloze(self) -> bool:
        """Is a question right where the model's likeliest text is the answer, not the likeliest of several?"""
        return len(self.items[0].choices) == 1

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 0.0 if self.cloze else float(np.mean([1 / len(item.choices) for item in self.items]))


def _arc(row: dict[str, Any]) -> Item:
    choices = row["choices"]
    if not isinstance(choices, dict) or not {"text", "label"} <= choices.keys():
        raise ValueError("'choices' must be an object with the lists 'text' and 'label'")
    texts, labels, key = _texts(choices["text"], "choices.text"), choices["label"], row["answerKey"]
    if not isinstance(labels, list) or len(labels) != len(texts):
        raise ValueError("'choices.label' must be a list as long as 'choices.text'")
    if key not in labels:
        raise ValueError(
            f"'answerKey' is {key!r}, which is none of the labels {', '.join(map(repr, labels))}"
        )
    return Item(f"Question: {_text(row, 'question')}\nAnswer:", texts, labels.index(key))


def _piqa(row: dict[str, Any]) -> Item:
    solutions = _text(row, "sol1"), _text(row, "sol2")
    return Item(f"Question: {_text(row, 'goal')}\nAnswer:", solutions, _index(row, "label", 2))


def _blimp(row: dict[str, Any]) -> Item:
    return Item("", (_text(row, "sentence_good"), _text(row, "sentence_bad")), 0)


def _lambada(row: dict[str, Any]) -> Item:
    context, _, last = _text(row, "text").rpartition(" ")
    if not last:
        raise ValueError("'text' ends with a space: its last word is what the model has to find")
    return Item(context, (last,), 0)


def _cloze(row: dict[str, Any]) -> Item:
    return Item(_text(row, "context"), (_text(row, "continuation"),), 0)


def _choice(row: dict[str, Any]) -> Item:
    choices = _texts(row["choices"], "choices")
    return Item(_text(row, "query"), choices, _index(row, "gold", len(choices)))


#: format -> the fields that tell it, and what makes a question of a line (`ValueError` where it cannot)
FORMATS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], Item]]] = {
    "arc": (("question", "choices", "answerKey"), _arc),
    "piqa": (("goal", "sol1", "sol2", "label"), _piqa),
    "blimp": (("sentence_good", "sentence_bad"), _blimp),
    "lambada": (("text",), _lambada),
    "cloze": (("context", "continuation"), _cloze),
    "choice": (("query", "choices", "gold"), _choice),
}


def read(path: str | Path, items: int | None = None) -> Task:
    """The questions of a JSON-lines file; `items`: at most so many, evenly spread over it.

    The first line tells the format, every other line has to have it. Raises `ProofError`: nothing there, not
    UTF-8, no question in it, or a line (named) that is no JSON, lacks a field or has a value that cannot be.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        near = nearest(path.name, (p.name for p in path.parent.glob("*.json*")))
        raise ProofError(
            f"cannot read the task file {str(path)!r}{near}: {error.strerror or error}"
        ) from None
    try:
        lines = raw.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ProofError(f"{path}, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ProofError(f"{path} is empty: a task needs at least one question, a JSON object a line")
    first, line = numbered[0]
    form = _format(_row(path, first, line), f"{path}, line {first}")
    questions = [_item(_row(path, number, line), form, f"{path}, line {number}") for number, line in numbered]
    chosen = spread(len(questions), items)
    return Task(
        path.stem,
        form,
        tuple(questions[i] for i in chosen),
        len(questions),
        str(path),
        len(raw),
        hashlib.sha256(raw).hexdigest(),
    )


def spread(count: int, items: int | None) -> list[int]:
    """At most `items` of 0 .. count − 1, evenly spread, in order."""
    if items is None or items >= count:
        return list(range(count))
    return np.linspace(0, count - 1, items).round().astype(int).tolist()


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProofError(
            f"{path}, line {number}: no JSON ({error}); a task file has an object a line"
        ) from None
    if not isinstance(row, dict):
        raise ProofError(f"{path}, line {number}: {type(row).__name__}, not a JSON object with a question")
    return row


def _format(row: dict[str, Any], where: str) -> str:
    """The format whose fields are all there; else the error names what the nearest one lacks."""
    missing = {form: [f for f in fields if f not in row] for form, (fields, _) in FORMATS.items()}
    for form, fields in missing.items():
        if not fields:
            return form
    form = min(FORMATS, key=lambda form: len(missing[form]) / len(FORMATS[form][0]))
    if len(missing[form]) < len(FORMATS[form][0]):
        raise ProofError(f"{where}: {_lacks(form, missing[form])}")
    known = "; ".join(f"{form}: {', '.join(fields)}" for form, (fields, _) in FORMATS.items())
    raise ProofError(
        f"{where}: its fields ({', '.join(row) or 'none'}) are no known format's. Known are {known}"
    )


def _lacks(form: str, missing: list[str]) -> str:
    return f"no field {', '.join(map(repr, missing))}; a line of {form} has {', '.join(FORMATS[form][0])}"


def _item(row: dict[str, Any], form: str, where: str) -> Item:
    fields, parse = FORMATS[form]
    if missing := [field for field in fields if field not in row]:
        raise ProofError(f"{where}: {_lacks(form, missing)}")
    try:
        return parse(row)
    except ValueError as error:
        raise ProofError(f"{where}: {error}") from None


def _text(row: dict[str, Any], field: str) -> str:
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field!r} must be a text that is not empty, not {value!r}")
    return value


def _texts(value: Any, field: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2:
        raise ValueError(f"{field!r} must be a list of at least two texts")
    return tuple(_text({field: text}, field) for text in value)


def _index(row: dict[str, Any], field: str, count: int) -> int:
    value = row[field]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise ValueError(f"{field!r} must be the number of the right answer, 0 to {count - 1}, not {value!r}")
    return value
