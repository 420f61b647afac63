"""The files that `compare` takes: a .sprat, or whatever a model is loaded from, each opened to be measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.errors import ProofError
from sprat.prove.environment import sha256

if TYPE_CHECKING:
    import torch

    from sprat.run.tokenizer import TextTokenizer

_DEQUANTIZED = "PyTorch, dequantized (llama-cpp-python is not installed)"


def kind_of(ref: str) -> str:
    """What `ref` is; raises SourceError, or ProofError, where there is nothing."""
    from sprat.source import places

    if Path(ref).suffix.lower() == ".sprat":
        if not Path(ref).is_file():
            raise ProofError(f"there is no file {ref}")
        return "sprat"
    return places.find(ref).kind


@dataclass(frozen=True)
class File:
    """What is measured of a file. provenance: what a .sprat says of its origin."""

    model: torch.nn.Module
    tokenizer: TextTokenizer
    bytes: int
    sha256: str
    engine: str = "PyTorch"
    provenance: dict[str, Any] | None = None


def open_file(ref: str, kind: str, dtype: str) -> File:
    """kind: as `kind_of` says. A GGUF is computed by llama.cpp where llama-cpp-python is installed."""
    from sprat.coding.container import open as open_artifact
    from sprat.prove import llamacpp
    from sprat.run.model import to_torch, torch_dtype
    from sprat.run.tokenizer import TextTokenizer, open_tokenizer
    from sprat.source import places
    from sprat.source.load import load, load_tokenizer

    if kind == "sprat":
        artifact, path = open_artifact(Path(ref)), Path(ref)
        model, tokenizer = to_torch(artifact, dtype), open_tokenizer(artifact)
        return File(model, tokenizer, path.stat().st_size, sha256(path), provenance=artifact.provenance)
    path = places.find(ref).path
    if kind == "gguf" and llamacpp.package() is not None:
        tokenizer = TextTokenizer(load_tokenizer(ref).backend_tokenizer)
        model = llamacpp.Model(llamacpp.LlamaCpp(path))
        return File(model, tokenizer, path.stat().st_size, sha256(path), llamacpp.version())
    found = load(ref, dtype=torch_dtype(dtype))
    tokenizer = TextTokenizer(found.tokenizer.backend_tokenizer)
    engine = _DEQUANTIZED if kind == "gguf" else "PyTorch"
    digest = sha256(path) if path.is_file() else found.hash
    return File(found.model, tokenizer, _size(path, found.tokenizer_files), digest, engine)


def _size(path: Path, tokenizer: dict[str, bytes]) -> int:
    """Bytes on disk: a GGUF holds everything; of a folder the config, the weights and the tokenizer count."""
    if path.is_file():
        return path.stat().st_size
    weights = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return weights + (path / "config.json").stat().st_size + sum(len(data) for data in tokenizer.values())
