"""Was the evaluation text part of the calibration text? A small sketch, kept in the file, can tell.

The sketch is the `size` smallest 64-bit hashes of all runs of eight words (bottom-k sampling, Broder 1997):
an even sample of the calibration text's runs. The share of them that occur in another text estimates how
much of the calibration text is in it, without keeping the text.

Of a long calibration text a short one can be a small share and yet have been seen whole. With t the largest hash of the
sketch, all runs of the calibration text up to t are in it, so that of another text's runs up to t, an even sample too,
the share that is in the sketch estimates how much of *that* text was seen.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
from collections.abc import Iterator

import numpy as np

from sprat.errors import ProofError

_WORDS = 8
_LEAST = 8


def sketch(text: str, size: int = 64) -> str:
    """Base64 of at most `size` hashes (64: about 700 characters); empty for a text of under eight words."""
    smallest = heapq.nsmallest(size, set(_runs(text)))
    return base64.b64encode(np.array(smallest, "<u8").tobytes()).decode()


def shared(sketch: str, text: str) -> float:
    """The estimated share, 0..1, of the sketched text that occurs word for word in `text`."""
    sample = _sample(sketch)
    return len(sample.intersection(_runs(text))) / len(sample) if sample else 0.0


def seen(sketch: str, text: str) -> float:
    """The estimated share, 0..1, of `text` that occurs word for word in the sketched text; too low where fewer than
    `_LEAST` of its runs can be asked, as one that is in both by chance should not count for all."""
    sample = _sample(sketch)
    last = max(sample, default=-1)
    asked = {run for run in _runs(text) if run <= last}
    return len(sample & asked) / max(_LEAST, len(asked))


def _sample(sketch: str) -> set[int]:
    try:
        return set(np.frombuffer(base64.b64decode(sketch, validate=True), "<u8").tolist())
    except ValueError as error:
        raise ProofError(f"the calibration sketch in the file cannot be read: {error}") from None


def _runs(text: str) -> Iterator[int]:
    words = text.casefold().split()
    for i in range(len(words) - _WORDS + 1):
        run = " ".join(words[i : i + _WORDS]).encode("utf-8", "surrogatepass")
        yield int.from_bytes(hashlib.blake2b(run, digest_size=8).digest(), "little")
