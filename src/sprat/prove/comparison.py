"""`compare`: several files of one model beside their original, on the same text."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sprat.errors import ProofError
from sprat.progress import Progress, silent
from sprat.prove import across, honesty
from sprat.prove import text as texts
from sprat.prove.chart import COLOURS, Chart, Series
from sprat.prove.environment import machine, sha256, versions
from sprat.prove.metrics import Metrics, compare, summarise
from sprat.prove.pairs import Pair, pairs
from sprat.prove.remembered import remember
from sprat.prove.settings import Settings

if TYPE_CHECKING:
    import torch

    from sprat.run.tokenizer import TextTokenizer

SCHEMA = "sprat.comparison/1"
_DEQUANTIZED = "PyTorch, dequantized (llama-cpp-python is not installed)"


@dataclass(frozen=True)
class Row:
    """One of the models. bytes: everything that running it needs, as it lies on disk."""

    name: str
    ref: str
    kind: str
    """sprat | gguf | folder | hub | package"""
    engine: str
    """What computed it."""
    bytes: int
    sha256: str
    metrics: Metrics
    reason: str
    """Why KL cannot be had; else empty."""


@dataclass(frozen=True)
class Comparison:
    """Models measured on the same contexts, and which of them differ."""

    rows: list[Row]
    pairs: list[Pair]
    against: dict[str, Any]
    text: dict[str, Any]
    settings: dict[str, Any]
    warnings: list[str]
    command: str
    versions: dict[str, str]
    machine: dict[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values; ends of intervals that are infinite are null."""
        plain = asdict(self)
        plain["rows"] = [asdict(row) | {"metrics": row.metrics.to_json()} for row in self.rows]
        plain["pairs"] = [asdict(pair) | {"difference": pair.difference.to_json()} for pair in self.pairs]
        return {"schema": SCHEMA} | plain

    def svg(self) -> str:
        """KL against bytes, a point a model."""
        known = sorted((row for row in self.rows if row.metrics.kl is not None), key=lambda row: row.bytes)
        if not known:
            raise ProofError("there is no KL to draw: every model cuts text into tokens of its own")
        kinds = list(dict.fromkeys(row.kind for row in known))
        series = []
        for kind, colour in zip(kinds, COLOURS, strict=False):
            found = [
                (row, row.metrics.kl) for row in known if row.kind == kind and row.metrics.kl is not None
            ]
            series.append(
                Series(
                    _KINDS[kind],
                    [(row.bytes / 1e6, kl.value) for row, kl in found],
                    colour,
                    line="",
                    intervals=[(kl.low, kl.high) if np.isfinite(kl.low) else None for _, kl in found],
                    labels=[row.name for row, _ in found],
                )
            )
        return Chart(
            title=f"{self.against['name']}: {len(known)} files beside the original",
            subtitle=f"KL on {self.text['path']}, 95 % intervals",
            x_label="on disk, MB (10⁶ bytes)",
            y_label="KL, nats a token",
            series=series,
        ).svg()


_KINDS = {
    "sprat": ".sprat",
    "gguf": "GGUF",
    "folder": "Hugging Face folder",
    "hub": "from the hub",
    "package": "installed model",
}


def compare_files(
    files: Sequence[str | Path],
    against: str | Path,
    text: str | Path,
    tokens: int | None = None,
    context: int = 512,
    seed: int = 0,
    progress: Progress = silent,
    *,
    dtype: str = "float32",
) -> Comparison:
    """Measure each of `files` against the model `against` on the same contexts of the UTF-8 file `text`.

    files: .sprat files, or what `sprat.load` takes. A GGUF is computed by llama.cpp where llama-cpp-python is
    installed, else dequantized and computed by PyTorch as all others are; its row says which.
    tokens, context, dtype: as `sprat.prove` takes them. The original is run once; one of the files is in memory at a
    time. A file whose tokens are not the original's gets bits per byte alone.
    """
    from sprat.run.tokenizer import TextTokenizer
    from sprat.source.load import load

    started = time.perf_counter()
    tokens, refs = 40 * context if tokens is None else tokens, [str(file) for file in files]
    if twice := [ref for ref, count in Counter(refs).items() if count > 1]:
        raise ProofError(f"{twice[0]} is named twice")
    settings = Settings(tokens, context, context // 2, dtype, seed)
    sample = texts.read(text)
    kinds = [_kind(ref) for ref in refs]  # what is not there is refused before anything long begins
    progress("opening the original", 0, 1)
    source = load(str(against), dtype=_dtype(dtype))
    theirs = TextTokenizer(source.tokenizer.backend_tokenizer)
    contexts = settings.contexts(theirs, [sample])
    original = remember(source.model, source.hash, contexts, progress)
    rows, kl, warnings = [], {}, []
    for name, ref, kind in zip(_names(refs), refs, kinds, strict=True):
        progress(f"opening {name}", 0, 1)
        file = _open(ref, kind, dtype)
        progress(f"opening {name}", 1, 1)
        reason = honesty.different_tokens(file.tokenizer, theirs, [sample])
        if reason:
            metrics, _ = across.bits_per_byte(
                source.model, file.model, (theirs, file.tokenizer), contexts, progress, seed
            )
            warnings.append(f"{name}: {reason}")
        else:
            scores = compare(original, file.model, contexts, _named(progress, name))
            metrics, kl[name] = summarise(scores, seed), scores.kl.sum(axis=1)
        if file.provenance is not None:
            seen = honesty.calibration_overlap(file.provenance, [sample])
            if seen["overlap"]:
                warnings.append(f"about {seen['overlap']:.0%} of {name}'s calibration text is in this text")
        rows.append(Row(name, ref, kind, file.engine, file.bytes, file.sha256, metrics, reason))
        del file
    lowest = min((row.metrics.kl for row in rows if row.metrics.kl), key=lambda e: e.value, default=None)
    said = honesty.warnings(contexts, tokens // context, dtype, lowest, {"overlap": 0.0})
    counted = contexts.mask.sum(axis=1)
    words = ["sprat", "compare", *refs, "--against", source.ref, "--text", str(text), "--tokens", str(tokens)]
    words += ["--context", str(context), "--dtype", dtype, "--seed", str(seed)]
    return Comparison(
        rows=rows,
        pairs=pairs(kl, counted, contexts.clusters, seed) if len(kl) > 1 else [],
        against={"ref": source.ref, "name": source.name, "bytes": source.original_bytes, "hash": source.hash},
        text=texts.described([sample]),
        settings=settings.to_json()
        | {"contexts": len(contexts.ids), "unit": contexts.unit, "scored_tokens": int(counted.sum())},
        warnings=said + warnings,
        command=shlex.join(words),
        versions=versions(),
        machine=machine(),
        seconds=round(time.perf_counter() - started, 3),
    )


def _kind(ref: str) -> str:
    """What `ref` is; raises SourceError, or ProofError, where there is nothing."""
    from sprat.source import places

    if Path(ref).suffix.lower() == ".sprat":
        if not Path(ref).is_file():
            raise ProofError(f"there is no file {ref}")
        return "sprat"
    return places.find(ref).kind


@dataclass(frozen=True)
class _File:
    """What is measured of a file. provenance: what a .sprat says of its origin."""

    model: torch.nn.Module
    tokenizer: TextTokenizer
    bytes: int
    sha256: str
    engine: str = "PyTorch"
    provenance: dict[str, Any] | None = None


def _open(ref: str, kind: str, dtype: str) -> _File:
    from sprat.coding.container import open as open_artifact
    from sprat.prove import llamacpp
    from sprat.run.model import to_torch
    from sprat.run.tokenizer import TextTokenizer, open_tokenizer
    from sprat.source import places
    from sprat.source.load import load, load_tokenizer

    if kind == "sprat":
        artifact, path = open_artifact(Path(ref)), Path(ref)
        model, tokenizer = to_torch(artifact, dtype), open_tokenizer(artifact)
        return _File(model, tokenizer, path.stat().st_size, sha256(path), provenance=artifact.provenance)
    path = places.find(ref).path
    if kind == "gguf" and llamacpp.package() is not None:
        tokenizer = TextTokenizer(load_tokenizer(ref).backend_tokenizer)
        model = llamacpp.Model(llamacpp.LlamaCpp(path))
        return _File(model, tokenizer, path.stat().st_size, sha256(path), llamacpp.version())
    found = load(ref, dtype=_dtype(dtype))
    tokenizer = TextTokenizer(found.tokenizer.backend_tokenizer)
    engine = _DEQUANTIZED if kind == "gguf" else "PyTorch"
    digest = sha256(path) if path.is_file() else found.hash
    return _File(found.model, tokenizer, _size(path, found.tokenizer_files), digest, engine)


def _size(path: Path, tokenizer: dict[str, bytes]) -> int:
    """Bytes on disk: a GGUF holds everything; of a folder the config, the weights and the tokenizer count."""
    if path.is_file():
        return path.stat().st_size
    weights = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return weights + (path / "config.json").stat().st_size + sum(len(data) for data in tokenizer.values())


def _dtype(name: str) -> Any:
    from sprat.run.model import torch_dtype

    return torch_dtype(name)


def _names(refs: Sequence[str]) -> list[str]:
    """Short names, and whole ones where short ones are not told apart."""
    short = [Path(ref).resolve().name if Path(ref).exists() else ref for ref in refs]
    counts = Counter(short)
    return [name if counts[name] == 1 else ref for name, ref in zip(short, refs, strict=True)]


def _named(progress: Progress, name: str) -> Progress:
    return lambda stage, done, total: progress(f"{stage}: {name}", done, total)
