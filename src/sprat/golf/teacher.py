"""Distillation: the student learns the text and, beside it, what a teacher says of every place.

    loss = (1 - a) CE(text) + a KL(teacher || student)        (Hinton et al., arXiv 1503.02531, at temperature 1)

A teacher is a model that sprat reads, with the student's own tokenizer, or a wider golf trained first (golf/golf.py).
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
from sprat.run.model import to_torch
from sprat.run.tokenizer import open_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: ids (batch, context) int64 -> logits (batch, context, vocabulary)
Teacher = Callable[[Tensor], Tensor]


def load(path: str | Path, tokenizer: Tokenizer) -> Teacher:
    """A .sprat, or a file of golf/int8.py, as a teacher. SourceError where its tokens are not `tokenizer`'s."""
    path = Path(path)
    if int8.written(path, "the teacher "):
        teacher, _, its = int8.unpack(path.read_bytes())
    else:
        with container.open(path) as artifact:
            its, teacher = open_tokenizer(artifact).backend, _logits(to_torch(artifact))
    if _tokens(its) != _tokens(tokenizer):
        raise SourceError(
            f"the teacher {path} cuts text into other tokens ({its.get_vocab_size():,} of them, the student "
            f"{tokenizer.get_vocab_size():,}): train it on the same text with the same vocabulary"
        )
    return teacher


def _logits(model: PreTrainedModel) -> Teacher:
    return lambda ids: model(input_ids=ids, use_cache=False).logits


def _tokens(tokenizer: Tokenizer) -> object:
    """What decides how text is cut."""
    return json.loads(tokenizer.to_str())["model"]


def without_gradient(teacher: Teacher, ids: Tensor) -> Tensor:
    """Its logits, float32 (places, vocabulary)."""
    with torch.no_grad():
        return teacher(ids).float().flatten(0, 1)
