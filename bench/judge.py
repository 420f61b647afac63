"""Scoring models against one original on the same contexts, with the original's logits computed once.

Logits of 40 contexts of 512 and a vocabulary of 49,152 are 2 GB: they lie in a temporary file, mapped into
memory.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from sprat.progress import Progress, silent
from sprat.prove.intervals import estimate, resample
from sprat.prove.metrics import compare, summarise
from sprat.prove.text import Contexts, cut, read
from sprat.run.tokenizer import from_files
from sprat.source.load import Source

FIGURES = ("kl", "same_top", "perplexity_ratio", "bits_per_byte_difference")


def contexts(source: Source, text: Path, count: int, length: int) -> Contexts:
    """The first `count` contexts of `length` tokens, as `sprat prove` would score them: the second half of each."""
    tokenizer = from_files(source.tokenizer_files, source.config)
    return cut(
        tokenizer.backend,
        read(text),
        length=length,
        skip=length // 2,
        tokens=count * length,
        prefix=tokenizer.prefix(),
    )


class Judge:
    """The original on the evaluation's contexts; `score` measures others beside it."""

    def __init__(self, original: nn.Module, contexts: Contexts, seed: int = 0, progress: Progress = silent):
        self.contexts, self.seed = contexts, seed
        self.original = _Remembered(original, contexts, progress)

    def score(self, model: nn.Module, progress: Progress = silent) -> dict[str, Any]:
        """Figures with their paired intervals, and each context's mean KL, for paired comparisons of rows."""
        scores = compare(self.original, model, self.contexts, progress)
        figures = summarise(scores, self.seed).to_json()
        out: dict[str, Any] = {name: _finite(figures[name]) for name in FIGURES}
        out["perplexity"] = figures["perplexity_compressed"]["value"]
        out["kl_p99"] = figures["kl_p99"]
        out["kl_by_context"] = [round(float(k), 7) for k in scores.kl.mean(1)]
        return out


def ratio(kl: list[float], base: list[float], seed: int = 0) -> dict[str, Any]:
    """KL over another row's KL on the same contexts, with the paired bootstrap interval."""
    sums = np.stack([np.array(kl), np.array(base)], 1)
    return _finite(estimate(sums, resample(sums, seed=seed), lambda s: s[..., 0] / s[..., 1]).to_json())


class _Remembered(nn.Module):
    """Answers for the model that it was made from, on the contexts that it has seen, from a file."""

    def __init__(self, model: nn.Module, contexts: Contexts, progress: Progress):
        super().__init__()
        self.places = {row.tobytes(): i for i, row in enumerate(contexts.ids)}
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the module)
        keep, logits = contexts.scored + 1, None
        with torch.inference_mode():
            for i, row in enumerate(contexts.ids):
                out = model(
                    input_ids=torch.from_numpy(row)[None], use_cache=False, logits_to_keep=keep
                ).logits
                if logits is None:
                    shape = (len(contexts.ids), keep, out.shape[-1])
                    logits = np.memmap(self.file, np.float32, "w+", shape=shape)
                logits[i] = out[0, -keep:].float().numpy()
                progress("the original's predictions", i + 1, len(contexts.ids))
        assert logits is not None
        self.logits = logits

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int, use_cache: bool = False) -> Any:
        place = self.places[input_ids[0].numpy().tobytes()]
        return SimpleNamespace(logits=torch.from_numpy(self.logits[place, -logits_to_keep:])[None])


def _finite(value: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: an interval that one context cannot give is null."""
    return {k: None if v in (float("inf"), float("-inf")) else v for k, v in value.items()}
