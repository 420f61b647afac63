"""Bits per byte of documents, exactly: causal, normalized, every token of the text predicted once.

A document is `mark t1 t2 … tn`. Windows of `context` tokens read it; the tokens behind what a window reads are
predicted from the window alone. With stride = context the windows lie side by side (the default); with a smaller one
they slide, and a window predicts only what the one before did not: every token but the first ones then has at least
context - stride tokens in front of it. The mark that ends a document is not scored, for it stands for no byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from sprat.coding import container
from sprat.errors import ProofError
from sprat.golf import int8, words
from sprat.golf.model import Decoder
from sprat.progress import Progress, silent
from sprat.run.engine import open_engine
from sprat.run.tokenizer import open_tokenizer

#: ids of a window -> logits behind each, float32 (len(ids), vocabulary)
Predict = Callable[[list[int]], np.ndarray]


@dataclass(frozen=True)
class Score:
    """What documents cost: bits and UTF-8 bytes of each, (documents,) both."""

    bits: np.ndarray
    nbytes: np.ndarray
    tokens: int
    engine: str
    stride: int

    @property
    def bits_per_byte(self) -> float:
        return float(self.bits.sum() / self.nbytes.sum())


def score_file(
    path: Path,
    documents: Sequence[str],
    stride: int | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Score:
    """A .sprat through the engine that runs it, or a file of golf/int8.py through torch."""
    if int8.written(path):
        model, recipe, tokenizer = int8.unpack(path.read_bytes())
        return score_model(model, recipe.context, tokenizer, documents, stride, progress)
    with container.open(path) as artifact:
        engine, tokenizer = open_engine(artifact, threads=threads), open_tokenizer(artifact)
    session = engine.session()

    def predict(ids: list[int]) -> np.ndarray:
        session.rewind(0)
        return engine.step_all([session], [ids])[0]

    return score(
        predict,
        engine.context,
        tokenizer.backend,
        tokenizer.prefix(),
        documents,
        stride,
        engine.name,
        progress,
    )


def score_model(
    model: Decoder,
    context: int,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    stride: int | None = None,
    progress: Progress = silent,
) -> Score:
    """The model itself, in float32 through torch."""

    def predict(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([ids]))[0].numpy()

    prefix = [words.mark(tokenizer)]
    return score(predict, context, tokenizer, prefix, documents, stride, "torch", progress)


def score(
    predict: Predict,
    context: int,
    tokenizer: Tokenizer,
    prefix: Sequence[int],
    documents: Sequence[str],
    stride: int | None = None,
    engine: str = "",
    progress: Progress = silent,
) -> Score:
    """See the module. prefix: the tokens that stand before a document, at least one."""
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise ProofError(f"a stride must be 1 to {context} tokens, the context, not {stride}")
    if not prefix:
        raise ProofError(
            "this file's tokenizer has no mark in front of a text: its first token cannot be predicted"
        )
    bits, tokens = [], 0
    for done, document in enumerate(documents):
        ids = [*prefix, *words.encode(tokenizer, document)]
        nats = 0.0
        for first, begin, end in windows(len(ids), len(prefix), context, stride):
            logits = predict(ids[begin : end - 1])[first - 1 - begin :]
            nats += _nats(logits, ids[first:end])
        bits.append(nats / math.log(2))
        tokens += len(ids) - len(prefix)
        progress(f"bits per byte ({engine})", done + 1, len(documents))
    return Score(np.array(bits), np.array([len(d.encode()) for d in documents]), tokens, engine, stride)


def windows(length: int, first: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(first scored, begin, end): the window reads begin .. end-2 and predicts first .. end-1; the places from `first`
    to length-1 once each."""
    begin = 0
    while first < length:
        end = min(begin + context + 1, length)
        yield first, begin, end
        begin, first = begin + stride, end


def _nats(logits: np.ndarray, targets: Sequence[int]) -> float:
    """-log p of the targets, summed in float64. logits: (len(targets), vocabulary)."""
    wide = logits.astype(np.float64)
    top = wide.max(1, keepdims=True)
    logs = wide[np.arange(len(targets)), targets] - top[:, 0] - np.log(np.exp(wide - top).sum(1))
    if not np.isfinite(logs).all():
        raise ProofError("the model gave logits that are not finite: nothing was measured")
    return -float(logs.sum())
