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
from sprat.prove.environment import machine, versions
from sprat.prove.files import kind_of, open_file
from sprat.prove.metrics import Metrics, compare, summarise
from sprat.prove.pairs import Pair, pairs
from sprat.prove.remembered import remember
from sprat.prove.settings import Settings

if TYPE_CHECKING:
    import torch

    from sprat.run.tokenizer import TextTokenizer

SCHEMA = "sprat.comparison/1"


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
    from sprat.run.model import torch_dtype
    from sprat.run.tokenizer import TextTokenizer
    from sprat.source.load import load

    started = time.perf_counter()
    tokens, refs = 40 * context if tokens is None else tokens, [str(file) for file in files]
    if twice := [ref for ref, count in Counter(refs).items() if count > 1]:
        raise ProofError(f"{twice[0]} is named twice")
    settings = Settings(tokens, context, context // 2, dtype, seed)
    sample = texts.read(text)
    kinds = [kind_of(ref) for ref in refs]  # what is not there is refused before anything long begins
    progress("opening the original", 0, 1)
    source = load(str(against), dtype=torch_dtype(dtype))
    theirs = TextTokenizer(source.tokenizer.backend_tokenizer)
    contexts = settings.contexts(theirs, [sample])
    remembered = remember(source.model, source.hash, contexts, progress)
    original = _Original(source.model, remembered, theirs, sample, contexts, seed)
    rows, kl, warnings = [], {}, []
    for name, ref, kind in zip(_names(refs), refs, kinds, strict=True):
        row, nats, said = _measured(name, ref, kind, dtype, original, progress)
        rows.append(row)
        warnings += said
        if nats is not None:
            kl[name] = nats
    lowest = min((row.metrics.kl for row in rows if row.metrics.kl), key=lambda e: e.value, default=None)
    said = honesty.warnings(source.config, contexts, tokens // context, dtype, lowest, {"overlap": 0.0})
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


@dataclass(frozen=True)
class _Original:
    """What every file is measured beside. remembered: predicts in the model's place."""

    model: torch.nn.Module
    remembered: torch.nn.Module
    tokenizer: TextTokenizer
    sample: texts.Text
    contexts: texts.Contexts
    seed: int


def _measured(
    name: str, ref: str, kind: str, dtype: str, original: _Original, progress: Progress
) -> tuple[Row, np.ndarray | None, list[str]]:
    """Open a file, measure it and let it go: its row; its KL summed over each context, (contexts,), where there is one;
    and what to warn of."""
    progress(f"opening {name}", 0, 1)
    file = open_file(ref, kind, dtype)
    progress(f"opening {name}", 1, 1)
    contexts, seed, nats, warnings = original.contexts, original.seed, None, []
    reason = honesty.different_tokens(file.tokenizer, original.tokenizer, [original.sample])
    if reason:
        tokenizers = original.tokenizer, file.tokenizer
        metrics, _ = across.bits_per_byte(original.model, file.model, tokenizers, contexts, progress, seed)
        warnings.append(f"{name}: {reason}")
    else:
        scores = compare(original.remembered, file.model, contexts, _named(progress, name))
        metrics, nats = summarise(scores, seed), scores.kl.sum(axis=1)
    if file.provenance is not None:
        seen = honesty.calibration_overlap(file.provenance, [original.sample])
        if seen["overlap"] is None:
            warnings.append(
                f"{name} does not say what it was calibrated on: overlap with this text is unknown"
            )
        elif seen["overlap"]:
            share = f"about {seen['overlap']:.0%} of {name}'s calibration text, or of this text, is in both"
            warnings.append(f"{share}: its figures are flattered")
    return Row(name, ref, kind, file.engine, file.bytes, file.sha256, metrics, reason), nats, warnings


def _names(refs: Sequence[str]) -> list[str]:
    """Short names, and whole ones where short ones are not told apart."""
    short = [Path(ref).resolve().name if Path(ref).exists() else ref for ref in refs]
    counts = Counter(short)
    return [name if counts[name] == 1 else ref for name, ref in zip(short, refs, strict=True)]


def _named(progress: Progress, name: str) -> Progress:
    return lambda stage, done, total: progress(f"{stage}: {name}", done, total)
