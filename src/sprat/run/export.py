"""A `.sprat` written out as a plain, dense Hugging Face folder, for anyone's own tools to open and check."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.errors import SpratError, nearest
from sprat.golf import MODEL_TYPE
from sprat.progress import Progress, silent
from sprat.run.model import DTYPES, tensors, to_torch, torch_dtype
from sprat.run.tokenizer import tokenizer_files

if TYPE_CHECKING:
    import torch

    from sprat.coding.container import Artifact

#: Weights a file: a larger model is cut into several, as the hub does.
SHARD_BYTES = 4 * 10**9


def export(
    file: str | Path | Artifact,
    to: str,
    directory: str | Path,
    dtype: str = "bfloat16",
    progress: Progress = silent,
) -> Path:
    """Write `file` in the form `to` ("hf") into `directory`, which must not exist or be empty; returns it.

    dtype float32 holds exactly what the file stands for; bfloat16 rounds it and halves the folder. Nothing
    is left under the final name when writing fails.
    """
    from sprat.coding.container import open as open_artifact

    if to not in FORMS:
        raise SpratError(f"unknown form {to!r}{nearest(to, FORMS)}: one of {', '.join(FORMS)}")
    if dtype not in DTYPES:
        raise SpratError(f"unknown dtype {dtype!r}{nearest(dtype, DTYPES)}: one of {', '.join(DTYPES)}")
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SpratError(f"{target} exists and is not an empty folder: name another")
    artifact = open_artifact(file) if isinstance(file, str | Path) else file
    partial = target.with_name(target.name + f".partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        FORMS[to](artifact, partial, dtype, progress)
        partial.replace(target)
    except OSError as error:
        raise SpratError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _hf(artifact: Artifact, folder: Path, dtype: str, progress: Progress) -> None:
    import torch

    from sprat.source.experts import COUNTS, hub_names
    from sprat.source.load import TOKENIZER_FILES

    renamed = hub_names(artifact.config["model_type"]) if artifact.config.keys() & set(COUNTS) else str
    kind, entries, shapes = torch_dtype(dtype), len(artifact.names), _shapes(artifact)
    shards: list[list[str]] = []
    shard: dict[str, torch.Tensor] = {}
    total = held = done = 0
    for name, array in tensors(artifact):
        tensor = torch.from_numpy(array.reshape(shapes.get(name, array.shape))).to(kind).contiguous()
        size = tensor.numel() * tensor.element_size()
        if shard and held + size > SHARD_BYTES:
            shards.append(_save(shard, folder, len(shards)))
            shard, held = {}, 0
        shard[renamed(name)] = tensor
        held, total, done = held + size, total + size, done + 1
        progress("expanding tensors", min(done, entries), entries)
    shards.append(_save(shard, folder, len(shards)))
    _name_shards(folder, shards, total)
    config = artifact.config | {"dtype": dtype}
    config.pop("torch_dtype", None)
    _write_json(folder / "config.json", config)
    for name, content in tokenizer_files(artifact).items():
        if name in TOKENIZER_FILES:  # a file may claim any name, such as that of the weights just written
            (folder / name).write_bytes(content)


def _shapes(artifact: Artifact) -> dict[str, tuple[int, ...]]:
    """The parameters of a golf's model by name: what its equations fold into matrices lies flat in the module."""
    if artifact.config.get("model_type") != MODEL_TYPE:
        return {}
    return {name: tuple(p.shape) for name, p in to_torch(artifact).named_parameters(remove_duplicate=False)}


def _save(shard: dict[str, torch.Tensor], folder: Path, index: int) -> list[str]:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(shard, folder / f"{index}.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk is one of these, and no OSError
        raise SpratError(f"cannot write the weights: {error}") from error
    return list(shard)


def _name_shards(folder: Path, shards: list[list[str]], total: int) -> None:
    """One file is model.safetensors; several get the hub's names and an index."""
    if len(shards) == 1:
        (folder / "0.safetensors").rename(folder / "model.safetensors")
        return
    where: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{i}.safetensors").rename(folder / file)
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


#: The forms that a file can be written in.
FORMS: dict[str, Callable[[Any, Path, str, Progress], None]] = {"hf": _hf}
