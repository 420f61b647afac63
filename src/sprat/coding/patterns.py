"""N:M patterns: of every M columns of a row N are coded, the others are zero.

The coded integers stand next to each other, (m, n N / M), their column classes a group's mean (docs/format.md).
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np

#: Choices that a table of the coder has cells for, its escape left out.
MOST_CHOICES = 127


def codable(kept: int, group: int) -> bool:
    """Whether a pattern has few enough choices."""
    return 1 <= kept < group <= MOST_CHOICES and math.comb(group, kept) <= MOST_CHOICES


@dataclass(frozen=True, eq=False)
class Pattern:
    """mask: (m, n) bool, True where an integer is coded: `kept` in every `group` columns of a row."""

    kept: int
    group: int
    mask: np.ndarray

    def __post_init__(self) -> None:
        m, n = self.mask.shape
        if not codable(self.kept, self.group) or n % self.group or self.mask.dtype != np.bool_:
            raise ValueError(f"no pattern of {n} columns: {self.kept} of {self.group}")
        if (self.mask.reshape(m, -1, self.group).sum(2) != self.kept).any():
            raise ValueError(f"a group with other than {self.kept} of {self.group} columns")

    def compact(self, q: np.ndarray) -> np.ndarray:
        """(m, n) → (m, n N / M): what is coded."""
        return q[self.mask].reshape(len(q), -1)

    def ranks(self) -> np.ndarray:
        """(m, n / M) int16: each group's choice, by its columns in lexicographic order."""
        m, n = self.mask.shape
        columns = np.nonzero(self.mask)[1].reshape(m, n // self.group, self.kept) % self.group
        rest = [
            [math.comb(self.group - 1 - column, self.kept - place) for column in range(self.group)]
            for place in range(self.kept)
        ]
        after = np.array(rest)[np.arange(self.kept), columns].sum(2)
        return (math.comb(self.group, self.kept) - 1 - after).astype(np.int16)

    @property
    def choices(self) -> int:
        return math.comb(self.group, self.kept)

    def classes(self, col_class: np.ndarray) -> np.ndarray:
        """(n,) uint8 → (n N / M,): the classes of the coded columns, their group's mean, halves upwards."""
        total = col_class.reshape(-1, self.group).astype(np.int64).sum(1)
        return np.repeat((2 * total + self.group) // (2 * self.group), self.kept).astype(np.uint8)

    def expand(self, coded: np.ndarray) -> np.ndarray:
        """Inverse of `compact`."""
        out = np.zeros(self.mask.shape, coded.dtype)
        out[self.mask] = coded.reshape(-1)
        return out


@functools.lru_cache(maxsize=8)
def masks(kept: int, group: int) -> np.ndarray:
    """(choices, group) bool, by rank."""
    sets = list(itertools.combinations(range(group), kept))
    out = np.zeros((len(sets), group), bool)
    for row, columns in zip(out, sets, strict=True):
        row[list(columns)] = True
    return out
