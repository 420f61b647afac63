"""Patterns of zeros that a recipe can ask of the layers' maps: a share ("0.5"), or N of every M inputs ("2:4")."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from sprat.errors import RecipeError

#: The widest group of a pattern: what is rounded at once.
WIDEST = 128


@dataclass(frozen=True)
class Sparsity:
    """What must be zero: at least `share` of a map, or all but `kept` of every `group` consecutive inputs of a row.

    kept and group are 0 for a share without a pattern.
    """

    share: float = 0.0
    kept: int = 0
    group: int = 0

    def __bool__(self) -> bool:
        return self.share > 0

    def check(self, layers: Iterable[tuple[str, int]]) -> None:
        """RecipeError for the first of `layers`, (name, inputs), that the pattern does not divide."""
        found = list(layers)
        for name, width in found:
            if self.group and width % self.group:
                works = math.gcd(*(width for _, width in found))
                near = sorted(
                    (m for m in range(2, min(works, WIDEST) + 1) if works % m == 0),
                    key=lambda m: abs(m - self.group),
                )
                named = [f"{min(max(round(self.kept * m / self.group), 1), m - 1)}:{m}" for m in near[:2]]
                raise RecipeError(
                    f"recipe: sparsity {self.kept}:{self.group} does not divide {name}, whose inputs are {width:,}; "
                    f"nearest that works: {' or '.join(named) or 'a share, as 0.5'}"
                )


def parse(text: str) -> Sparsity:
    """Nothing (no zeros), "0.5" or "2:4". Raises RecipeError for what is neither."""
    if not text:
        return Sparsity()
    if pattern := re.fullmatch(r"(\d{1,3}):(\d{1,3})", text):
        kept, group = int(pattern[1]), int(pattern[2])
        if 1 <= kept < group <= WIDEST:
            return Sparsity(1 - kept / group, kept, group)
    elif re.fullmatch(r"\d*\.\d+", text) and 0 < float(text) < 1:
        return Sparsity(float(text))
    raise RecipeError(
        f"recipe: sparsity = {text!r} is not allowed; it must be a share of zeros between 0 and 1 (0.5), or N:M, N "
        f"non-zeros of M inputs, N from 1, M above N and at most {WIDEST} (2:4)"
    )
