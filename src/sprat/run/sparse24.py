"""Layers that keep 2 weights of every 4, as compressed-tensors stores them: its format sparse-24-bitmask.

Instead of a module's weight (m, n) there are, under the module's name:

    compressed  (m, n / 2)          the weights kept, in the order of their columns
    bitmask     (m, ⌈n / 8⌉) uint8  bit b of byte j: whether column 8 j + b is kept
    shape       (2, 1) int64        m and n

Source: compressed-tensors (Apache-2.0), Sparse24BitMaskTensor of version 0.14, the last to read it. The layout is
frozen, so it is written here without that library.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sprat.coding.tensors import Dense, Entry, Lattice, expand
from sprat.errors import SpratError

if TYPE_CHECKING:
    from sprat.coding.container import Artifact

#: What compressed-tensors calls the format, and the version of the library whose layout this is.
FORMAT, VERSION = "sparse-24-bitmask", "0.14.0"
#: Newer ones have dropped the format, and transformers then goes on with layers of random numbers.
READERS = (
    f"{FORMAT} opens with compressed-tensors up to 0.14 and a transformers of that time (5.5, say); newer ones leave "
    "these layers random and only report missing weights: for those, export --to hf"
)


def tensors(artifact: Artifact) -> Iterator[tuple[str, np.ndarray]]:
    """(name in the folder, array), one stored entry at a time: what is in no layer, dense as `model.tensors` has it.

    Raises `SpratError` for the first map of a layer that has no 2:4 pattern, and where no map has one.
    """
    found = False
    for name in artifact.names:
        entry = artifact.entry(name)
        if isinstance(entry.tensor, Lattice) and _is_2_of_4(entry):
            found = True
            yield from _split(entry, entry.tensor)
        elif isinstance(entry.tensor, Dense) or not re.search(r"\.\d+\.", name):
            yield from expand({name: entry}).items()
        else:
            raise _refusal(artifact, name)
    if not found:
        raise _refusal(artifact, "every map")


def quantization_config(names: Iterable[str]) -> dict[str, Any]:
    """What config.json says of a folder with the tensors `names`: the modules are told one by one."""
    targets = [name.removesuffix(".bitmask") for name in names if name.endswith(".bitmask")]
    return {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "sparsity_config": {
            "format": FORMAT,
            "sparsity_structure": "2:4",
            "targets": targets,
            "ignore": [],
        },
    }


def _is_2_of_4(entry: Entry) -> bool:
    pattern = entry.tensor.pattern if isinstance(entry.tensor, Lattice) else None
    return pattern is not None and (pattern.kept, pattern.group) == (2, 4) and not entry.transposed


def _split(entry: Entry, lattice: Lattice) -> Iterator[tuple[str, np.ndarray]]:
    assert lattice.pattern is not None
    kept = lattice.pattern.compact(lattice.dense())
    bits = np.packbits(lattice.pattern.mask, axis=1, bitorder="little")
    start, n = 0, lattice.shape[1]
    for name, rows in zip(entry.maps, entry.rows, strict=True):
        module, part = name.removesuffix(".weight"), slice(start, start + rows)
        yield f"{module}.compressed", kept[part]
        yield f"{module}.bitmask", bits[part]
        yield f"{module}.shape", np.array([[rows], [n]], np.int64)
        start += rows


def _refusal(artifact: Artifact, name: str) -> SpratError:
    return SpratError(
        f"{artifact.path.name}: {name} is stored without a 2:4 pattern along a linear module's inputs, "
        f"the one thing that {FORMAT} holds: fit with --sparsity 2:4, or export --to hf"
    )
