"""The native engine: a `.sprat` unpacked into the run layout and computed by csrc/engine, without torch.

docs/engine.md describes the layout and what was measured.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sprat import _core
from sprat.errors import SpratError, nearest
from sprat.run.architecture import architecture, check_cache
from sprat.run.unpack import load

if TYPE_CHECKING:
    from sprat.coding.container import Artifact

#: How activations enter the products: rounded to int8 by panels of 16, or (slow, for tests) as they are.
ACTIVATIONS = ("int8", "float")


class NativeSession:
    """One text under way."""

    def __init__(self, engine: NativeEngine, cache: Any) -> None:
        self._engine = engine
        self._cache = cache

    @property
    def length(self) -> int:
        """Tokens in it."""
        return self._open().length

    @property
    def context(self) -> int:
        """Tokens that it has room for."""
        return self._open().capacity

    def rewind(self, length: int) -> None:
        """Forget everything behind the first `length` tokens."""
        cache = self._open()
        if not 0 <= length <= cache.length:
            raise SpratError(f"cannot rewind a text of {cache.length} tokens to {length}")
        cache.rewind(length)

    def close(self) -> None:
        """Free its cache; using the session afterwards is an error."""
        self._cache = None

    def _open(self) -> Any:
        if self._cache is None:
            raise SpratError("this session is closed")
        return self._cache


class NativeEngine:
    """`sprat.run.engine.Engine` on the CPU.

    threads: how many compute, by default as many as the process may use (at most 16). context: longest text
    of a session, by default the model's own. activations: see ACTIVATIONS; by default the environment's
    SPRAT_ACTIVATIONS or int8. cache: how keys and values are kept, one of `architecture.CACHES`, by default the
    first; float activations keep them in float32. keep: leave what opening unpacked in a file that the next
    opening reads, by default where the environment's SPRAT_KEEP_UNPACKED is 1. SPRAT_KERNEL names a kernel (auto,
    avx512, avx2, neon, portable).

    Raises `SpratError` for an architecture that it does not serve, `FormatError` for a file whose tensors do
    not fit its config.
    """

    name = "native"

    def __init__(
        self,
        artifact: Artifact,
        threads: int | None = None,
        context: int | None = None,
        activations: str | None = None,
        cache: str | None = None,
        keep: bool | None = None,
    ) -> None:
        self.architecture = architecture(artifact.config)
        self.vocabulary: int = self.architecture.shape["vocabulary"]
        self.context = self._context(context)
        self.threads = _threads(threads)
        kind = activations or os.environ.get("SPRAT_ACTIVATIONS") or "int8"
        if kind not in ACTIVATIONS:
            raise SpratError(f"unknown activations {kind!r}{nearest(kind, ACTIVATIONS)}: int8 or float")
        self.activations = kind
        if kind == "float" and cache is not None:
            raise SpratError(f"float activations keep a cache of float32, not {cache}")
        self.cache = "float32" if kind == "float" else check_cache(cache)
        shape, kernel = self.architecture.shape, os.environ.get("SPRAT_KERNEL") or "auto"
        try:
            self._model = _core.Model(shape, self.threads, kernel, kind == "float")
        except ValueError as error:
            raise SpratError(f"SPRAT_KERNEL: {error}") from None
        for rope in self.architecture.ropes:
            self._model.add_rope(np.ascontiguousarray(rope.frequency, np.float32), rope.factor)
        for i, (window, rope) in enumerate(
            zip(self.architecture.windows, self.architecture.rope, strict=True)
        ):
            self._model.set_layer(i, window, rope)
        if keep is None:
            keep = os.environ.get("SPRAT_KEEP_UNPACKED") == "1"
        self._shared = load(self._model, artifact, self.architecture, self.threads, keep)
        self._sessions: weakref.WeakSet[NativeSession] = weakref.WeakSet()

    @property
    def kernel(self) -> str:
        """The kernel in use."""
        return self._model.kernel

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that decoding a token streams."""
        maps, head, _ = self._model.bytes
        return maps + head

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes that a token takes in a session's key-value cache."""
        return self.architecture.cache_bytes(self.cache)

    @property
    def resident(self) -> dict[str, int]:
        """Bytes held: `layout` of the layers' maps, `vocabulary` (embedding and head), `cache` in use."""
        maps, head, embedding = self._model.bytes
        maps -= self._shared
        vocabulary = embedding if self.architecture.tied else embedding + head
        caches = (session._cache for session in self._sessions)
        used = sum(cache.nbytes for cache in caches if cache is not None)
        return {"layout": maps, "vocabulary": vocabulary, "cache": used}

    def session(self, context: int | None = None) -> NativeSession:
        """A new text, at most `context` tokens long."""
        s = self.architecture.shape
        length = self._context(context) if context is not None else self.context
        try:
            cache = _core.Cache(s["layers"], s["kv_heads"], s["dimension"], length, self.cache)
        except MemoryError:
            need = self.cache_bytes_per_token * length
            raise SpratError(
                f"a context of {length} tokens needs {need:,} bytes: more than there are"
            ) from None
        session = NativeSession(self, cache)
        self._sessions.add(session)
        return session

    def step(self, sessions: Sequence[Any], ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Append ids[i] (at least one token) to sessions[i]: float32 (len(sessions), vocabulary).

        Row i holds the logits behind the last of ids[i]. On an error no session has changed.
        """
        return self._step(sessions, ids, len(sessions), False)

    def step_all(self, sessions: Sequence[Any], ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """As `step`, with the logits behind every token: float32 (len(ids[i]), vocabulary) for each i."""
        lengths = [len(tokens) for tokens in ids]
        return np.split(self._step(sessions, ids, sum(lengths), True), np.cumsum(lengths)[:-1])

    def all_logits(self, ids: Sequence[int]) -> np.ndarray:
        """Float32 (len(ids), vocabulary): the logits behind each token of a text of its own."""
        session = self.session(min(max(1, len(ids)), self.context))
        try:
            return self._step([session], [ids], len(ids), True)
        finally:
            session.close()

    def _step(
        self, sessions: Sequence[NativeSession], ids: Sequence[Sequence[int]], rows: int, everything: bool
    ) -> np.ndarray:
        if len(sessions) != len(ids):
            raise SpratError(f"{len(sessions)} sessions, {len(ids)} lists of tokens")
        for session, tokens in zip(sessions, ids, strict=True):
            if session.length + len(tokens) > session.context:
                raise SpratError(
                    f"the text is longer than the context: {session.length} tokens and {len(tokens)} more, "
                    f"{session.context} fit"
                )
        out = np.empty((rows, self.vocabulary), np.float32)
        if not sessions:
            return out
        try:
            arrays = [np.ascontiguousarray(tokens, np.int32) for tokens in ids]
            self._model.step([session._open() for session in sessions], arrays, everything, out)
        except (ValueError, OverflowError) as error:
            raise SpratError(f"cannot compute this step: {error}") from None
        except MemoryError:
            raise SpratError("this step does not fit into this machine's memory") from None
        return out

    def _context(self, wanted: int | None) -> int:
        most = self.architecture.context if not hasattr(self, "context") else self.context
        if wanted is None:
            return most
        if not 1 <= wanted <= most:
            raise SpratError(f"a context must be 1 to {most} tokens, not {wanted}")
        return wanted


def _threads(wanted: int | None) -> int:
    if wanted is None:
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(usable, 16)
    if not 1 <= wanted <= 1024:
        raise SpratError(f"threads must be 1 to 1024, not {wanted}")
    return wanted
