"""A `.sprat` as a Hugging Face model in torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sprat.coding.tensors import expand
from sprat.errors import FormatError, SpratError, nearest
from sprat.golf import MODEL_TYPE

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

    from sprat.coding.container import Artifact

#: What a model may be computed in.
DTYPES = ("float32", "bfloat16", "float16")


def tensors(artifact: Artifact) -> Iterator[tuple[str, np.ndarray]]:
    """(Hugging Face name, float32 array in the module's own layout), one stored entry at a time."""
    for name in artifact.names:
        yield from expand({name: artifact.entry(name)}).items()


def to_torch(artifact: Artifact, dtype: str = "float32") -> PreTrainedModel:
    """Build the model that the file stands for, in eval mode.

    Peak memory is the model and its largest stored entry in float32. Raises `FormatError` where the tensors
    do not fit the config.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    from sprat.source.experts import unfuse

    kind = torch_dtype(dtype)
    config = model_config(artifact.config)
    with no_init_weights():
        model = unfuse(AutoModelForCausalLM.from_config(config, dtype=kind))
    model.tie_weights()  # which no_init_weights leaves out
    parameters = dict(model.named_parameters(remove_duplicate=False))
    # Buffers that a checkpoint holds (batch statistics and the like) are loaded as parameters are.
    parameters |= {name: b for name, b in model.named_buffers() if name in model.state_dict()}
    loaded: set[int] = set()
    with torch.no_grad():
        for name, array in tensors(artifact):
            if name not in parameters:
                raise FormatError(
                    f"tensor {name!r} is no part of a {config.model_type}{nearest(name, parameters)}"
                )
            target = parameters[name]
            if target.ndim == 1 and array.ndim == 2 and array.size == len(target):
                array = array.reshape(-1)  # an equation's numbers, folded into a matrix to be rounded
            if tuple(target.shape) != array.shape:
                raise FormatError(
                    f"tensor {name!r} is {array.shape}, the config asks for {tuple(target.shape)}"
                )
            target.copy_(torch.from_numpy(array))
            loaded.add(id(target))
    absent = [name for name, value in parameters.items() if id(value) not in loaded]
    if absent:
        raise FormatError(f"the file lacks {len(absent)} tensors of its model, {absent[0]!r} first")
    return model.eval()


def model_config(config: dict[str, Any]) -> PretrainedConfig:
    """The transformers config; `FormatError` names an architecture that this transformers does not know."""
    from transformers import AutoConfig

    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise FormatError("section 'config': no model_type in it")
    rest = {name: value for name, value in config.items() if name != "model_type"}
    if kind == MODEL_TYPE:
        from sprat.golf.pretrained import register

        register()
    try:
        return AutoConfig.for_model(kind, **rest)
    except Exception as error:  # transformers raises ValueError, KeyError and its own validation errors
        raise FormatError(f"section 'config': {kind!r} cannot be built: {error}") from error


def torch_dtype(name: str) -> torch.dtype:
    """The type of that name; SpratError with the nearest one for another."""
    import torch

    if name not in DTYPES:
        raise SpratError(f"unknown dtype {name!r}{nearest(name, DTYPES)}: one of {', '.join(DTYPES)}")
    return getattr(torch, name)
