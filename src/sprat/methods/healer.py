"""What a healing trains, on how much text, and how many contexts a step: the same for `sprat heal` and `sprat fit`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from sprat.coding.tensors import Entry, Lattice
from sprat.methods.deep import Deep
from sprat.methods.distil import Teacher
from sprat.methods.heal import Scales

Healer = Scales | Deep

#: Tokens that are learnt from, where the caller does not say: at least, for each minute, and at most.
TOKENS, TOKENS_A_MINUTE, MOST_TOKENS = 32768, 6144, 262144
#: Contexts a step where integers are trained: their step costs a fifth of what a context does.
DEEP_CONTEXTS = 4


def healer(original: nn.Module, rounded: nn.Module, entries: Mapping[str, Entry], deep: bool) -> Healer:
    """A learner of `rounded`, the model that `entries` stand for. deep: its integers too, which have no trellis."""
    names = [name for name, entry in entries.items() if isinstance(entry.tensor, Lattice)]
    return (Deep if deep else Scales)(Teacher(original), rounded, entries, names)


def contexts_a_step(deep: bool) -> int:
    return DEEP_CONTEXTS if deep else 1


def steps(contexts: int, deep: bool) -> int:
    """Of the optimizer, for at least so many contexts."""
    return -(-contexts // contexts_a_step(deep))


def tokens_for(minutes: float | None) -> int:
    """Tokens to learn from in so many minutes: what is seen again and again is learnt by heart."""
    return max(TOKENS, min(int(TOKENS_A_MINUTE * (minutes or 0)), MOST_TOKENS))
