"""The shape of a decoder-only transformer, and what it counts to.

Counts follow transformers' own modules, family by family: tests build each one on the meta device and compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from sprat.errors import SourceError


@dataclass(frozen=True)
class Map:
    """A linear map y = W x (+ b) of a layer, W: (rows, columns); of a mixture one for each of its `experts`."""

    name: str
    rows: int
    columns: int
    bias: bool = False
    experts: int = 1

    @property
    def weights(self) -> int:
        return self.rows * self.columns * self.experts


@dataclass(frozen=True)
class Shape:
    """A decoder: `layers` equal layers of attention and feed-forward between an embedding and a head.

    norm_values: parameters of one norm over the width (2 x width for a LayerNorm with bias); norms: how many a layer
    has (and the model one more); head_norms: parameters of the norms on queries and keys in a layer; positions: learned
    position embeddings; windows: tokens that each layer's attention sees, 0 for all; experts: feed-forwards of a layer,
    each of `ffn` neurons, of which a router chooses `chosen` for a token (0 experts: one feed-forward, no router).
    """

    family: str
    layers: int
    width: int
    ffn: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    gated: bool
    query_bias: bool = False
    output_bias: bool = False
    ffn_bias: bool = False
    norms: int = 2
    norm_values: int = 0
    head_norms: int = 0
    positions: int = 0
    windows: tuple[int, ...] = ()
    experts: int = 0
    chosen: int = 0

    @cached_property
    def maps(self) -> tuple[Map, ...]:
        """The linear maps of one layer."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        up = ("gate", "up") if self.gated else ("up",)
        count = self.experts or 1
        router = (Map("router", self.experts, self.width),) if self.experts else ()
        return (
            Map("query", query, self.width, self.query_bias),
            Map("key", key, self.width, self.query_bias),
            Map("value", key, self.width, self.query_bias),
            Map("output", self.width, query, self.output_bias),
            *router,
            *(Map(name, self.ffn, self.width, self.ffn_bias, count) for name in up),
            Map("down", self.width, self.ffn, self.ffn_bias, count),
        )

    @cached_property
    def parts(self) -> dict[str, int]:
        """Parameters by part; a tied head is counted once, as the embedding."""
        attention = sum(m.weights for m in self.maps[:4])
        router = sum(m.weights for m in self.maps[4:] if m.name == "router")
        feed_forward = sum(m.weights for m in self.maps[4:]) - router
        biases = sum(m.rows for m in self.maps if m.bias)
        small = self.layers * (self.norms * self.norm_values + self.head_norms + biases) + self.norm_values
        found = {
            "embedding": self.vocabulary * self.width,
            "head": 0 if self.tied else self.vocabulary * self.width,
            "positions": self.positions * self.width,
            "attention": self.layers * attention,
            "feed-forward": self.layers * feed_forward,
            "routers": self.layers * router,
            "norms and biases": small,
        }
        return {name: count for name, count in found.items() if count}

    @property
    def parameters(self) -> int:
        return sum(self.parts.values())

    @property
    def active(self) -> int:
        """Parameters that one token uses: all but the experts that are not chosen for it."""
        return self.parameters - self.layers * self._idle

    @property
    def _idle(self) -> int:
        """Weights of a layer that a token has no use for."""
        return sum(m.rows * m.columns * (m.experts - self.chosen) for m in self.maps if m.experts > 1)

    @property
    def outside(self) -> int:
        """Parameters that a method for the layers' maps leaves alone: embedding, head, positions."""
        return sum(self.parts.get(name, 0) for name in ("embedding", "head", "positions"))

    def flops(self, context: int) -> int:
        """Floating-point operations of one more token behind `context` tokens: two a weight of each product, the
        head's among them, and four a value of the keys and values that attention reads; looking up is free."""
        layer = sum(m.weights for m in self.maps) - self._idle
        products = layer * self.layers + self.vocabulary * self.width
        seen = sum(min(context, window or context) for window in self._windows)
        return 2 * products + 4 * self.heads * self.head_dim * seen

    def cache_bytes(self, context: int, bytes_a_value: int = 2) -> int:
        """The key-value cache of `context` tokens: a layer with a window keeps no more than that."""
        seen = sum(min(context, window or context) for window in self._windows)
        return 2 * self.kv_heads * self.head_dim * seen * bytes_a_value

    @property
    def _windows(self) -> tuple[int, ...]:
        return self.windows or (0,) * self.layers


def from_numbers(
    width: int,
    layers: int,
    ffn: int,
    vocabulary: int,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    tied: bool = False,
    gated: bool = True,
) -> Shape:
    """A plain decoder: no biases, an RMSNorm before attention and feed-forward. heads default to one for 128 of width
    (one at least), kv_heads to heads, head_dim to width // heads."""
    heads = heads or max(1, width // (head_dim or 128))
    kv_heads = kv_heads or heads
    if heads % kv_heads:
        raise SourceError(f"{heads} heads are no multiple of {kv_heads} key-value heads")
    return Shape(
        family="decoder",
        layers=layers,
        width=width,
        ffn=ffn,
        vocabulary=vocabulary,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim or max(1, width // heads),
        tied=tied,
        gated=gated,
        norm_values=width,
    )
