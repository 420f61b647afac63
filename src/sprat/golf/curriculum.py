"""Which windows are read, and in which order, by the loss of a small model: a bigram model of the training text.

    p(b | a) = (count(a, b) + M p(b)) / (count(a) + M),   p(b) = (count(b) + 1) / (n + vocabulary)

(Dirichlet smoothing with M = MASS.) A window's difficulty is its mean -ln p. The first pass reads the `easy` share of
windows that the model predicts best, later passes all; the `drop` share that it predicts worst is noise and is never
read. Sources: Bengio et al., Curriculum Learning (ICML 2009); selection by a small model's loss, Marion et al.,
arXiv 2309.04564.
"""

from __future__ import annotations

import functools

import numpy as np

from sprat.golf.batches import Batches

#: Tokens that the unigram distribution counts for beside what was seen behind a token.
MASS = 32.0


def bigram(ids: np.ndarray, vocabulary: int) -> np.ndarray:
    """Nats that the model, fitted to all of `ids` (n,), gives each token behind the first: float64 (n - 1,)."""
    single = np.bincount(ids, minlength=vocabulary).astype(np.float64)
    alone = (single + 1) / (len(ids) + vocabulary)
    pairs = ids[:-1].astype(np.int64) * vocabulary + ids[1:]
    _, place, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    before = np.bincount(ids[:-1], minlength=vocabulary)
    return -np.log((counts[place] + MASS * alone[ids[1:]]) / (before[ids[:-1]] + MASS))


class Curriculum(Batches):
    """Batches of the windows that are left, the easy ones first. easy: 0 for a first pass as the others are."""

    def __init__(
        self, ids: np.ndarray, context: int, batch: int, seed: int, vocabulary: int, easy: float, drop: float
    ):
        super().__init__(ids, context, batch, seed)
        self._sums = np.concatenate([[0.0], np.cumsum(bigram(ids, vocabulary))])
        self.kept = max(1, round((1 - drop) * self.windows))
        self.first = max(1, round(easy * self.windows)) if easy else self.kept
        self._order = functools.lru_cache(2)(self._pass)

    def _place(self, place: int) -> tuple[int, int]:
        if place < self.first:
            return 0, place
        number, at = divmod(place - self.first, self.kept)
        return number + 1, at

    def _pass(self, number: int) -> tuple[np.ndarray, int]:
        order, shift = super()._pass(number)
        starts = shift + order * self.context
        difficulty = self._sums[starts + self.context] - self._sums[starts]
        count = self.first if number == 0 else self.kept
        easiest = np.sort(np.argsort(difficulty, kind="stable")[:count])  # as the pass has them
        return order[easiest], shift
