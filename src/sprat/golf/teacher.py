"""Distillation: the student learns the text and, beside it, what a teacher says of every place.

    loss = (1 - a) CE(text) + a KL(teacher || student)        (Hinton et al., arXiv 1503.02531, at temperature 1)

A teacher is a model that sprat opens, with the student's own tokenizer, or a wider golf trained first (golf/golf.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from torch import Tensor

from sprat.coding import container
from sprat.errors import SourceError
from sprat.golf import int8
from sprat.golf.model import Decoder
from sprat.prove.environment import sha256
from sprat.run.model import to_torch
from sprat.run.tokenizer import open_tokenizer
from sprat.source.load import digest as source_digest
from sprat.source.load import load as open_source
from sprat.training.devices import CPU

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: ids (batch, context) int64 -> logits (batch, context, vocabulary)
Teacher = Callable[[Tensor], Tensor]


def load(ref: str | Path, tokenizer: Tokenizer, device: torch.device = CPU) -> Teacher:
    """A .sprat, a file of golf/int8.py, or what source/load.py opens, as a teacher that lies on `device`. SourceError
    where its tokens are not `tokenizer`'s."""
    path = Path(ref).expanduser()
    if not _written(path):
        source = open_source(ref, torch.float32)
        its, model = source.tokenizer.backend_tokenizer, source.model
    elif int8.written(path, "the teacher "):
        model, _, its = int8.unpack(path.read_bytes())
    else:
        with container.open(path) as artifact:
            its, model = open_tokenizer(artifact).backend, to_torch(artifact)
    if _tokens(its) != _tokens(tokenizer):
        raise SourceError(
            f"the teacher {ref} cuts text into other tokens ({its.get_vocab_size():,} of them, the student "
            f"{tokenizer.get_vocab_size():,}): train it on the same text with the same vocabulary"
        )
    model.to(device)  # type: ignore[arg-type]
    return model if isinstance(model, Decoder) else _logits(model, tokenizer.get_vocab_size())


def digest(ref: str | Path) -> str:
    """SHA-256 (hex) of what a teacher lies in, wherever that is. SpratError where there is none."""
    path = Path(ref).expanduser()
    if _written(path):
        int8.written(path, "the teacher ")  # refuses what cannot be opened
        return sha256(path)
    return source_digest(ref)


def _written(path: Path) -> bool:
    """Whether this names a file that sprat wrote, and not a model that a fit starts from."""
    return path.suffix == ".sprat" or (path.is_file() and path.suffix.lower() != ".gguf")


def _logits(model: PreTrainedModel, vocabulary: int) -> Teacher:
    """Of the tokens alone: some models have more rows than tokens."""
    return lambda ids: model(input_ids=ids, use_cache=False).logits[..., :vocabulary]


def _tokens(tokenizer: Tokenizer) -> object:
    """What decides how text is cut."""
    model = json.loads(tokenizer.to_str())["model"]
    return model["type"], model.get("vocab"), model.get("merges")


def without_gradient(teacher: Teacher, ids: Tensor) -> Tensor:
    """Its logits, float32 (places, vocabulary)."""
    with torch.no_grad():
        return teacher(ids).float().flatten(0, 1)
