"""From what a user typed to files on this machine: a folder, a GGUF file, a hub id, an installed package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sprat.errors import SourceError, nearest
from sprat.source.packages import PACKAGES, model_file
from sprat.source.quiet import quiet

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+")
#: What a model needs from a hub repository; pickles (.bin, .pt) stay there, for they can run code.
_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]


@dataclass(frozen=True)
class Place:
    """Where a model lies: a folder with config.json and safetensors, or a `.gguf` file."""

    kind: str
    """folder | hub | gguf | package"""
    path: Path
    name: str


def find(ref: str) -> Place:
    """Resolve `ref`; what exists on disk goes first, then package names, then the hub."""
    path = Path(ref).expanduser()
    if path.is_dir():
        return Place("folder", path, path.resolve().name)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise SourceError(
                f"{ref} is a file but no .gguf; a model is a Hugging Face folder, a .gguf file, "
                f"a hub id (org/name) or an installed model: {', '.join(PACKAGES)}"
            )
        return Place("gguf", path, path.stem)
    if ref.lower() in PACKAGES:
        path = model_file(ref.lower())
        return Place("package", path, path.stem)
    if path.suffix.lower() == ".gguf" or ref.startswith((".", "/", "~")):
        here = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise SourceError(f"there is no file or folder {ref}{nearest(path.name, here)}")
    if _HUB_ID.fullmatch(ref):
        return Place("hub", _download(ref), ref.partition("/")[2])
    raise SourceError(
        f"there is no model {ref!r}{nearest(ref.lower(), PACKAGES)}; a model is a Hugging Face folder, "
        f"a .gguf file, a hub id (org/name) or an installed model: {', '.join(PACKAGES)}"
    )


def _download(ref: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        with quiet():
            return Path(snapshot_download(ref, allow_patterns=_WANTED))
    except GatedRepoError as error:
        raise SourceError(
            f"{ref} is gated: accept its terms on huggingface.co, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise SourceError(
            f"the hub has no model {ref!r} that you may read (a private one needs `hf auth login`)"
        ) from error
    except Exception as error:  # no network shows as one of many types, depending on the transport
        raise SourceError(
            f"{ref} is not on this machine and the hub cannot be reached ({type(error).__name__}). Where "
            f"there is a network, run `hf download {ref} --local-dir FOLDER`, bring the folder here and "
            "give it as the model; or bring the hub's cache (HF_HOME) and set HF_HUB_OFFLINE=1."
        ) from error
