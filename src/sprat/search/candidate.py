"""A candidate of the search: an equation, how deep the network is and how finely its numbers are to be stored.

Its width is not chosen but follows: the widest network whose numbers, at those bits, fit beside the tokenizer into the
cap. So all candidates weigh the same, and differ in what they do with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sprat.anatomy.shape import Shape, from_numbers
from sprat.equations.network import Equation, parse
from sprat.errors import RecipeError
from sprat.golf.recipe import Recipe

#: Dimensions of a head; widths are multiples of it.
HEAD = 16
WIDEST = 256
#: Feed-forward width for each of the network's, in multiples of 16.
INNER = 2.5
#: Keys of a recipe that no candidate can have, and why.
_BESIDE = "an equation does not go with it"
_TEXT = "trials learn from the text alone, all of it"
ALIEN = {
    "finish": "the bytes of a candidate are those of the water level",
    **dict.fromkeys(("shared", "memory", "experts", "weights", "prune_from"), _BESIDE),
    **dict.fromkeys(("teacher", "teach", "easy", "drop"), _TEXT),
}


@dataclass(frozen=True)
class Candidate:
    """bits: a number, as the rounding is expected to take."""

    equation: Equation
    layers: int
    bits: int

    def to_dict(self) -> dict[str, Any]:
        return {"equation": str(self.equation), "layers": self.layers, "bits": self.bits}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Candidate:
        return Candidate(parse(values["equation"]), values["layers"], values["bits"])


@dataclass(frozen=True)
class Network:
    """A candidate at the width that fills the cap."""

    recipe: Recipe
    numbers: int
    flops: int
    """Of one more token, nothing before it."""


def refuse(base: Recipe) -> None:
    """RecipeError where candidates cannot share what `base` asks for."""
    plain = Recipe()
    for key, why in ALIEN.items():
        if (value := getattr(base, key)) != (usual := getattr(plain, key)):
            raise RecipeError(f"a search cannot have {key} = {value!r}: {why}; it must be {usual!r}")


def network(candidate: Candidate, base: Recipe, vocabulary: int, room: int) -> Network | None:
    """The widest network whose numbers take at most `room` bytes; None where none does."""
    found = None
    for width in range(HEAD, WIDEST + 1, HEAD):
        if width < base.ngram_width:
            continue  # its table would be wider than the network
        recipe = _recipe(candidate, base, width)
        shape = shape_of(recipe, vocabulary)
        try:
            candidate.equation.check(shape)
        except RecipeError:
            continue  # a wider one may have room for its blocks
        numbers = numbers_of(candidate.equation, recipe, shape)
        if numbers * candidate.bits > 8 * room:
            break
        found = recipe, numbers, candidate.equation.flops(shape)
    if found is None:
        return None
    return Network(replace(found[0], equation=str(candidate.equation)), *found[1:])


def shape_of(recipe: Recipe, vocabulary: int) -> Shape:
    """Its anatomy: the head tied, queries and keys normed."""
    plain = from_numbers(
        recipe.width,
        recipe.layers,
        recipe.inner,
        vocabulary,
        recipe.heads,
        recipe.kv_heads,
        tied=True,
        gated=recipe.activation == "swiglu",
    )
    return replace(plain, head_norms=2 * plain.head_dim)


def numbers_of(equation: Equation, recipe: Recipe, shape: Shape) -> int:
    """All that is stored, the table of n-grams among it; shape: the recipe's."""
    return sum(equation.parameters(shape).values()) + recipe.ngrams * (recipe.ngram_width or recipe.width)


def _recipe(candidate: Candidate, base: Recipe, width: int) -> Recipe:
    heads = width // HEAD
    return replace(
        base,
        layers=candidate.layers,
        width=width,
        heads=heads,
        kv_heads=heads // 2 if heads % 2 == 0 else 1,
        inner=round(INNER * width / 16) * 16,
        equation="",
    )
