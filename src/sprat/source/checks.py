"""What is refused as a model, with the reason: configs, architectures and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sprat.errors import SourceError, nearest
from sprat.golf import MODEL_TYPE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Weights are looked at so many at a time.
_CHUNK = 1 << 24


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a folder. SourceError where there is none, or it is none of a Hugging Face model."""
    file = path / "config.json"
    if not file.is_file():
        inside = sorted(p.name for p in path.iterdir())[:5]
        ggufs = [name for name in inside if name.endswith(".gguf")]
        hint = f"; give the file itself: {path / ggufs[0]}" if ggufs else ""
        raise SourceError(
            f"{path} is no model: looked for config.json and *.safetensors, "
            f"found {', '.join(inside) or 'nothing'}{hint}"
        )
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise SourceError(f"{file} is no JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise SourceError(f"{file} names no model_type: it is not the config of a Hugging Face model")
    return config


def refuse_unsupported(config: dict[str, Any]) -> None:
    """SourceError for what is no causal language model, or none that transformers has code for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as known
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as encoders

    kind = config["model_type"]
    if kind == MODEL_TYPE:
        from sprat.golf.pretrained import register

        register()
        return
    if kind not in known:
        raise SourceError(
            f"unsupported architecture {_architecture(config)} (model_type {kind!r}){nearest(kind, known)}; supported "
            "is any causal language model of transformers whose maps are nn.Linear or Conv1D: Llama, "
            "Mistral, Qwen2, Qwen3, Gemma, SmolLM, GPT-2 and more. Code that comes with a model is never run."
        )
    # Transformers loads an encoder's weights as a language model too; what that computes from half a text is noise.
    if kind in encoders and not config.get("is_decoder"):
        raise SourceError(
            f"unsupported architecture {_architecture(config)} (model_type {kind!r}): it reads a text from both "
            "sides and is no causal language model; Llama, Mistral, Qwen, Gemma, SmolLM, GPT-2 and the like are"
        )


def _architecture(config: dict[str, Any]) -> str:
    return ", ".join(config.get("architectures") or []) or config["model_type"]


def refuse_missing(path: Path, info: dict[str, Any]) -> None:
    """info: what transformers says of a load. SourceError where weights are missing or have other shapes."""
    if missing := sorted(map(str, info.get("missing_keys") or ())):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SourceError(f"{path} lacks the tensor {missing[0]}{more}")
    if mismatched := sorted(map(str, info.get("mismatched_keys") or ())):
        raise SourceError(f"{path}: shapes differ from what config.json says: {mismatched[0]}")


def refuse_nonfinite(model: PreTrainedModel) -> None:
    """SourceError naming a tensor that holds NaN or infinity."""
    for name, parameter in model.named_parameters():
        for part in parameter.detach().reshape(-1).split(_CHUNK):
            # A sum is many times faster than `isfinite` and not finite if a term is not; it may overflow too.
            if not part.sum(dtype=torch.float32).isfinite() and not part.isfinite().all():
                bad = int((~torch.isfinite(parameter.detach())).sum())
                raise SourceError(f"the tensor {name} holds {bad} values that are NaN or infinite")


def first_line(error: Exception) -> str:
    """Type and first line of what another library raised."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
