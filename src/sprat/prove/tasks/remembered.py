"""An original's answers on disk, so that several files, and replays of their proofs, ask it once.

Kept by what the answers depend on and nothing else: the model's weights and their type, the tokens of every
request (so the task's file, the choice of its items, their wording and the tokenizer), the packages that
compute, and `VERSION`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sprat.folders import cache_root
from sprat.progress import Progress, silent
from sprat.prove.tasks.requests import Answer, Request, Scorer

#: Raise it when the same requests get other answers: what is kept is then no longer found.
VERSION = 1
_ANSWER = np.dtype([("logprob", "<f8"), ("greedy", "u1")])


class RememberedScorer:
    """`Scorer` that asks another one only what it was never asked before.

    model, dtype: the hash of the model's weights and what they are computed in. root: where answers are kept, default
    the cache folder. A damaged file is made again.
    """

    def __init__(self, scorer: Scorer, model: str, dtype: str, root: Path | None = None):
        self._scorer, self._root = scorer, root or cache_root() / "answers"
        self._on = {
            "model": model,
            "dtype": dtype,
            "version": VERSION,
            "packages": [importlib.metadata.version(name) for name in ("torch", "transformers")],
        }
        self.context, self.words = scorer.context, scorer.words
        self.remembered = True
        """Whether all answers so far were on disk."""

    def score(
        self, requests: Sequence[Request], stage: str = "reading questions", progress: Progress = silent
    ) -> list[Answer]:
        path = self._root / f"{self._key(requests)}.answers"
        answers = _read(path, len(requests))
        if answers is None:
            self.remembered = False
            answers = self._scorer.score(requests, stage, progress)
            _write(path, answers)
        return answers

    def write(self, ids: Sequence[int], most: int, stop: Callable[[list[int]], bool]) -> list[int]:
        """Texts are written anew each time."""
        self.remembered = False
        return self._scorer.write(ids, most, stop)

    def _key(self, requests: Sequence[Request]) -> str:
        total = hashlib.sha256(json.dumps(self._on, sort_keys=True).encode())
        for request in requests:
            total.update(json.dumps([request.context, request.continuation]).encode())
        return total.hexdigest()[:32]


def was_remembered(scorer: Scorer) -> bool:
    """Whether none of its answers were computed this time."""
    return isinstance(scorer, RememberedScorer) and scorer.remembered


def _read(path: Path, count: int) -> list[Answer] | None:
    """What `_write` kept; None where it is missing or damaged."""
    try:
        digest, data = (raw := path.read_bytes())[:32], raw[32:]
    except OSError:
        return None
    if len(data) != count * _ANSWER.itemsize or hashlib.sha256(data).digest() != digest:
        return None
    return [Answer(float(logprob), bool(greedy)) for logprob, greedy in np.frombuffer(data, _ANSWER)]


def _write(path: Path, answers: Sequence[Answer]) -> None:
    """SHA-256 of what follows, then an `_ANSWER` for each; whole or not at all."""
    data = np.array([tuple(answer) for answer in answers], _ANSWER).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)
