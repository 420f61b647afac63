"""The equation of a whole network: a term for the maps of attention, one for the feed-forward, one for the embedding.

monarch(8)                                       both, and a dense embedding
attention: shared(dense); ffn: kron(4, 16); embedding: lowrank(64)
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

from torch import Tensor

from sprat.anatomy.shape import Shape
from sprat.equations.grammar import parse as parse_term
from sprat.equations.term import Space, Term, Values
from sprat.equations.terms.lowrank import Dense, LowRank
from sprat.errors import RecipeError, nearest

DENSE = Dense()
GROUPS = ("attention", "ffn", "embedding")
#: sprat.anatomy's names of a layer's maps that belong to attention.
ATTENTION = ("query", "key", "value", "output")


@dataclass(frozen=True)
class Equation:
    """Prints as the formula that `parse` reads."""

    attention: Term = DENSE
    ffn: Term = DENSE
    embedding: Term = DENSE

    def __post_init__(self) -> None:
        if not isinstance(self.embedding, Dense | LowRank):
            raise RecipeError(
                f"an embedding is dense or lowrank(r), rows of it are looked up; not {self.embedding}"
            )

    def term(self, name: str) -> Term:
        """Of a map by its name in sprat.anatomy or its module's ("q_proj")."""
        return self.attention if name in ATTENTION or name[0] in "qkvo" else self.ffn

    def check(self, shape: Shape) -> None:
        """RecipeError where a term does not fit a map of `shape`."""
        for m in shape.maps:
            self.term(m.name).check(Space(m.rows, m.columns, shape.layers))
        self.embedding.check(Space(shape.vocabulary, shape.width))

    def parameters(self, shape: Shape) -> dict[str, int]:
        """Stored numbers by part; norms as they are in `shape`."""
        found = {"embedding": self.embedding.parameters(Space(shape.vocabulary, shape.width))}
        if not shape.tied:
            found["head"] = found["embedding"]
        for m in shape.maps:
            group = "attention" if m.name in ATTENTION else "feed-forward"
            count = self.term(m.name).parameters(Space(m.rows, m.columns, shape.layers))
            found[group] = found.get(group, 0) + count
        return found | {"norms": shape.parts["norms and biases"]}

    def nbytes(self, shape: Shape, bits: float) -> int:
        """What those numbers weigh at so many bits each."""
        return math.ceil(sum(self.parameters(shape).values()) * bits / 8)

    def flops(self, shape: Shape, context: int = 0) -> int:
        """Floating-point operations of one more token behind `context` tokens, by the fast products."""
        places = [(self.term(m.name), Space(m.rows, m.columns, shape.layers)) for m in shape.maps]
        maps = sum(term.flops(space) + term.once(space) for term, space in places)
        head = self.embedding.flops(Space(shape.vocabulary, shape.width))
        lookup = 2 * self.embedding.rank * shape.width if isinstance(self.embedding, LowRank) else 0
        return shape.layers * maps + head + lookup + 4 * shape.heads * shape.head_dim * context * shape.layers

    def __str__(self) -> str:
        same = self.attention == self.ffn
        body = str(self.ffn) if same else f"attention: {self.attention}; ffn: {self.ffn}"
        return body if self.embedding == DENSE else f"{body}; embedding: {self.embedding}"


def parse(text: str) -> Equation:
    """Read a formula. RecipeError: what is wrong, what is allowed, the nearest name."""
    found: dict[str, Term] = {}
    for part in text.split(";"):
        name, colon, formula = part.partition(":")
        names = [name.strip()] if colon else ["attention", "ffn"]
        if names[0] not in GROUPS:
            raise RecipeError(
                f"equation: unknown group {names[0]!r}{nearest(names[0], GROUPS)}: one of {', '.join(GROUPS)}"
            )
        term = parse_term(formula if colon else part)
        for twice in set(names) & set(found):
            raise RecipeError(f"equation: {twice} is given twice in {text!r}")
        found |= dict.fromkeys(names, term)
    return Equation(**found)


def seed_of(name: str) -> int:
    """Of what is drawn for the maps called `name`."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def looked_up(term: Term, values: Values, ids: Tensor) -> Tensor:
    """Rows `ids` of an embedding: (..., width)."""
    if isinstance(term, LowRank):
        return values["left"][0][ids] @ values["right"][0]
    return values["w"][0][ids]
