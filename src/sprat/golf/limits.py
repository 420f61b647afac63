"""What the values of a golf recipe may be, a rule a line: the key, whether it holds, and what is allowed.

A rule may rely on those before it: they are asked in order, up to the first that does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sprat.golf.blocks.bitlinear import WEIGHTS
from sprat.golf.blocks.delta import MEMORIES
from sprat.golf.blocks.ngrams import ORDERS
from sprat.golf.blocks.sharing import SHARED

if TYPE_CHECKING:
    from sprat.golf.recipe import Recipe

#: The tokenizer's smallest and largest vocabulary: 256 bytes and the document mark, 16k.
VOCABULARY = (257, 16384)


# fmt: off
def ranges(r: Recipe) -> Iterator[tuple[str, bool, str]]:
    """Of each value by itself, or beside the few that bound it."""
    yield "vocabulary", VOCABULARY[0] <= r.vocabulary <= VOCABULARY[1], "257 to 16384"
    yield "validation", 0 < r.validation <= 0.5, "above 0, at most 0.5"
    yield "stream", 1 <= r.stream <= 10**12, "1 to 10^12"
    yield "layers", 1 <= r.layers <= 256, "1 to 256"
    yield "heads", 1 <= r.heads <= 256, "1 to 256"
    yield "kv_heads", 1 <= r.kv_heads <= r.heads and r.heads % r.kv_heads == 0, "a divisor of heads"
    yield "width", 2 <= r.width <= 16384 and r.width % (2 * r.heads) == 0, "a multiple of 2 x heads"
    yield "inner", 1 <= r.inner <= 65536, "1 to 65536"
    yield "activation", r.activation in ("swiglu", "relu2"), '"swiglu" or "relu2"'
    yield "context", 16 <= r.context <= 65536, "16 to 65536"
    yield "shared", r.shared in SHARED, "one of " + ", ".join(SHARED)
    yield "loops", 1 <= r.loops <= 64, "1 to 64"
    yield "ngrams", 0 <= r.ngrams <= 1 << 22, "0 to 4194304"
    yield "ngram_width", 0 <= r.ngram_width <= r.width, "0 (all) to width"
    yield "ngram_order", r.ngram_order in ORDERS, "2 or 3"
    yield "weights", r.weights in WEIGHTS, "one of " + ", ".join(WEIGHTS)
    yield "memory", r.memory in MEMORIES, "one of " + ", ".join(MEMORIES)
    yield "memory_every", 1 <= r.memory_every <= 256, "1 to 256"
    yield "experts", r.experts == 0 or 2 <= r.experts <= 64, "0, or 2 to 64"
    yield "chosen", 1 <= r.chosen <= max(1, r.experts - 1), "at least 1 and fewer than experts"
    yield "balance", 0 <= r.balance <= 1, "0 to 1"
    yield "batch", 1 <= r.batch <= 65536, "1 to 65536"
    yield "accumulate", 1 <= r.accumulate <= 65536, "1 to 65536"
    yield "matrix_rate", 0 < r.matrix_rate <= 1, "above 0, at most 1"
    yield "embedding_rate", 0 < r.embedding_rate <= 1, "above 0, at most 1"
    yield "vector_rate", 0 < r.vector_rate <= 1, "above 0, at most 1"
    yield "momentum", 0 <= r.momentum < 1, "0 to below 1"
    yield "weight_decay", 0 <= r.weight_decay <= 10, "0 to 10"
    yield "clip", 0 <= r.clip <= 1e6, "0 or more"
    yield "warm_up", 0 <= r.warm_up <= 1, "0 to 1"
    yield "cool_down", 0 <= r.cool_down <= 1 - r.warm_up, "0 to 1 - warm_up"
    yield "ema", 0 <= r.ema < 1, "0 to below 1"
    yield "noise", 0 <= r.noise <= 1, "0 to 1"
    yield "rate_term", 0 <= r.rate_term <= 1, "0 to 1"
    yield "rate_weight", 0 <= r.rate_weight <= 100, "0 to 100"
    yield "prune_from", r.prune_from == 0 or r.inner < r.prune_from <= 65536, "0, or inner + 1 to 65536"
    yield "prune_at", 0 <= r.prune_at < 1, "0 to below 1"
    yield "easy", 0 <= r.easy <= 1, "0 to 1"
    yield "drop", 0 <= r.drop <= 0.9, "0 to 0.9"
    yield "teach_share", 0 < r.teach_share < 1, "above 0, below 1"
    yield "distill", 0 <= r.distill <= 1, "0 to 1"
    yield "precision", r.precision in ("auto", "float32", "bf16"), '"auto", "float32" or "bf16"'
    yield "finish", r.finish in ("waterlevel", "int8-zlib"), '"waterlevel" or "int8-zlib"'


def combinations(r: Recipe) -> Iterator[tuple[str, bool, str]]:
    """Of what does not go together."""
    real = r.weights == "real"
    yield "loops", (r.loops > 1) == (r.shared != "none"), "above 1 where layers are shared, else 1"
    yield "layers", r.shared != "middle" or r.layers >= 3, 'at least 3 with shared = "middle"'
    plain = (r.shared, r.memory, r.experts, r.weights, r.prune_from) == ("none", "none", 0, "real", 0)
    yield ("equation", not r.equation or plain,
           "empty beside shared layers, memory, experts, trained integers and pruning")
    yield "easy", r.easy + r.drop <= 1, "at most 1 - drop"
    yield "teacher", not (r.teacher and r.teach), "empty where [teach] trains one"
    yield ("finish", r.finish == "int8-zlib" or r.activation == "swiglu",
           '"int8-zlib" with squared ReLU, which the engine does not serve')
    yield ("finish", r.finish == "waterlevel" or real,
           '"waterlevel" with ternary or binary weights, which 8-bit rows would only make larger')
    yield ("rate_term", r.rate_term == 0 or real,
           "0 with ternary or binary weights, whose bits no training changes")
    yield ("noise", r.noise == 0 or real,
           "0 with ternary or binary weights, which are trained as they are rounded")
    yield "prune_from", r.prune_from == 0 or r.experts == 0, "0 with experts"
# fmt: on
