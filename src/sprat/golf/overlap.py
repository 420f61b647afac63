"""Which documents stand whole inside others, however either breaks its lines.

There may be many thousand on both sides: a document is looked for only where its first bytes stand, and those of all
are found in one pass, by a hash of the bytes at every place (multiplicative: Knuth, The Art of Computer Programming 3,
6.4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Bytes of a document that are hashed, in words of 8, each times an odd number; and bits of the hash.
_HEAD, _WORD, _BITS = 32, 8, 22
_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64
)


def plain(document: str) -> str:
    """Every white space as one blank: what is compared."""
    return " ".join(document.split())


def inside(outer: Sequence[str], inner: Sequence[str]) -> list[str]:
    """The documents of `inner` that one of `outer` holds, in their order."""
    sought = {document: plain(document).encode() for document in inner}
    around = [plain(document).encode() for document in outer]
    short = {text for text in sought.values() if len(text) < _HEAD}
    found = {text for text in short if any(text in whole for whole in around)}
    heads: dict[bytes, set[bytes]] = {}
    for text in sought.values():
        if text not in short:
            heads.setdefault(text[:_HEAD], set()).add(text)
    likely = np.zeros(1 << _BITS, bool)
    for head in heads:
        likely[_hashes(head)] = True
    for whole in around if heads else ():
        for at in np.flatnonzero(likely[_hashes(whole)]).tolist():
            begun = heads.get(whole[at : at + _HEAD], ())
            found.update(text for text in begun if whole.startswith(text, at))
    return [document for document, text in sought.items() if text in found]


def _hashes(text: bytes) -> np.ndarray:
    """uint64 (places,): of the _HEAD bytes at each place of `text` that has so many behind it, a number of _BITS."""
    if len(text) < _HEAD:
        return np.zeros(0, np.uint64)
    places = len(text) - _HEAD + 1
    total = np.zeros(places, np.uint64)
    for part, factor in enumerate(_FACTORS):
        total += factor * np.ndarray((places,), np.uint64, text, part * _WORD, (1,))
    return total >> np.uint64(64 - _BITS)
