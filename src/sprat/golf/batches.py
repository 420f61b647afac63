"""Which tokens each step reads: a function of the step alone, so that a resumed training reads on exactly."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from sprat.errors import SourceError


class Batches:
    """Windows of `context` tokens and the token behind each, of a stream: every window once, then again, shifted.

    ids: (n,) integers. Documents follow each other in the stream, each behind its mark.
    """

    def __init__(self, ids: np.ndarray, context: int, batch: int, seed: int):
        if len(ids) < 2 * context + 1:
            raise SourceError(
                f"the training text has {len(ids)} tokens: contexts of {context} need at least {2 * context + 1}"
            )
        self.ids, self.context, self.batch, self.seed = ids, context, batch, seed
        self.windows = (len(ids) - context - 1) // context
        self._order = functools.lru_cache(2)(self._pass)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Micro-batch `index`: what is read and what follows each token, (batch, context) int64 both."""
        rows = []
        for place in range(index * self.batch, (index + 1) * self.batch):
            number, at = self._place(place)
            order, shift = self._order(number)
            start = shift + int(order[at]) * self.context
            rows.append(self.ids[start : start + self.context + 1])
        rows = torch.from_numpy(np.stack(rows).astype(np.int64))
        return rows[:, :-1], rows[:, 1:]

    def _place(self, place: int) -> tuple[int, int]:
        """The pass that window number `place` of the training is in, and where in that pass."""
        return divmod(place, self.windows)

    def _pass(self, number: int) -> tuple[np.ndarray, int]:
        """The order of the windows in one pass over the text, and where the first begins."""
        random = np.random.default_rng([self.seed, number])
        return random.permutation(self.windows), int(random.integers(self.context))
