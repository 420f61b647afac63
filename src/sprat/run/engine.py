"""What computes a model, and how one is chosen: the seam between sampling, chat and server, and the engines."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sprat.errors import RequestError, SpratError, UnsupportedError, nearest

if TYPE_CHECKING:
    from sprat.coding.container import Artifact

#: What `open_engine` may be asked for.
KINDS = ("auto", "native", "torch")


class Session(Protocol):
    """One text under way: its key-value cache."""

    @property
    def length(self) -> int:
        """Tokens in it."""
        ...

    def rewind(self, length: int) -> None:
        """Forget everything behind the first `length` tokens."""
        ...

    def close(self) -> None:
        """Let go of the cache; closing twice does nothing."""
        ...


class Engine(Protocol):
    """A model that computes, shared by any number of sessions. Used by one thread at a time.

    What `sprat bench` tells besides speeds it reads off attributes that an engine may have: `threads`, `kernel` (the
    name of its inner loop), `bytes_per_token` (weights that a decoded token reads) and `resident` (bytes that it holds,
    by what they are).
    """

    name: str  #: "native" or "torch"
    vocabulary: int
    context: int  #: longest text of a session, in tokens

    def session(self, context: int | None = None) -> Session:
        """A new, empty text of at most `context` tokens (default and limit: the engine's)."""
        ...

    def step(self, sessions: Sequence[Session], ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Append ids[i] (at least one token) to sessions[i], all in one batch.

        Returns float32 (len(sessions), vocabulary): the logits behind each last id.
        """
        ...

    def step_all(self, sessions: Sequence[Session], ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """As `step`, with the logits behind every token: float32 (len(ids[i]), vocabulary) for each i."""
        ...

    def all_logits(self, ids: Sequence[int]) -> np.ndarray:
        """float32 (len(ids), vocabulary) of a text of its own: row i is what follows ids[: i + 1]."""
        ...


def open_engine(
    artifact: Artifact, threads: int | None = None, context: int | None = None, kind: str = "auto"
) -> Engine:
    """The engine for a file.

    kind: "auto" (native where it serves the architecture, else torch if that is installed), "native" or
    "torch". threads: default chosen by the engine. context: longest text of a session in tokens, default the
    model's own. `UnsupportedError` where no engine can compute the file, saying why for each.
    """
    if kind not in KINDS:
        raise SpratError(f"unknown engine {kind!r}{nearest(kind, KINDS)}: one of {', '.join(KINDS)}")
    if threads is not None and threads < 1:
        raise RequestError(f"threads must be at least 1, not {threads}", "threads")
    if kind == "torch":
        return _torch(artifact, threads, context, "it was asked for")
    try:
        return _native(artifact, threads, context)
    except UnsupportedError as error:
        if kind == "native":
            raise
        why = str(error)
    if not all(map(_installed, ("torch", "transformers"))):
        raise UnsupportedError(
            f"no engine can run this file: {why}; the torch engine needs torch: pip install 'sprat[fit]'"
        )
    return _torch(artifact, threads, context, why)


def why(engine: Engine) -> str:
    """Why this engine was taken and not the native one; empty for the native one."""
    return getattr(engine, "why", "")


def _native(artifact: Artifact, threads: int | None, context: int | None) -> Engine:
    from sprat.run.native import NativeEngine

    return NativeEngine(artifact, threads=threads, context=context)


def _torch(artifact: Artifact, threads: int | None, context: int | None, why: str) -> Engine:
    from sprat.run.torch_engine import TorchEngine

    return TorchEngine(artifact, threads=threads, context=context, why=why)


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module that was made unavailable
        return False
