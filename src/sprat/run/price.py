"""What a model will take in memory when the native engine runs it, from what is to be stored.

The same packing that loading does (docs/engine.md), so that a budget for memory is weighed and not estimated: the run
layout of every map and the vocabulary, norms and biases in float32, and the key-value cache of a context.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sprat import _core
from sprat.coding.tensors import Entry, Lattice
from sprat.errors import UnsupportedError
from sprat.run.architecture import architecture


def cache_bytes(config: Mapping[str, Any], context: int) -> int:
    """The key-value cache of `context` tokens. Raises `UnsupportedError` where the engine serves no such model."""
    try:
        return context * architecture(dict(config)).cache_bytes()
    except UnsupportedError as error:
        raise UnsupportedError(f"a budget for memory is one for the native engine: {error}") from None


def weights_bytes(entries: Mapping[str, Entry], threads: int = 1) -> int:
    """Run layout, vocabulary, norms and biases."""
    total = 0
    for entry in entries.values():
        tensor = entry.tensor
        if isinstance(tensor, Lattice):
            # An arena a map: its memory goes back as soon as the map is weighed.
            packed = _core.pack(
                np.ascontiguousarray(tensor.q),
                tensor.row.values(),
                tensor.col.values(),
                0,
                threads,
                _core.Arena(),
            )
            total += packed.nbytes
        else:
            total += 4 * tensor.array.size
    return total
