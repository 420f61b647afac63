"""Where sprat keeps what it may want again, and how what it writes comes to lie there."""

from __future__ import annotations

import os
from pathlib import Path

from sprat.errors import SpratError


def cache_root() -> Path:
    """$SPRAT_CACHE, or the user's cache directory."""
    if root := os.environ.get("SPRAT_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sprat"


def refuse_target(out: Path, *inputs: str | Path) -> None:
    """SpratError where `out` cannot be written as a file, or is one of `inputs`, which would then be lost.

    To be asked before anything long begins: what took an hour should not be refused at its end. inputs: paths, or
    what may be one, such as a model's name.
    """
    why = None
    if not out.parent.is_dir():
        why = f"there is no folder {out.parent}"
    elif out.is_dir():
        why = "it is a folder"
    elif not os.access(out.parent, os.W_OK):
        why = f"the folder {out.parent} is not writable"
    elif any(Path(one).exists() and out.exists() and out.samefile(one) for one in inputs):
        why = "it is what is read, and would be lost; name another file"
    if why is not None:
        raise SpratError(f"cannot write {out}: {why}")


def refuse_folder(folder: Path) -> None:
    """SpratError where `folder` can be no folder to write into, before anything long begins."""
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if not there.is_dir():
        raise SpratError(f"cannot write into {folder}: {there} is a file")
    if not os.access(there, os.W_OK):
        raise SpratError(f"cannot write into {folder}: the folder {there} is not writable")


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 text under a name of its own and rename it: `path` is whole, or as it was.

    Raises SpratError where it cannot be written; no part of it is left.
    """
    partial = path.with_name(path.name + f".partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise SpratError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
