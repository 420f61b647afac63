"""The shape that a Hugging Face config describes: what each family is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sprat.anatomy.shape import Shape
from sprat.errors import SourceError, nearest


@dataclass(frozen=True)
class _Family:
    """How a model_type differs from Llama. sliding: every `sliding`-th layer sees all where a window is given and
    layer_types is not (0: none does, -1: windows are not used); wide_norm: queries and keys are normed as wholes, not
    by heads; experts: it is a mixture, whose `ffn` is the config's field of that name."""

    gated: bool = True
    tied: bool = False
    query_bias: bool = False
    biases: bool = False
    norms: int = 2
    layer_norm: bool = False
    head_norm: bool = False
    positions: bool = False
    sliding: int = -1
    wide_norm: bool = False
    experts: str = ""


#: model_type -> what it is made of
FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(sliding=0),
    "qwen2": _Family(query_bias=True, sliding=0),
    "qwen3": _Family(head_norm=True, sliding=0),
    "phi3": _Family(sliding=0),
    "gemma": _Family(tied=True),
    "gemma2": _Family(tied=True, norms=4, sliding=2),
    "gemma3_text": _Family(tied=True, norms=4, head_norm=True, sliding=6),
    "gpt2": _Family(gated=False, tied=True, biases=True, layer_norm=True, positions=True),
    "gpt_neox": _Family(gated=False, biases=True, layer_norm=True),
    "mixtral": _Family(sliding=0, experts="intermediate_size"),
    "olmoe": _Family(wide_norm=True, experts="intermediate_size"),
    "qwen3_moe": _Family(head_norm=True, sliding=0, experts="moe_intermediate_size"),
}
#: What configs call the number of a layer's experts.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def from_config(config: Mapping[str, Any]) -> Shape:
    """Read a Hugging Face config; one of several modalities gives its text model. Raises SourceError."""
    if isinstance(config.get("text_config"), dict):
        config = config["text_config"]
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        hint = nearest(kind, FAMILIES) if isinstance(kind, str) else ""
        raise SourceError(
            f"the anatomy of {kind!r} is not known{hint}: known are {', '.join(FAMILIES)}; for another one give "
            "--width, --layers, --ffn and --vocab"
        )
    family = FAMILIES[kind]
    if not family.experts and any(config.get(name) for name in _EXPERTS):
        mixtures = ", ".join(name for name, known in FAMILIES.items() if known.experts)
        raise SourceError(f"the experts of a {kind!r} are not known: known mixtures are {mixtures}")
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) not in (1, None):
        raise SourceError(
            f"not all layers of this {kind!r} have experts: only models of equal layers are counted"
        )
    width, layers = _whole(config, "hidden_size", "n_embd"), _whole(config, "num_hidden_layers", "n_layer")
    heads = _whole(config, "num_attention_heads", "n_head")
    kv_heads = _whole(config, "num_key_value_heads", default=heads)
    head_dim = _whole(config, "head_dim", default=width // heads)
    bias = family.biases or bool(config.get("attention_bias"))
    tied = config.get("tie_word_embeddings")
    return Shape(
        family=kind,
        layers=layers,
        width=width,
        ffn=_whole(config, family.experts or "intermediate_size", "n_inner", default=4 * width),
        vocabulary=_whole(config, "vocab_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        tied=family.tied if tied is None else bool(tied),
        gated=family.gated,
        query_bias=family.query_bias or bias,
        output_bias=bias,
        ffn_bias=family.biases or bool(config.get("mlp_bias")),
        norms=family.norms,
        norm_values=2 * width if family.layer_norm else width,
        head_norms=_head_norms(family, heads, kv_heads, head_dim),
        positions=_whole(config, "max_position_embeddings", "n_positions") if family.positions else 0,
        windows=_windows(config, family, layers),
        experts=_whole(config, *_EXPERTS) if family.experts else 0,
        chosen=_whole(config, "num_experts_per_tok") if family.experts else 0,
    )


def read(path: str | Path) -> Shape:
    """The shape of a config.json, a folder with one, or a .sprat file. Raises SourceError, FormatError."""
    path = Path(path)
    if path.suffix == ".sprat":
        from sprat.coding.container import open as open_artifact

        return from_config(open_artifact(path).config)
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_bytes())
    except OSError as error:
        raise SourceError(
            f"cannot read {file}: {error.strerror}; an anatomy needs a config.json, a folder with one, a .sprat "
            "file, or --width, --layers, --ffn and --vocab"
        ) from None
    except ValueError as error:
        raise SourceError(f"{file} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise SourceError(f"{file} is not the config of a model: it holds no object")
    return from_config(config)


def _whole(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    value = next((config[name] for name in names if config.get(name) is not None), default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**40:
        raise SourceError(f"config: {names[0]!r} must be a whole number of at least 1, not {value!r}")
    return value


def _head_norms(family: _Family, heads: int, kv_heads: int, head_dim: int) -> int:
    if family.wide_norm:
        return (heads + kv_heads) * head_dim
    return 2 * head_dim if family.head_norm else 0


def _windows(config: Mapping[str, Any], family: _Family, layers: int) -> tuple[int, ...]:
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    if window is None or family.sliding < 0 or config.get("use_sliding_window") is False:
        return ()
    window = _whole(config, "sliding_window")
    if isinstance(kinds, list) and len(kinds) == layers:
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    every = _whole(config, "sliding_window_pattern", default=family.sliding) if family.sliding else 0
    return tuple(0 if every and (i + 1) % every == 0 else window for i in range(layers))
