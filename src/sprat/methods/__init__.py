"""How values are chosen, a file a method: pure functions of (weights, statistics, options).

A method is `(w: (m, n), metric: Metric, level, recipe, tables, threads) -> Stored`; `sprat fit` finds it here by the
recipe's `method`, for the layers' maps. What those of SETTLED give is the same at every level: what a budget leaves
beside it is the embedding's.
"""

from __future__ import annotations

from collections.abc import Callable

from sprat.coding.tensors import Stored
from sprat.errors import RecipeError, nearest
from sprat.methods import kept, lowrank, ternary, waterlevel

Method = Callable[..., Stored]

METHODS: dict[str, Method] = {
    "waterlevel": waterlevel.round_to_level,
    "lowrank": lowrank.product,
    "waterlevel+lowrank": lowrank.beside_lattice,
    "ternary": ternary.round_ternary,
    "binary": ternary.round_binary,
    "kept": kept.keep,
}
SETTLED = frozenset({"lowrank", "ternary", "binary", "kept"})


def find(name: str) -> Method:
    """The method `name`; RecipeError for one that is not in the table."""
    if name not in METHODS:
        raise RecipeError(
            f"recipe: unknown method {name!r}{nearest(name, METHODS)}; known: {', '.join(METHODS)}, and auto"
        )
    return METHODS[name]
