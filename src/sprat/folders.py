"""Where sprat keeps what it may want again, and how what it writes comes to lie there."""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sprat.errors import SpratError

_LOG = logging.getLogger(__name__)


def cache_root() -> Path:
    """$SPRAT_CACHE, or the user's cache directory; where that cannot be written, one that goes with the process."""
    if named := os.environ.get("SPRAT_CACHE"):
        root = Path(named)
    elif user := os.environ.get("XDG_CACHE_HOME"):
        root = Path(user) / "sprat"
    else:
        try:
            root = Path.home() / ".cache" / "sprat"
        except RuntimeError:  # a user without a home, as containers have
            return _instead("of a user without a home")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _instead(str(root))
    return root if os.access(root, os.W_OK | os.X_OK) else _instead(str(root))


@functools.cache
def _instead(of: str) -> Path:
    """A temporary cache, of which is told once."""
    made = Path(tempfile.mkdtemp(prefix="sprat-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    _LOG.warning(
        "sprat: note: the cache %s cannot be written, so nothing is kept for the next time; SPRAT_CACHE names another",
        of,
    )
    return made


def refuse_target(out: Path, *inputs: str | Path) -> None:
    """SpratError where `out` cannot be written as a file, or is one of `inputs` or in it, which would then be lost.

    To be asked before anything long begins: what took an hour should not be refused at its end. inputs: paths, or
    what may be one, such as a model's name.
    """
    why = None
    if not out.parent.is_dir():
        why = f"there is no folder {out.parent}"
    elif out.is_dir():
        why = "it is a folder"
    elif out.exists() and not out.is_file():
        why = "it is no ordinary file"
    elif not os.access(out.parent, os.W_OK):
        why = f"the folder {out.parent} is not writable"
    elif any(Path(one).exists() and out.exists() and out.samefile(one) for one in inputs):
        why = "it is what is read, and would be lost; name another file"
    elif whole := next((one for one in inputs if out.exists() and _holds(Path(one), out)), None):
        why = f"it is a part of {whole}, which is read, and would be lost; name another file"
    if why is not None:
        raise SpratError(f"cannot write {out}: {why}")


def _holds(folder: Path, out: Path) -> bool:
    """Whether `out` is one of the files of the model in `folder`; a `.sprat` is none."""
    return folder.is_dir() and out.suffix != ".sprat" and out.resolve().parent == folder.resolve()


def refuse_folder(folder: Path, names: Sequence[str] = ()) -> None:
    """SpratError where `folder` can be no folder to write into, before anything long begins.

    names: of files that will be written over, which may only lie there where result.json says that they are sprat's.
    """
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if not there.is_dir():
        raise SpratError(f"cannot write into {folder}: {there} is a file")
    if not os.access(there, os.W_OK):
        raise SpratError(f"cannot write into {folder}: the folder {there} is not writable")
    if (foreign := [name for name in names if (folder / name).exists()]) and not _ours(
        folder / "result.json"
    ):
        raise SpratError(
            f"cannot write into {folder}: {', '.join(foreign)} there would be lost, and no result.json says that a "
            "report of sprat's lies there; name another folder"
        )


def _ours(result: Path) -> bool:
    try:
        return str(json.loads(result.read_bytes())["schema"]).startswith("sprat.")
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
