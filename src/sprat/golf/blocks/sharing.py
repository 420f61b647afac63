"""Depth recurrence: stored layers that are run through several times, each time behind norms of their own.

    "all"     0 1 2 3, 0 1 2 3, …          every layer, `loops` times over
    "middle"  0, 1 2, 1 2, …, 3            the first and the last once, those between `loops` times over

Universal Transformer (arXiv 1807.03819), ALBERT (1909.11942); the middle alone, between layers that read and write:
2502.05171, section 3. Maps and norms of heads are shared, the norms in front of them are not: two vectors a use.
"""

from __future__ import annotations

SHARED = ("none", "all", "middle")


def owners(shared: str, layers: int, loops: int) -> tuple[int, ...]:
    """For each use of a layer, in order: the use that stores its maps (itself, or an earlier one)."""
    inside = range(layers) if shared == "all" else range(1, layers - 1)
    order = [*range(inside.start), *list(inside) * loops, *range(inside.stop, layers)]
    return tuple(order.index(layer) for layer in order) if shared != "none" else tuple(range(layers))
