"""The model of a golf: a decoder of the Qwen3 family, plainly written, with that family's names of tensors.

    h = h + o( attention( rope(norm(q x)), rope(norm(k x)), v x ) ),   x = norm(h)
    h = h + down( silu(gate x) * up x ),                               x = norm(h)       "swiglu"
    h = h + down( relu(up x)^2 ),                                      x = norm(h)       "relu2"

norm: RMSNorm (arXiv 1910.07467); rope: rotary positions (2104.09864); grouped-query attention (2305.13245); norms of
queries and keys as in Qwen3 (2505.09388); swiglu: 2002.05202; squared ReLU: Primer (2109.08668). The head is the
embedding. With "swiglu" the weights are a `Qwen3ForCausalLM`, exactly, and so the engine serves them. What else a
recipe may ask for stands in blocks/, a file each; a model that has any of it is golf/pretrained.py's.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprat.equations.maps import begin, head, install
from sprat.golf.blocks.bitlinear import linear
from sprat.golf.blocks.delta import DeltaMemory
from sprat.golf.blocks.experts import Experts
from sprat.golf.blocks.ngrams import NgramEmbedding
from sprat.golf.blocks.sharing import owners
from sprat.golf.recipe import Recipe

THETA = 10000.0
EPS = 1e-6
#: What a layer keeps of the tokens that it has read: keys and values, or a memory's state, of one size however many.
Kept = dict[str, Tensor]
#: Contexts of at most so many tokens are attended to by plain products on a CPU.
SHORT = 512


class Past:
    """A text under way: the tokens that were read, and what each use of a layer keeps of them."""

    def __init__(self, batch: int):
        self.ids = torch.empty(batch, 0, dtype=torch.int64)
        """(batch, length)."""
        self.kept: dict[int, Kept] = {}

    @property
    def length(self) -> int:
        return self.ids.shape[1]


class Norm(nn.Module):
    """RMSNorm over the last axis, computed in float32, given in the type of its weights."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        return F.rms_norm(x.float(), weight.shape, weight.float(), EPS).to(weight.dtype)


class Attention(nn.Module):
    """Causal attention of `heads` queries over `kv_heads` keys and values."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        width, self.heads, self.kv_heads = recipe.width, recipe.heads, recipe.kv_heads
        self.size = width // recipe.heads
        self.q_proj = linear(width, width, recipe.weights)
        self.k_proj = linear(width, self.kv_heads * self.size, recipe.weights)
        self.v_proj = linear(width, self.kv_heads * self.size, recipe.weights)
        self.o_proj = linear(width, width, recipe.weights)
        self.q_norm, self.k_norm = Norm(self.size), Norm(self.size)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], kept: Kept | None = None) -> Tensor:
        """x: (batch, context, width), what follows the keys and values in `kept`, which gain its own."""
        batch, context, width = x.shape

        def split(y: Tensor, heads: int) -> Tensor:
            return y.view(batch, context, heads, self.size).transpose(1, 2)

        v = split(self.v_proj(x), self.kv_heads)
        q = rotate(self.q_norm(split(self.q_proj(x), self.heads)), rope).to(v.dtype)
        k = rotate(self.k_norm(split(self.k_proj(x), self.kv_heads)), rope).to(v.dtype)
        if kept is not None:
            if kept:
                k, v = torch.cat([kept["k"], k], 2), torch.cat([kept["v"], v], 2)
            kept |= {"k": k, "v": v}
        y = attend(q, k, v)
        return self.o_proj(y.transpose(1, 2).reshape(batch, context, width))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention. q: (batch, heads, context, size), of the last tokens of k, v: (batch, kv_heads, tokens, size).

    On a CPU short contexts go through plain products, forward and backward about twice as fast as torch's own.
    """
    batch, heads, context, size = q.shape
    kv_heads, tokens = k.shape[1:3]
    if (tokens > SHORT or q.device.type != "cpu") and tokens == context:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)
    later = torch.full((context, tokens), -torch.inf, dtype=q.dtype, device=q.device).triu(
        1 + tokens - context
    )
    grouped = (q * size**-0.5).reshape(batch, kv_heads, -1, size)
    scores = (grouped @ k.mT).view(batch, heads, context, tokens)
    return ((scores + later).softmax(-1).view(batch, kv_heads, -1, tokens) @ v).view(q.shape)


class FeedForward(nn.Module):
    """Of the recipe's activation."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        if recipe.activation == "swiglu":
            self.gate_proj = linear(recipe.width, recipe.inner, recipe.weights)
        self.up_proj = linear(recipe.width, recipe.inner, recipe.weights)
        self.down_proj = linear(recipe.inner, recipe.width, recipe.weights)
        self.gated = recipe.activation == "swiglu"

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(F.relu(self.up_proj(x)).square())


class Layer(nn.Module):
    """Attention and feed-forward, or what the recipe has in their place, each behind a norm and beside a residual
    stream in float32. index: among the stored layers; owner: the layer whose maps this one uses."""

    def __init__(self, recipe: Recipe, index: int, owner: Layer | None = None):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(recipe.width), Norm(recipe.width)
        if owner is not None:
            # Not registered, so that a map has one name.
            object.__setattr__(self, "self_attn", owner.self_attn)
            object.__setattr__(self, "mlp", owner.mlp)
            return
        remembers = recipe.memory == "delta" and index % recipe.memory_every == 0
        self.self_attn = (
            DeltaMemory(recipe.width, recipe.heads, recipe.weights) if remembers else Attention(recipe)
        )
        feed_forward = partial(FeedForward, recipe)
        self.mlp = (
            Experts(recipe.width, recipe.experts, recipe.chosen, recipe.balance, feed_forward)
            if recipe.experts
            else feed_forward()
        )

    def forward(self, h: Tensor, rope: tuple[Tensor, Tensor], kept: Kept | None = None) -> Tensor:
        h = h + self.self_attn(self.input_layernorm(h), rope, kept)
        return h + self.mlp(self.post_attention_layernorm(h))


class Trunk(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__()
        self.size = recipe.width // recipe.heads
        self.embed_tokens = nn.Embedding(vocabulary, recipe.width)
        if recipe.ngrams:
            self.embed_ngrams = NgramEmbedding(
                recipe.ngrams, recipe.ngram_width or recipe.width, recipe.ngram_order
            )
        self.layers = nn.ModuleList()
        stored = 0
        for use, owner in enumerate(owners(recipe.shared, recipe.layers, recipe.loops)):
            self.layers.append(Layer(recipe, stored, None if owner == use else self.layers[owner]))  # type: ignore[arg-type]
            stored += owner == use
        self.norm = Norm(recipe.width)
        if recipe.equation:
            install(self, recipe.equation)

    def forward(self, ids: Tensor, past: Past | None = None) -> Tensor:
        """ids: (batch, context) int64 -> what the head reads, (batch, context, width); with `past` of the tokens
        behind those that it has read, which it then has too."""
        read = 0 if past is None else past.length
        h = self.embed_tokens(ids[:, read:]).float()
        if hasattr(self, "embed_ngrams"):
            h = self.embed_ngrams.added_to(h, ids)
        cos, sin = rotations(ids.shape[1], self.size, ids.device)
        rope = cos[read:], sin[read:]
        for use, layer in enumerate(self.layers):
            h = layer(h, rope, None if past is None else past.kept.setdefault(use, {}))
        if past is not None:
            past.ids = ids
        return self.norm(h)


class Decoder(nn.Module):
    """The whole model; `seed` decides its first weights."""

    def __init__(self, recipe: Recipe, vocabulary: int, seed: int = 0):
        super().__init__()
        self.model = Trunk(recipe, vocabulary)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            deviation = parameter.shape[1] ** -0.5
            if name.endswith("embed_tokens.weight"):
                deviation = 0.02
            elif name.endswith("embed_ngrams.weight"):
                deviation = 0.0
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                deviation *= 0.02  # every layer begins near the identity
            nn.init.normal_(parameter, std=deviation, generator=generator)
        begin(self, generator)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (batch, context) int64 -> logits (batch, context, vocabulary)."""
        return head(self.model.embed_tokens, self.model(ids))


def rotations(context: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (context, size) of rotary positions, the two halves of a head rotating together."""
    frequency = THETA ** (-torch.arange(0, size, 2, device=device).float() / size)
    angle = torch.arange(context, device=device)[:, None] * frequency
    both = torch.cat([angle, angle], dim=1)
    return both.cos(), both.sin()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """x: (batch, heads, context, size)."""
    a, b = x.chunk(2, dim=-1)
    return x * rope[0] + torch.cat([-b, a], dim=-1) * rope[1]
