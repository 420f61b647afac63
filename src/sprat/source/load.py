"""`load`: a causal language model from wherever it lies, with all that running it needs."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import torch

from sprat.errors import SourceError
from sprat.source import maps, places
from sprat.source.checks import first_line, read_config, refuse_missing, refuse_nonfinite, refuse_unsupported
from sprat.source.experts import unfuse
from sprat.source.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

#: The files beside the weights that running a model needs.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
#: Keys of a config that say where and how it was loaded, not what the model is.
_NOISE = ("_name_or_path", "_model_name_or_path", "quantization_config", "transformers_version")


@dataclass(frozen=True)
class Source:
    """A model and what belongs to it."""

    model: PreTrainedModel
    """In eval mode, on the CPU."""
    tokenizer: PreTrainedTokenizerFast
    name: str
    ref: str
    kind: str
    """folder | hub | gguf | package"""
    hash: str
    """SHA-256 (hex) over the config and the weight files as they lie on disk."""
    original_bytes: int
    """Two bytes a parameter (bf16), a tied one counted once: what budgets in percent refer to."""
    config: dict[str, Any]
    tokenizer_files: dict[str, bytes]
    is_instruct: bool
    """It has a chat template."""


def load(ref: str | Path, dtype: torch.dtype = torch.bfloat16) -> Source:
    """Load a causal language model.

    `ref`: a Hugging Face folder (config.json and safetensors, sharded or not), a hub id "org/name", a `.gguf`
    file (dequantized), or the name of an installed model package ("smollm2-135m").
    Raises `SourceError`: nothing there, no network, unsupported architecture, missing or non-finite weights.
    """
    place = places.find(str(ref))
    with quiet(), _reading_once():
        model, files, digest = (_gguf if place.path.is_file() else _folder)(place, dtype)
        tokenizer = _tokenizer(place, files)
    unfuse(model).eval()
    refuse_nonfinite(model)
    maps.groups(model)  # refuses what sprat cannot fit, now rather than after minutes of work
    return Source(
        model=model,
        tokenizer=tokenizer,
        name=place.name,
        ref=str(ref),
        kind=place.kind,
        hash=digest,
        original_bytes=2 * sum(p.numel() for p in model.parameters()),
        config=config_of(model),
        tokenizer_files=files,
        is_instruct=bool(tokenizer.chat_template),
    )


def config_of(model: PreTrainedModel) -> dict[str, Any]:
    """Its config as plain values, without what says where it was loaded."""
    values = json.loads(model.config.to_json_string(use_diff=False))
    return {name: value for name, value in values.items() if name not in _NOISE}


def tokenizer_of(files: dict[str, bytes]) -> PreTrainedTokenizerFast:
    """The fast tokenizer that `files` (of TOKENIZER_FILES) stand for."""
    from transformers import AutoTokenizer

    with quiet(), tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def load_tokenizer(ref: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of what `load` takes, without its weights."""
    with quiet(), _reading_once():
        return _tokenizer(places.find(str(ref)), {"tokenizer.json": b""})


def digest(ref: str | Path) -> str:
    """The hash that `load` would give of the same model, without its weights in memory. SourceError where none is."""
    path = places.find(str(ref)).path
    if path.is_dir():
        read_config(path)  # says what is wrong with a folder that holds no model
    return _digest(_parts(path))


def _parts(path: Path) -> list[Path]:
    """The files that a model is: a GGUF, or of a folder config.json and the weights."""
    return [path] if path.is_file() else [path / "config.json", *sorted(path.glob("*.safetensors"))]


def _folder(place: places.Place, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, bytes], str]:
    from transformers import AutoModelForCausalLM

    path = place.path
    config = read_config(path)
    parts = _parts(path)
    if len(parts) == 1:  # config.json alone
        pickles = sorted(p.name for p in path.glob("*.bin")) + sorted(p.name for p in path.glob("*.pt*"))
        if pickles:
            raise SourceError(
                f"{path} keeps its weights in {pickles[0]}, a pickle, which can run code when it is opened; "
                "sprat reads safetensors only (the model's hub page often has them too)"
            )
        raise SourceError(f"{path} is no model: it has a config.json, but no *.safetensors")
    refuse_unsupported(config)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers and safetensors raise many types for a broken folder
        raise SourceError(f"{path} cannot be loaded: {first_line(error)}") from error
    model, info = loaded
    refuse_missing(path, info)
    files = {name: (path / name).read_bytes() for name in TOKENIZER_FILES if (path / name).is_file()}
    return model, files, _digest(parts)


def _gguf(place: places.Place, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, bytes], str]:
    import transformers
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # newer versions keep the blocks packed unless told otherwise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place.path.parent, gguf_file=place.path.name, dtype=dtype, output_loading_info=True, **options
        )
    except ImportError as error:
        raise SourceError(
            f"reading a GGUF file needs more packages: pip install 'sprat[fit]' ({error})"
        ) from error
    except Exception as error:  # gguf, transformers and numpy raise many types for a broken file
        raise SourceError(f"{place.path} cannot be loaded: {first_line(error)}") from error
    model, info = loaded
    refuse_missing(place.path, info)
    # The weights are dense now; nothing downstream should take the model for a quantized one.
    for holder, names in (
        (model, ("hf_quantizer", "is_quantized", "quantization_method")),
        (model.config, ("quantization_config", "_pre_quantization_dtype")),
    ):
        for name in names:
            if name in vars(holder):
                delattr(holder, name)
    return model, {}, _digest(_parts(place.path))


@contextmanager
def _reading_once() -> Iterator[None]:
    """Transformers parses a GGUF's header several times and builds its table of names once for every module:
    remembered, a load takes a third of the time."""
    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = cache(reader), cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names


def _tokenizer(place: places.Place, files: dict[str, bytes]) -> PreTrainedTokenizerFast:
    """The fast tokenizer; `files` gains tokenizer.json and its kin where the model did not come with them."""
    from transformers import AutoTokenizer

    gguf = place.path.is_file()
    options = {"gguf_file": place.path.name} if gguf else {"local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(place.path.parent if gguf else place.path, **options)
    except Exception as error:
        raise SourceError(f"{place.path} has no tokenizer that can be read: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise SourceError(
            f"{place.path}: its {type(tokenizer).__name__} cannot be written as a tokenizer.json"
        )
    if "tokenizer.json" not in files:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            made = {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.name in TOKENIZER_FILES}
        files.update({name: data for name, data in made.items() if name not in files})
    return tokenizer


def _digest(files: list[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
