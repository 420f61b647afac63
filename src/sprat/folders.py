"""Where sprat keeps what it may want again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """$SPRAT_CACHE, or the user's cache directory."""
    if root := os.environ.get("SPRAT_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sprat"


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 text under a name of its own and rename it: `path` is whole, or as it was."""
    partial = path.with_name(path.name + f".partial-{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
