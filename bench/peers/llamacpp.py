"""llama.cpp, quantized by its own quantizer and run by its own decode call, as it is by default.

    pip install -c constraints.txt '.[fit,llamacpp]'      # compiles llama.cpp for this machine: 10 to 25 minutes

A type is named as llama.cpp names it, "Q4_K_M"; "IQ4_NL+embedding" stores the embedding in it too, which is left at
Q8_0 or the like otherwise.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from bench.calibrated import Moments
from sprat.errors import SpratError
from sprat.source.load import Source
from sprat.source.maps import head

#: Typed as anything: the type checker is run where it is not installed.
llama_cpp: Any = importlib.import_module("llama_cpp")
llama_cpp._logger.set_verbose(False)

EMBEDDING_TOO = "+embedding"
#: Tokens that it computes together while it reads a prompt: all of the benchmark's.
BATCH = 512


def quantize(source: Path, kind: str, target: Path, importance: Mapping[str, np.ndarray]) -> None:
    """Write the GGUF `source` as `kind`.

    importance: E[x²] of a tensor's inputs by the tensor's name in the GGUF, float32 (in_features,). SpratError for a
    kind that this llama.cpp does not know or cannot write.
    """
    name = kind.removesuffix(EMBEDDING_TOO)
    wanted = llama_cpp.llama_model_quantize_default_params()
    try:
        wanted.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
        if kind != name:
            wanted.token_embedding_type = wanted.output_tensor_type = getattr(llama_cpp, f"GGML_TYPE_{name}")
    except AttributeError:
        raise SpratError(f"this llama.cpp knows no type {kind!r}") from None
    wanted.allow_requantize = True
    kept = {tensor: np.ascontiguousarray(values, np.float32) for tensor, values in importance.items()}
    entry, floats = llama_cpp.llama_model_imatrix_data, ctypes.POINTER(ctypes.c_float)
    table = (entry * (len(kept) + 1))()  # ends with a nameless one
    for i, (tensor, values) in enumerate(kept.items()):
        table[i] = entry(tensor.encode(), values.ctypes.data_as(floats), values.size)
    if kept:
        wanted.imatrix = table
    part = target.with_suffix(".part")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(part).encode(), wanted):
        part.unlink(missing_ok=True)
        raise SpratError(f"llama.cpp cannot write {source.name} as {kind}")
    part.replace(target)


def importance(source: Source, original: Path, moments: Moments) -> dict[str, np.ndarray]:
    """E[x²] of each map's inputs by the map's name in the GGUF `original`."""
    ends, config = head(source.model), source.config
    inputs = moments.of | {ends.input_name if ends.tied else ends.output_name: moments.head}
    family = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == config["model_type"])
    names = gguf.get_tensor_name_map(family, config["num_hidden_layers"])
    found = {
        str(names.get_name(name, (".weight",))): h.diagonal().clone().numpy() for name, h in inputs.items()
    }
    # A name that is in no file would be passed over without a word.
    assert found.keys() <= {t.name for t in gguf.GGUFReader(original).tensors}
    return found


class LlamaCpp:
    """As much of `sprat.run.engine.Engine` as the measurements ask for: one text at a time."""

    name = "llama.cpp"

    def __init__(self, path: Path, threads: int, context: int = 2 * BATCH) -> None:
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = context, BATCH, BATCH
        options.n_threads = options.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, options) if self._model else None
        if self._context is None:
            raise SpratError(f"llama.cpp cannot open {path}")
        self.context = context
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def session(self) -> _Text:
        """An empty text; the one before is forgotten."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        return _Text()

    def step(self, sessions: Sequence[Any], ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Append ids[0] to the text: float32 (1, vocabulary), valid until the next step."""
        assert len(sessions) == 1
        tokens = (ctypes.c_int32 * len(ids[0]))(*ids[0])
        if llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, len(tokens))):
            raise SpratError("llama.cpp cannot compute this step")
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (1, self.vocabulary))

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)


class _Text:
    """The engine's one text."""

    def close(self) -> None:
        """Nothing: the next text takes its place."""


def system() -> str:
    """What it was compiled for, in its own words."""
    return f"llama-cpp-python {llama_cpp.__version__}: {llama_cpp.llama_print_system_info().decode()}"
