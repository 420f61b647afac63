"""An engine without a model: its logits follow from the tokens by arithmetic. It keeps count of its sessions."""

from __future__ import annotations

import time

import numpy as np

VOCABULARY = 320


class ToySession:
    def __init__(self, engine, context):
        self.engine, self.context, self.ids = engine, context, []
        self.closed = False
        engine.open += 1

    @property
    def length(self):
        return len(self.ids)

    def rewind(self, length):
        assert not self.closed and 0 <= length <= len(self.ids)
        del self.ids[length:]

    def close(self):
        self.engine.open -= not self.closed
        self.closed = True


class ToyEngine:
    """script: the tokens that are likeliest in turn, whatever stands before; then as the arithmetic has it.
    delay: seconds that a step takes."""

    name, vocabulary, kernel, threads, bytes_per_token = "toy", VOCABULARY, "numpy", 1, 1000

    def __init__(self, context=256, script=(), delay=0.0, never=()):
        self.context, self.delay = context, delay
        self.script, self.never = list(script), list(never)
        self.table = np.random.default_rng(0).normal(size=(97, VOCABULARY)).astype(np.float32) * 3
        self.open = self.tokens = 0
        self.batches = []

    def session(self, context=None):
        return ToySession(self, context or self.context)

    def step(self, sessions, ids):
        assert len(sessions) == len(ids) == len(set(map(id, sessions))) and all(ids)
        time.sleep(self.delay)
        self.batches.append(len(sessions))
        for session, new in zip(sessions, ids, strict=True):
            assert not session.closed
            assert session.length + len(new) <= session.context
            session.ids += new
            self.tokens += len(new)
        return np.stack([self._logits(session.ids) for session in sessions])

    def step_all(self, sessions, ids):
        return [
            np.stack([self.step([session], [[token]])[0] for token in new])
            for session, new in zip(sessions, ids, strict=True)
        ]

    def all_logits(self, ids):
        return np.stack([self._logits(ids[: i + 1]) for i in range(len(ids))])

    def _logits(self, ids):
        state = sum((i + 1) * token for i, token in enumerate(ids[-20:])) + len(ids)
        out = self.table[state % 97].copy()
        if self.script:
            out[self.script.pop(0)] = 100
        out[self.never] = -100
        return out
