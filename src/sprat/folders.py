"""Where sprat keeps what it may want again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """$SPRAT_CACHE, or the user's cache directory."""
    if root := os.environ.get("SPRAT_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sprat"
