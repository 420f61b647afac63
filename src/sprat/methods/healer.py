"""What a healing trains, on how much text, and how many contexts a step: the same for `sprat heal` and `sprat fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from sprat.coding.tensors import Dense, Entry, Lattice
from sprat.errors import SpratError
from sprat.methods.deep import Deep
from sprat.methods.distil import Teacher
from sprat.methods.heal import Scales
from sprat.methods.held import held
from sprat.recipe import Recipe
from sprat.sizes import format_bytes
from sprat.source.maps import linear_maps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Healer = Scales | Deep
T = TypeVar("T")

#: Tokens that are learnt from, where the caller does not say: at least, for each minute, and at most.
TOKENS, TOKENS_A_MINUTE, MOST_TOKENS = 32768, 6144, 262144
#: Contexts a step where integers are trained: their step costs a fifth of what a context does.
DEEP_CONTEXTS = 4


def healer(
    original: PreTrainedModel, rounded: PreTrainedModel, entries: Mapping[str, Entry], recipe: Recipe
) -> Healer:
    """A learner of `rounded`, the model that `entries` stand for. With `recipe.heal_deep` of its integers too, which
    have no trellis, within what the recipe holds them to; with `recipe.heal_rank` of new products beside its maps too
    (methods/adapter.py)."""
    if not recipe.heal_deep:
        names = [name for name, entry in entries.items() if not isinstance(entry.tensor, Dense)]
        return Scales(Teacher(original), rounded, entries, names, rank=recipe.heal_rank)
    found = {name: entry.tensor for name, entry in entries.items() if isinstance(entry.tensor, Lattice)}
    plain = recipe.unconstrained()
    # Constraints are the layers': embedding and head have none.
    layers = {m.name for m in linear_maps(rounded)} if recipe != plain else set()
    constraints = {
        name: held(lattice, recipe if entries[name].maps[0] in layers else plain)
        for name, lattice in found.items()
    }
    return Deep(Teacher(original), rounded, entries, list(found), constraints)


def fitting(
    learner: Healer, made: Callable[[dict[str, Entry]], T], fits: Callable[[T], bool]
) -> Iterator[tuple[dict[str, Entry], T]]:
    """Of everything that may be kept of the training, the finest version whose `made` fits, where one does."""
    for versions in learner.candidates():
        for entries in versions:
            if fits(whole := made(entries)):
                yield entries, whole
                break


def contexts_a_step(deep: bool) -> int:
    """Contexts of each process whose gradients a step of the optimizer sums."""
    return DEEP_CONTEXTS if deep else 1


def steps(contexts: int, deep: bool, processes: int = 1) -> int:
    """Of the optimizer, for at least so many contexts of all processes."""
    return -(-contexts // (contexts_a_step(deep) * processes))


def tokens_for(minutes: float | None, processes: int = 1) -> int:
    """Tokens to learn from in so many minutes: what is seen again and again is learnt by heart."""
    return max(TOKENS, min(int(TOKENS_A_MINUTE * processes * (minutes or 0)), MOST_TOKENS))


def memory(rounded: nn.Module, entries: Mapping[str, Entry], deep: bool, context: int) -> int:
    """Bytes that a healing takes, about: both models, a context's pass or, at the end, a third model that is compared;
    with `deep` gradients and latents."""
    size = next(rounded.parameters()).itemsize
    parameters = sum(p.numel() for p in rounded.parameters())
    shapes = [entry.tensor.shape for entry in entries.values() if not isinstance(entry.tensor, Dense)]
    widths, vocabulary = sum(map(sum, shapes)), max(rows for rows, _ in shapes)
    of_context = 2 * size * context * (widths + 2 * vocabulary)
    return 2 * size * parameters + max(of_context, size * parameters) + deep * (size + 8) * parameters


@contextmanager
def telling(nbytes: int, device: torch.device | None = None) -> Iterator[None]:
    """Memory that ends here becomes a SpratError that says how much was needed, on which device (None: the CPU)."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError, on the CPU a nameless one
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(
            error
        ):
            raise
        gpu = device is not None and device.type != "cpu"
        raise SpratError(
            f"out of memory{f' on {device}' if gpu else ''}: this healing takes about {format_bytes(nbytes)}; the "
            "integers (--deep) and long contexts (the recipe's `context`) are most of it"
            + "; --device cpu has the machine's own memory"
            * gpu
        ) from error
