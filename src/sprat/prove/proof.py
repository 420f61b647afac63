"""`prove`: what a `.sprat` lost against its original, on a text, in one JSON-able value."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sprat
from sprat.errors import ProofError
from sprat.progress import Progress, silent
from sprat.prove import overlap
from sprat.prove import text as texts
from sprat.prove.metrics import Metrics, compare, summarise
from sprat.prove.tasks.run import read_tasks, run_tasks

if TYPE_CHECKING:
    from sprat.run.tokenizer import TextTokenizer
    from sprat.source.load import Source

SCHEMA = "sprat.proof/1"
#: Below this many contexts an interval of 95 % is a rough guess, and the proof says so.
FEW_CONTEXTS = 8


@dataclass(frozen=True)
class Proof:
    """Everything that was measured and everything that is needed to measure it again."""

    file: dict[str, Any]
    against: dict[str, Any]
    text: dict[str, Any]
    settings: dict[str, Any]
    metrics: Metrics
    tasks: list[dict[str, Any]]
    calibration: dict[str, Any]
    warnings: list[str]
    versions: dict[str, str]
    machine: dict[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the schema's name and version first; figures that are infinite become null."""
        return {"schema": SCHEMA} | asdict(self) | {"metrics": _finite(self.metrics.to_json())}


def prove(
    file: str | Path,
    against: str | Path | Source,
    text: str | Path,
    tokens: int | None = None,
    context: int = 512,
    seed: int = 0,
    progress: Progress = silent,
    *,
    skip: int | None = None,
    dtype: str = "float32",
    resamples: int = 2000,
    tasks: Sequence[str] = (),
    task_items: int | None = None,
) -> Proof:
    """Compare `file` with the model `against` on the UTF-8 text file `text`.

    tokens: how many tokens of context to read (default 20,480: 40 contexts of 512), spread evenly over the
    text.
    context: tokens a context. skip: the logits at positions skip .. context−2 are scored (default context //
    2), so that every scored token has that much in front of it. dtype: what both models are computed in;
    bfloat16 is about twice as fast where the CPU has it, and its own noise is a KL of about 1e-3. tasks,
    task_items: questions to ask both models besides (see sprat.prove.tasks.run). Raises
    `ProofError` where the two cannot be compared or the text cannot serve.
    """
    from sprat.coding.container import open as open_artifact
    from sprat.run.model import to_torch
    from sprat.run.tokenizer import open_tokenizer

    started = time.perf_counter()
    skip = context // 2 if skip is None else skip
    tokens = 40 * context if tokens is None else tokens
    _check_settings(context, skip, tokens)
    sample = texts.read(text)
    questions = read_tasks(tasks, task_items)
    artifact = open_artifact(Path(file))
    tokenizer = open_tokenizer(artifact)
    prefix = tokenizer.prefix()
    if len(prefix) > skip:
        raise ProofError(
            f"skip must be at least {len(prefix)}: this model opens every text with that many tokens"
        )
    contexts = texts.cut(tokenizer.backend, sample, length=context, skip=skip, tokens=tokens, prefix=prefix)
    progress("opening the original", 0, 1)
    source = _load(against, dtype)
    same_tokens(tokenizer, source.tokenizer, sample.content)
    progress("opening the file", 0, 1)
    metrics = summarise(compare(source.model, to_torch(artifact, dtype), contexts, progress), seed, resamples)
    calibration = calibration_overlap(artifact.provenance, sample)
    warnings = _warnings(metrics, len(contexts.ids), tokens // context, dtype, calibration)
    return Proof(
        file={"path": str(file), "bytes": Path(file).stat().st_size, "sha256": sha256(Path(file))},
        against={"ref": source.ref, "name": source.name, "bytes": source.original_bytes, "hash": source.hash},
        text={"path": sample.name, "bytes": sample.nbytes, "sha256": sample.sha256},
        settings={
            "context": context,
            "skip": skip,
            "contexts": len(contexts.ids),
            "scored_tokens": len(contexts.ids) * contexts.scored,
            "scored_bytes": int(contexts.bytes_scored.sum()),
            "dtype": dtype,
            "seed": seed,
            "resamples": resamples,
        },
        metrics=metrics,
        tasks=run_tasks(source, artifact, questions, seed=seed, progress=progress) if tasks else [],
        calibration=calibration,
        warnings=warnings,
        versions=versions(),
        machine=machine(),
        seconds=round(time.perf_counter() - started, 3),
    )


def _check_settings(context: int, skip: int, tokens: int) -> None:
    if context < 4:
        raise ProofError(f"a context must be at least 4 tokens, not {context}")
    if not 0 <= skip <= context - 2:
        raise ProofError(f"skip must lie between 0 and context − 2 = {context - 2}, not {skip}")
    if tokens < context:
        raise ProofError(f"tokens must be at least one context ({context}), not {tokens}")


def _load(against: str | Path | Source, dtype: str) -> Source:
    if not isinstance(against, str | Path):
        return against
    from sprat.run.model import torch_dtype
    from sprat.source.load import load

    return load(str(against), dtype=torch_dtype(dtype))


def same_tokens(mine: TextTokenizer, theirs: Any, content: str, sample: int = 100_000) -> None:
    """`ProofError` where two tokenizers cut the text's first characters differently: KL compares
    distributions over the same tokens. `theirs` is a transformers tokenizer."""
    piece = content[:sample]
    a, b = mine.encode(piece, special=False), list(theirs(piece, add_special_tokens=False)["input_ids"])
    if a == b:
        return
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    raise ProofError(
        f"the file and the original cut text into different tokens (from token {at} on: "
        f"{mine.decode(a[at : at + 3])!r} against {theirs.decode(b[at : at + 3])!r}). KL and same-top "
        f"compare distributions over the same tokens, so they cannot be had: is this the model that the file "
        f"was made from?"
    )


def calibration_overlap(provenance: dict[str, Any], sample: texts.Text) -> dict[str, Any]:
    """Whether the evaluation text was seen in calibration, as far as the file's provenance can tell.

    Reads provenance["calibration"]: {"source": "self" or a name, "sha256": [of each file], "sketch":
    overlap.sketch}.
    """
    said = provenance.get("calibration") or {}
    origin = str(said.get("source", "unknown"))
    result: dict[str, Any] = {"source": origin, "overlap": None}
    if origin == "self":
        result["overlap"] = 0.0
    elif sample.sha256 in said.get("sha256", []):
        result["overlap"] = 1.0
    elif isinstance(said.get("sketch"), str):
        result["overlap"] = round(overlap.shared(said["sketch"], sample.content), 4)
    return result


def _warnings(
    metrics: Metrics, contexts: int, asked: int, dtype: str, calibration: dict[str, Any]
) -> list[str]:
    said = []
    if contexts < asked:
        said.append(f"the text holds {contexts} contexts of the {asked} that were asked for")
    if contexts < FEW_CONTEXTS:
        said.append(f"{contexts} contexts are too few for intervals to be trusted: give more text")
    if dtype != "float32" and metrics.kl.value < 0.02:
        said.append(f"the noise of {dtype} is a KL of about 0.001: use float32 for differences this small")
    if calibration["overlap"] is None:
        said.append("the file does not say what it was calibrated on: overlap with this text is unknown")
    elif calibration["overlap"] > 0:
        said.append(
            f"about {calibration['overlap']:.0%} of the calibration text is in this text: "
            f"the figures flatter the file"
        )
    return said


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    found = {"sprat": sprat.__version__, "python": platform.python_version()}
    for name in ("numpy", "torch", "transformers", "tokenizers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The processor and what this process may use of it."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(errors="replace").splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model
        )
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": model, "cores": usable, "system": f"{platform.system()} {platform.machine()}"}


def _finite(value: Any) -> Any:
    """JSON has no infinity: an interval that cannot be had is null."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value
