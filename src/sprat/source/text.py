"""Calibration text as token ids: from files, standard input, a hub data set, or the model itself."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from weakref import WeakKeyDictionary

import numpy as np

from sprat.errors import SourceError, nearest
from sprat.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from sprat.source.load import Source

_PIECE = 1 << 20
#: What streams have given.
_READ: WeakKeyDictionary[BinaryIO, bytes] = WeakKeyDictionary()


@dataclass(frozen=True)
class Calibration:
    """Contexts to measure a model on."""

    ids: np.ndarray
    """int64 (contexts, context)"""
    description: str
    hash: str
    """SHA-256 (hex) of the ids."""
    text_hashes: tuple[str, ...] = ()
    """SHA-256 (hex) of each text that was read."""

    @property
    def tokens(self) -> int:
        return self.ids.size


def calibration_ids(
    source: Source,
    spec: str | Path | Sequence[str | Path],
    tokens: int,
    context: int,
    seed: int = 0,
    progress: Progress = silent,
) -> Calibration:
    """At least `tokens` tokens, in whole contexts of `context`.

    `spec`: "self" (the model writes), a file or several (UTF-8; "-" is standard input), or "hub:NAME[:SPLIT]"
    (a data set with a column "text"). A longer text is sampled evenly. Raises `SourceError`: unreadable, or
    too short.
    """
    if tokens < 1 or context < 2:
        raise SourceError(f"calibration needs tokens >= 1 and context >= 2, not {tokens} and {context}")
    positions = getattr(source.model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and context > positions:
        raise SourceError(
            f"{source.name} was made for texts of up to {positions} tokens: calibration contexts of {context} are "
            f"too long for it (the recipe's `context`: --set context={positions})"
        )
    contexts = -(-tokens // context)
    specs = [str(s) for s in ([spec] if isinstance(spec, str | Path) else spec)]
    if specs == ["self"]:
        from sprat.source.selftext import write

        ids = write(source, contexts, context, seed=seed, progress=progress).numpy()
        return _calibration(ids, f"written by the model itself (temperature 1, seed {seed})", ())
    if not specs:
        raise SourceError("no calibration text was named: give a file, '-', hub:NAME or self")
    stream, hashes = _stream(source, specs, tokens)
    if len(stream) < contexts * context:
        raise SourceError(
            f"the calibration text is too short: {len(stream)} tokens in {', '.join(specs)}, "
            f"at least {contexts * context} are needed (what is held out counts too). Give more text, ask for fewer "
            "tokens (sprat heal: --tokens N, elsewhere --set tokens=N), or use 'self': the model writes its own"
        )
    starts = spread(len(stream) // context, contexts, seed) * context
    ids = stream[starts[:, None] + np.arange(context)]
    return _calibration(ids, ", ".join(Path(s).name or s for s in specs), hashes)


def further(source: Source, specs: Sequence[str], tokens: int, known: np.ndarray, seed: int) -> np.ndarray:
    """Up to `tokens` more tokens of texts that `known` was drawn from by `calibration_ids`, int64 (contexts, context):
    windows of the same grid, none of which is one of `known`, int64 (n, context). As many as there are."""
    context = known.shape[1]
    stream, _ = _stream(source, specs, tokens + known.size)
    windows = stream[: len(stream) // context * context].reshape(-1, context)
    seen = {row.tobytes() for row in known}
    fresh = windows[[row.tobytes() not in seen for row in windows]]
    wanted = min(len(fresh), -(-tokens // context))
    return fresh[spread(len(fresh), wanted, seed)] if wanted else fresh


def _stream(source: Source, specs: Sequence[str], tokens: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The tokens of all texts one behind the other, int64 (n,), and each text's SHA-256."""
    texts = [_read(s, tokens) for s in specs]
    stream = np.concatenate([tokenize(source.tokenizer, text) for text in texts])
    return stream, tuple(hashlib.sha256(text.encode()).hexdigest() for text in texts)


def tokenize(tokenizer: PreTrainedTokenizerFast, text: str) -> np.ndarray:
    """Token ids, int64 (n,), without special tokens; cut at line ends into pieces that bound the memory."""
    ids: list[int] = []
    start = 0
    while start < len(text):
        end = len(text)
        if start + _PIECE < end:
            end = (text.rfind("\n", start, start + _PIECE) + 1) or start + _PIECE
        ids.extend(tokenizer.backend_tokenizer.encode(text[start:end], add_special_tokens=False).ids)
        start = end
    return np.array(ids, np.int64)


def spread(available: int, wanted: int, seed: int) -> np.ndarray:
    """`wanted` of `available` places, one at random in each of `wanted` equal stretches: int64, ascending."""
    edges = np.arange(wanted + 1) * available // wanted
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def _calibration(ids: np.ndarray, description: str, hashes: tuple[str, ...]) -> Calibration:
    ids = np.ascontiguousarray(ids, np.int64)
    return Calibration(ids, description, hashlib.sha256(ids.tobytes()).hexdigest(), hashes)


def _read(spec: str, tokens: int) -> str:
    if spec == "-":
        return _decode(_standard_input(), "standard input")
    if spec.startswith("hub:"):
        return _data_set(spec, tokens)
    path = Path(spec).expanduser()
    if path.is_dir():
        raise SourceError(f"{spec} is a folder; a calibration text is a UTF-8 file in it, or several")
    if not path.is_file():
        here = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise SourceError(
            f"there is no calibration text {spec}{nearest(path.name, [*here, 'self'])}; "
            "a text is a UTF-8 file, '-' (standard input), hub:NAME[:SPLIT] or self"
        )
    return _decode(path.read_bytes(), spec)


def _standard_input() -> bytes:
    """All of it, also when it is asked for again: every candidate of `--method auto` begins with its text."""
    stream = sys.stdin.buffer
    if stream not in _READ:
        _READ[stream] = stream.read()
    return _READ[stream]


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{name} is not UTF-8 text (byte {error.start}: {error.reason})") from error


def _data_set(spec: str, tokens: int) -> str:
    """Rows of a hub data set until there are surely enough tokens (one is rarely over 16 characters)."""
    found: list[str] = []
    for row in rows(spec):
        found.append(row)
        tokens -= len(row) // 16
        if tokens < 0:
            break
    return "\n".join(found)


def rows(spec: str) -> Iterator[str]:
    """The column "text" of a hub data set, "hub:NAME[:SPLIT]", as it streams in."""
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]  (optional)
    except ImportError as error:
        raise SourceError(f"{spec} needs the package datasets: pip install datasets") from error
    name, _, split = spec.removeprefix("hub:").partition(":")
    try:
        for row in load_dataset(name, split=split or "train", streaming=True):
            text = row.get("text")
            if not isinstance(text, str):
                raise SourceError(f"{spec} has no column 'text'; it has {', '.join(map(str, row))}")
            yield text
    except SourceError:
        raise
    except Exception as error:  # no network shows as one of many types
        raise SourceError(
            f"{spec} cannot be read ({type(error).__name__}: {error}); without a network give a file"
        ) from error
