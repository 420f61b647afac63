"""Two models that cut text into different tokens: what can still be compared is bits per byte.

Each model reads the same text in its own tokens. The bytes that count are those behind the first place, at or after
where scoring would begin, at which a token of both ends; so both are asked for the same bytes and none is cut.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sprat.errors import ProofError
from sprat.progress import Progress, silent
from sprat.prove.intervals import estimate, gather, resample
from sprat.prove.metrics import Metrics, distribution, forward_of
from sprat.prove.text import Contexts

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from sprat.run.tokenizer import TextTokenizer

_ORIGINAL, _COMPRESSED, _BYTES = range(3)


def bits_per_byte(
    original: torch.nn.Module,
    compressed: torch.nn.Module,
    tokenizers: tuple[TextTokenizer, TextTokenizer],
    contexts: Contexts,
    progress: Progress = silent,
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[Metrics, int]:
    """Metrics that have bits per byte alone, and the bytes scored.

    tokenizers: the original's, the compressed model's; contexts: cut with the latter.
    """
    rows, kept = [], []
    for i, (unscored, scored) in enumerate(contexts.passages):
        encoded = [_encode(tokenizer.backend, unscored + scored) for tokenizer in tokenizers]
        start = _common(encoded[0][1], encoded[1][1], len(unscored))
        if start is not None:
            spent = [
                _nll(model, tokenizer.prefix(), *one, start, name)
                for model, tokenizer, one, name in zip(
                    (original, compressed), tokenizers, encoded, ("original", "compressed"), strict=True
                )
            ]
            rows.append([*spent, len((unscored + scored)[start:].encode())])
            kept.append(i)
        progress("comparing the two models", i + 1, len(contexts.passages))
    if not rows:
        raise ProofError(
            "the two models' tokens have no common boundary in this text: nothing can be compared"
        )
    sums = gather(np.array(rows), contexts.clusters[kept])
    draws = resample(sums, resamples, seed)
    bit = 1 / math.log(2)
    statistics = (
        lambda s: s[..., _ORIGINAL] / s[..., _BYTES] * bit,
        lambda s: s[..., _COMPRESSED] / s[..., _BYTES] * bit,
        lambda s: (s[..., _COMPRESSED] - s[..., _ORIGINAL]) / s[..., _BYTES] * bit,
    )
    estimates = [estimate(sums, draws, statistic) for statistic in statistics]
    metrics = Metrics(
        bits_per_byte_original=estimates[0],
        bits_per_byte_compressed=estimates[1],
        bits_per_byte_difference=estimates[2],
    )
    return metrics, int(sums[:, _BYTES].sum())


def _encode(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """Token ids, and for each the character that it ends at."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return encoding.ids, np.maximum.accumulate([0, *(end for _, end in encoding.offsets)])[1:].tolist()


def _common(mine: list[int], theirs: list[int], start: int) -> int | None:
    """The first character from `start` on at which a token of both ends, with text behind it; None for none.

    Tokens that share an end (parts of one character) end there with the last of them.
    """
    places = [end for end in sorted(set(mine) & set(theirs)) if start <= end < max(mine)]
    return places[0] if places else None


def _nll(
    model: torch.nn.Module, prefix: list[int], ids: list[int], ends: list[int], start: int, name: str
) -> float:
    """−log probability in nats of the tokens behind character `start`, given all before them."""
    import torch

    first = len(prefix) + sum(end <= start for end in ends)  # the first token that is scored
    row = torch.tensor([[*prefix, *ids]])
    with torch.inference_mode():
        logs = distribution(forward_of(model, first - 1)(row), name)
        return -float(logs.gather(1, row[0, first:, None]).sum(dtype=torch.float64))
