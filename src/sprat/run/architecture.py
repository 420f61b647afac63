"""A Hugging Face config as what the native engine computes: sizes, norms, windows, which tensor goes where.

Everything that comes from the config is checked here; `FormatError` names the field, `UnsupportedError` an
architecture or a setting that the engine does not serve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from sprat.errors import FormatError, RequestError, UnsupportedError, nearest
from sprat.golf import MODEL_TYPE
from sprat.run.rope import Rope, ropes

#: What the native engine serves, by the config's model_type.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", MODEL_TYPE)
#: Of a golf's building blocks (sprat.golf.pretrained), what the engine serves: layers that share their maps, and
#: hashed n-grams.
_GOLF = ("layers", "shared", "loops", "ngrams", "ngram_width", "ngram_order")
#: How keys and values may be kept, the default first (docs/engine.md has what was measured).
CACHES = ("int8", "bf16")
_ACTIVATIONS = {"silu": False, "swish": False, "gelu_pytorch_tanh": True, "gelu_tanh": True}


@dataclass(frozen=True)
class Place:
    """Where a tensor goes: `part` of `layer` (-1 for what no layer has), its rows from `offset` on."""

    layer: int
    part: str
    shape: tuple[int, ...]
    offset: int = 0


@dataclass(frozen=True)
class Architecture:
    """A decoder of the llama family.

    shape: what the native model is made from; windows: positions a layer's tokens see, 0 for all; rope: which
    of `ropes` a layer takes; norm_offset: added to the stored weights of norms (Gemma: 1); owners: the layer whose maps
    a layer uses, its own but where layers are shared; ngram_order: of a table of hashed n-grams, 0 where there is none.
    """

    family: str
    shape: dict[str, Any]
    windows: tuple[int, ...]
    rope: tuple[int, ...]
    ropes: tuple[Rope, ...]
    context: int
    tied: bool
    norm_offset: float
    owners: tuple[int, ...]
    ngram_order: int
    places: dict[str, Place] = field(repr=False)

    def cache_bytes(self, precision: str) -> int:
        """Bytes that a token takes in a key-value cache of `precision`: one of CACHES, or float32.

        Heads are rounded up to 32 dimensions; int8 has a float32 scale for each key and each value.
        """
        s, (number, scale) = self.shape, {"float32": (4, 0), "bf16": (2, 0), "int8": (1, 4)}[precision]
        return 2 * s["layers"] * s["kv_heads"] * (-(-s["dimension"] // 32) * 32 * number + scale)


def check_cache(wanted: str | None) -> str:
    """One of CACHES, the first where none is asked for."""
    if wanted is None:
        return CACHES[0]
    if wanted not in CACHES:
        raise RequestError(f"unknown cache {wanted!r}{nearest(wanted, CACHES)}: int8 or bf16", "cache")
    return wanted


def architecture(config: dict[str, Any]) -> Architecture:
    """Read a config; see the module for what is raised."""
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        hint = nearest(family, FAMILIES) if isinstance(family, str) else ""
        raise UnsupportedError(
            f"the native engine does not serve {family!r}{hint}: one of {', '.join(FAMILIES)}"
        )
    read = _Reader(config)
    gemma = family == "gemma3_text"
    blocks = _Reader({})
    if family == MODEL_TYPE:
        blocks, family = _blocks(config.get("blocks")), "qwen3"
    layers = read.whole("num_hidden_layers", 1, 4096)
    hidden = read.whole("hidden_size", 1, 1 << 20)
    heads = read.whole("num_attention_heads", 1, 1 << 16)
    kv_heads = read.whole("num_key_value_heads", 1, heads, heads)
    if heads % kv_heads:
        raise FormatError(f"config: {heads} attention heads are no multiple of {kv_heads} key-value heads")
    dimension = read.whole("head_dim", 2, 4096, hidden // heads)
    if dimension % 2:
        raise FormatError(f"config: 'head_dim' must be even, not {dimension}")
    read.refuse("attn_logit_softcapping", "use_bidirectional_attention")
    scale = read.number("query_pre_attn_scalar", 1e-6, 1e9, 256.0) if gemma else float(dimension)
    shape = {
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "dimension": dimension,
        "inner": read.whole("intermediate_size", 1, 1 << 22),
        "vocabulary": read.whole("vocab_size", 1, 1 << 26),
        "eps": read.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        "embed_scale": math.sqrt(hidden) if gemma else 1.0,
        "softcap": read.number("final_logit_softcapping", 0.0, 1e6, 0.0) if gemma else 0.0,
        "attention_scale": scale**-0.5,
        "gelu": _gelu(read, "hidden_activation" if gemma else "hidden_act"),
    }
    windows = _windows(read, family, layers)
    kinds = ropes(config, dimension, gemma)
    tied = read.flag("tie_word_embeddings", gemma)
    owners = _owners(config.get("layer_owners"), layers)
    places = _places(read, family, shape, tied, owners)
    order = 0
    if rows := blocks.whole("ngrams", 0, 1 << 22, 0):
        order = blocks.whole("ngram_order", 2, 3, 2)
        width = blocks.whole("ngram_width", 0, hidden, 0) or hidden
        places["model.embed_ngrams.weight"] = Place(-1, "ngrams", (rows, width))
    return Architecture(
        family=family,
        shape=shape,
        windows=windows,
        rope=tuple(int(gemma and window > 0) for window in windows),
        ropes=kinds,
        context=read.whole("max_position_embeddings", 1, 1 << 30),
        tied=tied,
        norm_offset=1.0 if gemma else 0.0,
        owners=owners,
        ngram_order=order,
        places=places,
    )


def _blocks(blocks: object) -> _Reader:
    if not isinstance(blocks, dict):
        raise FormatError("config: 'blocks' must name the blocks of a golf's model")
    if other := sorted(str(name) for name in blocks if name not in _GOLF):
        raise UnsupportedError(
            f"the native engine does not serve a golf's {', '.join(other)}: of its blocks shared layers and n-grams"
        )
    return _Reader(blocks)


def _owners(found: object, layers: int) -> tuple[int, ...]:
    """For each layer the one whose maps it uses: itself, or an earlier one that has its own."""
    if found is None:
        return tuple(range(layers))
    if (
        not isinstance(found, list)
        or len(found) != layers
        or not all(type(o) is int and 0 <= o <= i and found[o] == o for i, o in enumerate(found))
    ):
        raise FormatError(
            f"config: 'layer_owners' must name, for each of {layers} layers, itself or one before it"
        )
    return tuple(found)


def _gelu(read: _Reader, name: str) -> bool:
    value = read.config.get(name, "silu")
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        raise UnsupportedError(
            f"the native engine does not serve the activation {value!r}: one of {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[value]


def _windows(read: _Reader, family: str, layers: int) -> tuple[int, ...]:
    """The sliding window of each layer, 0 where it sees everything."""
    config = read.config
    window = config.get("sliding_window")
    if (
        window is None
        or family == "llama"
        or (family.startswith("qwen") and not config.get("use_sliding_window"))
    ):
        return (0,) * layers
    window = read.whole("sliding_window", 1, 1 << 30)
    if family == "mistral":
        return (window,) * layers
    kinds = config.get("layer_types")
    if kinds is None:
        if family == "gemma3_text":
            pattern = read.whole("sliding_window_pattern", 1, 1 << 20, 6)
            sliding = [bool((i + 1) % pattern) for i in range(layers)]
        else:
            first = read.whole("max_window_layers", 0, 1 << 20, 28)
            sliding = [i >= first for i in range(layers)]
    else:
        allowed = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list) or len(kinds) != layers or not all(k in allowed for k in kinds):
            raise FormatError(f"config: 'layer_types' must name {layers} layers' kinds, each of {allowed}")
        sliding = [kind == "sliding_attention" for kind in kinds]
    return tuple(window if s else 0 for s in sliding)


def _places(
    read: _Reader, family: str, s: dict[str, Any], tied: bool, owners: tuple[int, ...]
) -> dict[str, Place]:
    """Every tensor that the model must have."""
    hidden, inner, vocabulary = s["hidden"], s["inner"], s["vocabulary"]
    query, key = s["heads"] * s["dimension"], s["kv_heads"] * s["dimension"]
    gemma, llama = family == "gemma3_text", family == "llama"
    bias = read.flag("attention_bias", False) if family in ("llama", "qwen3", "gemma3_text") else False
    mlp_bias = read.flag("mlp_bias", False) if llama else False
    out = {
        "model.embed_tokens.weight": Place(-1, "embedding", (vocabulary, hidden)),
        "model.norm.weight": Place(-1, "final_norm", (hidden,)),
    }
    if not tied:
        out["lm_head.weight"] = Place(-1, "head", (vocabulary, hidden))
    maps = [
        ("self_attn.q_proj", "qkv", 0, query, hidden, bias or family == "qwen2"),
        ("self_attn.k_proj", "qkv", query, key, hidden, bias or family == "qwen2"),
        ("self_attn.v_proj", "qkv", query + key, key, hidden, bias or family == "qwen2"),
        ("self_attn.o_proj", "o", 0, hidden, query, bias),
        ("mlp.gate_proj", "gate_up", 0, inner, hidden, mlp_bias),
        ("mlp.up_proj", "gate_up", inner, inner, hidden, mlp_bias),
        ("mlp.down_proj", "down", 0, hidden, inner, mlp_bias),
    ]
    norms = {"input_layernorm": "input_norm", "post_attention_layernorm": "mlp_norm"}
    if gemma:
        norms |= {
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "mlp_norm",
            "post_feedforward_layernorm": "post_mlp_norm",
        }
    heads = {"self_attn.q_norm": "q_norm", "self_attn.k_norm": "k_norm"} if gemma or family == "qwen3" else {}
    for i in range(s["layers"]):
        stem = f"model.layers.{i}."
        for name, part in norms.items():
            out[f"{stem}{name}.weight"] = Place(i, part, (hidden,))
        if owners[i] != i:
            continue
        for name, part, offset, rows, columns, biased in maps:
            out[f"{stem}{name}.weight"] = Place(i, part, (rows, columns), offset)
            if biased:
                out[f"{stem}{name}.bias"] = Place(i, f"{part}_bias", (rows,), offset)
        for name, part in heads.items():
            out[f"{stem}{name}.weight"] = Place(i, part, (s["dimension"],))
    return out


class _Reader:
    """A config's fields, each checked."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def whole(self, name: str, least: int, most: int, default: int | None = None) -> int:
        value = self.config.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise FormatError(
                f"config: {name!r} must be a whole number from {least} to {most}, not {value!r}"
            )
        return value

    def number(self, name: str, least: float, most: float, default: float) -> float:
        value = self.config.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise FormatError(f"config: {name!r} must be a number from {least:g} to {most:g}, not {value!r}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.config.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise FormatError(f"config: {name!r} must be true or false, not {value!r}")
        return value

    def refuse(self, *names: str) -> None:
        for name in names:
            if self.config.get(name):
                raise UnsupportedError(f"the native engine does not serve {name!r} = {self.config[name]!r}")
