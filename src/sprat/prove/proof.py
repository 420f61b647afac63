"""`prove`: what a `.sprat` lost against its original, on a text, in one JSON-able value (docs/proof.md)."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.errors import ProofError
from sprat.folders import write_whole
from sprat.progress import Progress, silent
from sprat.prove import cost, honesty
from sprat.prove import peers as others
from sprat.prove import text as texts
from sprat.prove.environment import machine, sha256, versions
from sprat.prove.intervals import Estimate
from sprat.prove.metrics import Metrics
from sprat.prove.settings import Settings

if TYPE_CHECKING:
    from sprat.coding.container import Artifact
    from sprat.prove.figures import Figures
    from sprat.run.tokenizer import TextTokenizer
    from sprat.source.load import Source

SCHEMA = "sprat.proof/2"
#: The file of a proof's folder that holds all of it.
RESULT = "result.json"


@dataclass(frozen=True)
class Proof:
    """Everything that was measured and everything that is needed to measure it again."""

    file: dict[str, Any]
    against: dict[str, Any]
    text: dict[str, Any]
    settings: dict[str, Any]
    metrics: Metrics
    positions: list[dict[str, Any]]
    frequencies: list[dict[str, Any]]
    layers: list[dict[str, Any]] | None
    generations: dict[str, Any] | None
    tasks: list[dict[str, Any]] | None
    peers: list[dict[str, Any]] | None
    cost: dict[str, Any]
    ledger: list[dict[str, Any]]
    calibration: dict[str, Any]
    warnings: list[str]
    command: str
    recipe: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the schema's name and version first; ends of intervals that are infinite are null."""
        return {"schema": SCHEMA} | {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def save(self, folder: str | Path) -> None:
        """Write result.json, and README.md and index.html made from it, into `folder`."""
        from sprat.prove.report import write

        place, result = Path(folder), self.to_json()
        place.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(place / RESULT, text)
        write(result, place)


def prove(
    file: str | Path,
    against: str | Path | Source,
    text: str | Path | Sequence[str | Path],
    tokens: int | None = None,
    context: int = 512,
    seed: int = 0,
    progress: Progress = silent,
    *,
    skip: int | None = None,
    dtype: str = "float32",
    resamples: int = 2000,
    layers: bool = False,
    generations: int = 0,
    speed: bool = False,
    tasks: Sequence[str] = (),
    items: int | None = None,
    peers: Sequence[str | Path] = (),
    loaded: bool = False,
) -> Proof:
    """Compare `file` with the model `against` on the UTF-8 text file `text`, or several.

    tokens: how many tokens of context to read (default 20,480: 40 contexts of 512), spread evenly over the text.
    context: tokens a context. skip: the logits at positions skip .. context−2 are scored (default context // 2), so
    that every scored token has that much in front of it. dtype: what both models are computed in; bfloat16 is about
    twice as fast where the CPU has it, and its own noise is a KL of about 1e-3.
    layers: also measure each layer alone. generations: let both models continue that many pieces of the text.
    speed: also measure, in a process of its own, what running the file takes here. tasks, items: questions for both
    models, as `sprat.prove.tasks.run.run_tasks` takes them.
    peers: records of other files of that model on that text (`sprat.prove.peers.read`), for the report's picture.
    loaded: a model that is handed in is as `original` gives it, so that what it says may be remembered.
    Raises `ProofError` where the two cannot be compared or the text cannot serve.
    """
    from sprat.prove.tasks.run import read_tasks, run_tasks

    started = time.perf_counter()
    tokens, skip = 40 * context if tokens is None else tokens, context // 2 if skip is None else skip
    settings = Settings(
        tokens, context, skip, dtype, seed, resamples, layers, generations, speed, tuple(tasks), items
    )
    questions = read_tasks(settings.tasks, items)
    records = others.read(peers)
    names = [text] if isinstance(text, str | Path) else list(text)
    sides = _opened(file, against, names, settings, loaded, progress)
    artifact, source = sides.artifact, sides.source
    read = texts.described(sides.sample)
    points = records.points(source.hash, read["sha256"], context)
    found = _measured(sides, settings, progress)
    answers = None
    if settings.tasks:
        answers = run_tasks(source, artifact, questions, seed=seed, remember=sides.known, progress=progress)
    spent, failed = _cost(file, source.original_bytes, speed, progress)
    seen = honesty.calibration_overlap(artifact.provenance, sides.sample)
    asked, kl = tokens // context, found.metrics.kl
    said = honesty.warnings(artifact.config, sides.contexts, asked, dtype, kl, seen)
    return Proof(
        file=_file(file, artifact),
        against={"ref": source.ref, "name": source.name, "bytes": source.original_bytes, "hash": source.hash},
        text=read,
        settings=settings.to_json() | _as_found(sides.contexts, found),
        metrics=found.metrics,
        positions=found.positions,
        frequencies=found.frequencies,
        layers=found.layers,
        generations=found.generations,
        tasks=answers,
        peers=points or None,
        cost=spent,
        ledger=_ledger(artifact),
        calibration=seen,
        warnings=[warning for warning in (found.reason, *said, failed) if warning],
        command=settings.command(file, source.ref, names),
        recipe=dict(artifact.recipe),
        versions=versions(),
        machine=machine(),
        seconds=round(time.perf_counter() - started, 3),
    )


@dataclass(frozen=True)
class _Sides:
    """A file and its original, and what both read. known: the original is as its hash says, and so what it predicts may
    be remembered."""

    artifact: Artifact
    tokenizer: TextTokenizer
    source: Source
    known: bool
    sample: list[texts.Text]
    contexts: texts.Contexts


def _opened(
    file: str | Path,
    against: str | Path | Source,
    names: Sequence[str | Path],
    settings: Settings,
    loaded: bool,
    progress: Progress,
) -> _Sides:
    """What `prove` is asked to compare; the original comes last, for it takes longest."""
    from sprat.coding.container import open as open_artifact
    from sprat.run.tokenizer import open_tokenizer

    sample = [texts.read(name) for name in names]
    artifact = open_artifact(Path(file))
    tokenizer = open_tokenizer(artifact)
    contexts = settings.contexts(tokenizer, sample)
    progress("opening the original", 0, 1)
    named = isinstance(against, str | Path)
    source = original(against, settings.dtype) if named else against
    return _Sides(artifact, tokenizer, source, named or loaded, sample, contexts)


def _measured(sides: _Sides, settings: Settings, progress: Progress) -> Figures:
    """Both models on the contexts, the file unpacked for as long as that takes."""
    from sprat.prove.figures import measure
    from sprat.prove.remembered import remember
    from sprat.run.model import to_torch
    from sprat.run.tokenizer import TextTokenizer

    source, sample, contexts = sides.source, sides.sample, sides.contexts
    theirs = TextTokenizer(source.tokenizer.backend_tokenizer)
    kept = sides.known and not honesty.different_tokens(sides.tokenizer, theirs, sample)
    remembered = remember(source.model, source.hash, contexts, progress) if kept else None
    progress("opening the file", 0, 1)
    compressed = to_torch(sides.artifact, settings.dtype)
    return measure(
        source.model, compressed, (theirs, sides.tokenizer), sample, contexts, settings, progress, remembered
    )


def _cost(
    file: str | Path, original_bytes: int, speed: bool, progress: Progress
) -> tuple[dict[str, Any], str]:
    """The proof's `cost`, and why a speed that was asked for is not in it, else empty."""
    found: dict[str, Any] = {"bytes": Path(file).stat().st_size, "original_bytes": original_bytes}
    if not speed:
        return found, ""
    progress("measuring the speed", 0, 1)
    try:
        return found | cost.speed(file), ""
    except ProofError as error:
        return found, str(error)


def _file(file: str | Path, artifact: Artifact) -> dict[str, Any]:
    size, weights = Path(file).stat().st_size, artifact.ledger().weights
    return {
        "path": str(file),
        "bytes": size,
        "sha256": sha256(Path(file)),
        "weights": weights,
        "bits_per_weight": 8 * size / weights if weights else None,
    }


def _as_found(contexts: texts.Contexts, found: Figures) -> dict[str, Any]:
    """What the text made of the settings."""
    return {
        "contexts": len(contexts.ids),
        "documents": contexts.document_count,
        "unit": contexts.unit,
        "scored_tokens": int(contexts.mask.sum()),
        "scored_bytes": found.scored_bytes,
        "round_trip": not contexts.altered,
        "engine": "torch",
    }


def _ledger(artifact: Artifact) -> list[dict[str, Any]]:
    from sprat.coding.parts import by_kind, parts

    return [
        {"kind": part.kind, "bytes": part.nbytes, "weights": part.weights, "zeros": part.zeros}
        for part in by_kind(parts(artifact.ledger()))
    ]


def original(ref: str | Path, dtype: str) -> Source:
    """The model that a file is compared with; `SourceError` where it cannot be had."""
    from sprat.run.model import torch_dtype
    from sprat.source.load import load

    return load(str(ref), dtype=torch_dtype(dtype))


def _plain(value: Any) -> Any:
    """Estimates, and what holds some, as JSON has them."""
    if isinstance(value, Estimate | Metrics):
        return value.to_json()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
