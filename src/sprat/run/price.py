"""What a model will take in memory when the native engine runs it, from what is to be stored.

The same packing that loading does (docs/engine.md), so that a budget for memory is weighed and not estimated: the run
layout of every map and the vocabulary, norms and biases in float32, and the key-value cache of a context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sprat import _core
from sprat.coding.tensors import Dense, Entry
from sprat.errors import BudgetError, UnsupportedError
from sprat.run.architecture import architecture, check_cache
from sprat.run.engine import Engine
from sprat.run.unpack import integers
from sprat.sizes import format_bytes


def cache_bytes(config: Mapping[str, Any], context: int, cache: str | None = None) -> int:
    """The key-value cache of `context` tokens, kept in `cache` (default: as the engine does by itself).

    Raises `UnsupportedError` where the engine serves no such model.
    """
    precision = check_cache(cache)
    try:
        return context * architecture(dict(config)).cache_bytes(precision)
    except UnsupportedError as error:
        raise UnsupportedError(f"a budget for memory is one for the native engine: {error}") from None


def weights_bytes(entries: Mapping[str, Entry], threads: int = 1) -> int:
    """Run layout, vocabulary, norms and biases."""
    total = 0
    for entry in entries.values():
        tensor = entry.tensor
        if isinstance(tensor, Dense):
            total += 4 * tensor.array.size
            continue
        q, row, column = integers(tensor, entry.maps[0])
        # An arena a map: its memory goes back as soon as the map is weighed.
        total += _core.pack(np.ascontiguousarray(q), row, column, 0, threads, _core.Arena()).nbytes
    return total


def refuse_memory(engine: Engine, ram: int, texts: int = 1) -> None:
    """Raise BudgetError where the engine and the caches of `texts` texts of its context take more than `ram` bytes."""
    resident: dict[str, int] | None = getattr(engine, "resident", None)
    token: int | None = getattr(engine, "cache_bytes_per_token", None)
    if resident is None or token is None:
        raise UnsupportedError(
            f"a budget for memory is one for the native engine, this is the {engine.name} one"
        )
    weights = resident["layout"] + resident["vocabulary"]
    caches = texts * engine.context * token
    if weights + caches <= ram:
        return
    each = "" if texts == 1 else f" in each of {texts} texts"
    fit = max(0, (ram - weights) // (texts * token))
    raise BudgetError(
        f"the model takes {format_bytes(weights)}, a context of {engine.context:,} tokens{each} "
        f"{format_bytes(caches)}: more than {ram:,} bytes, into which {fit:,} tokens{each} would fit (--context)"
    )
