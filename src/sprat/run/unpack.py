"""A `.sprat`'s tensors into the native engine: decoded, packed into the run layout, one at a time a thread."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from sprat import _core
from sprat.coding.tensors import Entry, Lattice, Stored
from sprat.errors import FormatError, SpratError, nearest
from sprat.run.architecture import Architecture
from sprat.run.unpacked import Piece, Unpacked

if TYPE_CHECKING:
    from sprat.coding.container import Artifact

#: Dense matrices are held as integers of this size, a scale a row.
_DENSE_STEPS = 32639


def load(model: Any, artifact: Artifact, arch: Architecture, threads: int, keep: bool = False) -> int:
    """Every tensor of the file into `model`. keep: what unpacking gives stays in a file for the next time.

    Returns how many of the bytes that `model.bytes` counts for the layers' maps are held by another layer.
    """
    stored = Unpacked(artifact.digest, threads) if keep else None
    if stored and (pieces := stored.read(threads)) is not None:
        # Whoever wrote that file, what does not fit this model is unpacked again; it then replaces every part.
        with suppress(SpratError, ValueError, TypeError, LookupError):
            return _assemble(model, arch, pieces)
    pieces = _unpack(artifact, arch, threads)
    shared = _assemble(model, arch, pieces)
    if stored:
        stored.write(pieces)
    return shared


def _unpack(artifact: Artifact, arch: Architecture, threads: int) -> list[Piece]:
    """Decode and pack every tensor, several at a time, each matrix freed as soon as it is packed."""
    arena = _core.Arena()

    def read(name: str) -> list[Piece]:
        return list(_parts(artifact.entry(name), arch, threads, arena))

    # The vocabulary's matrices are the largest: first, so that no thread is left with one at the end.
    names = sorted(artifact.names, key=lambda name: not ("embed" in name or "lm_head" in name))
    with ThreadPoolExecutor(threads) as pool:
        pieces = [piece for found in pool.map(read, names) for piece in found]
    artifact.release_pages()
    _core.trim_memory()
    return pieces


def _assemble(model: Any, arch: Architecture, pieces: list[Piece]) -> int:
    """Give each part of the model its pieces; every map of the architecture must be there once. Returns as `load`."""
    absent, parts = dict(arch.places), {}
    vectors: dict[tuple[int, str], list[tuple[int, np.ndarray]]] = {}
    for maps, content in pieces:
        place = arch.places[maps[0]]
        for name in maps:
            if name not in absent:
                raise FormatError(f"tensor {name!r} is there twice")
            del absent[name]
        if isinstance(content, np.ndarray):
            vectors.setdefault((place.layer, place.part), []).append((place.offset, content))
        else:
            parts.setdefault((place.layer, place.part), []).append(content)
    if absent:
        raise FormatError(f"the file lacks {len(absent)} tensors of its model, {next(iter(absent))!r} first")
    shared = 0
    for (layer, part), content in parts.items():
        if part in ("embedding", "ngrams") and len(content) != 1:
            raise FormatError(f"the {part} is in several pieces")
        if part == "ngrams":
            model.set_ngrams(content[0], arch.ngram_order)
        elif part == "embedding":
            model.set_embedding(content[0])
            if arch.tied:
                model.set_linear(-1, "head", content)
        else:
            for use in (uses := _uses(arch, layer)):
                model.set_linear(use, part, content)
            shared += (len(uses) - 1) * sum(packed.nbytes for packed in content)
    own = {
        (layer, part) for layer, part in vectors if part.endswith("norm") and part not in ("q_norm", "k_norm")
    }
    for (layer, part), found in vectors.items():
        whole = np.concatenate([values for _, values in sorted(found, key=lambda piece: piece[0])])
        whole = whole + np.float32(arch.norm_offset) if "norm" in part else whole
        for use in [layer] if (layer, part) in own else _uses(arch, layer):
            model.set_vector(use, part, whole)
    return shared


def _uses(arch: Architecture, layer: int) -> list[int]:
    """The layers that use the maps of `layer`; -1, what belongs to no layer, is its own."""
    return [use for use, owner in enumerate(arch.owners) if owner == layer] or [layer]


def _parts(entry: Entry, arch: Architecture, threads: int, arena: Any) -> Iterator[Piece]:
    """(names, packed matrix or float32 vector) of what an entry holds: one a linear map it serves."""
    columns = 0 if len(entry.tensor.shape) < 2 else entry.tensor.shape[1]
    for name, rows in zip(entry.maps, entry.rows, strict=True):
        if name not in arch.places:
            raise FormatError(f"tensor {name!r} is no part of a {arch.family}{nearest(name, arch.places)}")
        shape = (rows, columns) if columns else (rows,)
        if entry.transposed or arch.places[name].shape != shape or len(entry.tensor.shape) > 2:
            raise FormatError(f"tensor {name!r} is {shape}, the config asks for {arch.places[name].shape}")
    if not columns:
        yield list(entry.maps), entry.tensor.dense()
        return
    q, row, column = integers(entry.tensor, entry.maps[0])
    # One matrix for each run of rows whose outputs follow each other: q, k, v and gate, up are one.
    runs: list[tuple[list[str], int, int]] = []  # names, first row, end
    start = 0
    for name, rows in zip(entry.maps, entry.rows, strict=True):
        place = arch.places[name]
        if runs:
            names, first, end = runs[-1]
            head = arch.places[names[0]]
            if (head.layer, head.part, head.offset + end - first) == (place.layer, place.part, place.offset):
                runs[-1] = ([*names, name], first, end + rows)
                start += rows
                continue
        runs.append(([name], start, start + rows))
        start += rows
    for names, first, end in runs:
        place = arch.places[names[0]]
        packed = _core.pack(q[first:end], row[first:end], column, place.offset, threads, arena)
        yield names, packed


def integers(tensor: Stored, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the run layout is packed from: integers (m, n), row scales (m,), column scales (n,).

    A lattice's own; of any other matrix 16-bit integers and a scale a row: exact enough, but neither small nor fast.
    """
    if isinstance(tensor, Lattice):
        return tensor.q, tensor.row.values(), tensor.col.values()
    matrix = tensor.dense()
    if not np.isfinite(matrix).all():
        raise FormatError(f"tensor {name!r} holds numbers that are not finite")
    row = np.maximum(np.abs(matrix).max(axis=1), np.float32(1e-30)) / np.float32(_DENSE_STEPS)
    column = np.ones(matrix.shape[1], np.float32)
    return np.rint(matrix / row[:, None]).astype(np.int32), row.astype(np.float32), column
