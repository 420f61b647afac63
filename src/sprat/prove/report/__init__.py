"""A proof as a folder that people read: README.md and one self-contained index.html.

Everything shown comes from the proof's JSON (schema "sprat.proof/2", docs/proof.md), and every part of it may
be missing: a part that was not measured is left out. The page needs no network, no script and no font; its
strings are escaped by the templates, its pictures are drawn in per cent of their own width, so that their
text keeps its size from a phone to paper.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sprat.prove.report.figures import Result
from sprat.prove.report.page import found, render
from sprat.prove.report.readme import compose


def write(result: dict[str, Any], folder: Path, peers: Sequence[dict[str, Any]] | None = None) -> None:
    """Write README.md and index.html for `result` into `folder`, made where it is missing.

    peers: other files of the same model on the same text, {"name", "bytes", "kl": nats a token or an
    estimate}, and where that is known {"contexts", "record"}; they are drawn beside this file (default: the proof's
    own). What an author wrote under "What did not work" in a README.md
    that is already there is kept. Raises OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = Result(result)
    readme = folder / "README.md"
    before = readme.read_text(encoding="utf-8", errors="replace") if readme.exists() else ""
    _put(readme, compose(values, before))
    _put(folder / "index.html", render(values, found(values) if peers is None else peers))


def _put(path: Path, text: str) -> None:
    """Whole or not at all. JSON may hold half of a surrogate pair, which UTF-8 cannot: it becomes `?`."""
    partial = path.with_name(path.name + f".partial-{os.getpid()}")
    try:
        partial.write_bytes(text.encode("utf-8", "replace"))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
