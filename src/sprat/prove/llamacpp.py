"""A GGUF computed by llama.cpp: its own kernels on the blocks as they lie, the logits of chosen positions alone.

Needs llama-cpp-python (extra `llamacpp`). What llama.cpp does by default is left as it is: most types meet activations
rounded to 8 bits, and keys and values are kept in 16. The token ids are given, so how it would cut text is no part of
what is measured.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sprat.errors import ProofError

#: llama.cpp's number for an error among the levels of what it logs.
_ERROR = 4


def package() -> Any:
    """llama_cpp; None where it is not installed, `ProofError` where it is and does not load."""
    try:
        found: Any = importlib.import_module("llama_cpp")
    except ImportError:
        return None
    except (OSError, RuntimeError) as error:
        raise ProofError(f"llama-cpp-python is installed but does not load: {error}") from error
    found._logger.set_verbose(False)
    return found


def version() -> str:
    """Of the llama.cpp that computes a GGUF, by the package that brings it."""
    return f"llama.cpp (llama-cpp-python {importlib.metadata.version('llama-cpp-python')})"


class LlamaCpp:
    """An open GGUF. Raises `ProofError` with llama.cpp's own words where it cannot be opened or computed."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """threads: default as many as torch uses."""
        self._model, self._context, self._room = None, None, 0
        self._c = package()
        if self._c is None:
            raise ProofError("llama-cpp-python is not installed: pip install 'sprat[llamacpp]'")
        self._threads = threads or torch.get_num_threads()
        defaults = self._c.llama_model_default_params()
        with _listening(self._c) as said:
            self._model = self._c.llama_model_load_from_file(str(path).encode(), defaults)
            if not self._model:
                raise _error(f"llama.cpp cannot open {path}", said)
        self._vocabulary = self._c.llama_vocab_n_tokens(self._c.llama_model_get_vocab(self._model))

    def logits(self, ids: Sequence[int], keep: int) -> np.ndarray:
        """float32 (keep, vocabulary): what the last `keep` of the tokens `ids` predict, from an empty context."""
        if wrong := [i for i in ids if not 0 <= i < self._vocabulary]:
            raise ProofError(f"there is no token {wrong[0]}: the GGUF has {self._vocabulary}")
        batch = self._c.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i >= len(ids) - keep
        try:
            with _listening(self._c) as said:
                self._make_room(len(ids))
                if not self._context or self._c.llama_decode(self._context, batch):
                    raise _error(f"llama.cpp cannot compute a text of {len(ids)} tokens", said)
        finally:
            self._c.llama_batch_free(batch)
        rows = self._c.llama_get_logits(self._context)
        return np.ctypeslib.as_array(rows, (keep, self._vocabulary)).copy()

    def close(self) -> None:
        """Free its memory; nothing may be asked of it afterwards."""
        if self._context:
            self._c.llama_free(self._context)
        if self._model:
            self._c.llama_model_free(self._model)
        self._context = self._model = None

    def __del__(self) -> None:
        self.close()

    def _make_room(self, tokens: int) -> None:
        """An empty context that holds `tokens` and computes them in one go."""
        if self._context and tokens <= self._room:
            self._c.llama_memory_clear(self._c.llama_get_memory(self._context), False)
            return
        if self._context:
            self._c.llama_free(self._context)
        options = self._c.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = tokens
        options.n_threads = options.n_threads_batch = self._threads
        self._context, self._room = self._c.llama_init_from_model(self._model, options), tokens


@contextmanager
def _listening(c: Any) -> Iterator[list[str]]:
    """llama.cpp prints nothing; what it calls errors comes into the list."""
    said: list[str] = []

    def note(level: int, text: bytes, _: Any) -> None:
        if level == _ERROR:
            said.append(text.decode(errors="replace").strip())

    listener = c.llama_log_callback(note)
    c.llama_log_set(listener, ctypes.c_void_p(0))
    try:
        yield said
    finally:  # the listener ends here, and C holds no reference of its own
        c.llama_log_set(c._logger.llama_log_callback, ctypes.c_void_p(0))


def _error(what: str, said: Sequence[str]) -> ProofError:
    return ProofError(": ".join([what, *said[:1]]))


class Engine(Protocol):
    """As much of `LlamaCpp` as `Model` asks for."""

    def logits(self, ids: Sequence[int], keep: int) -> np.ndarray: ...


class Model(nn.Module):
    """An engine asked as a transformers model is."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, input_ids: Tensor, logits_to_keep: int = 0, use_cache: bool = False) -> Any:
        """input_ids (1, length) -> .logits (1, logits_to_keep, vocabulary), of all positions for 0."""
        ids = input_ids[0].tolist()
        return SimpleNamespace(
            logits=torch.from_numpy(self.engine.logits(ids, logits_to_keep or len(ids)))[None]
        )
