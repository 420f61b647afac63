"""The end of a training: the model in its cap, and what it scores at each stage on the way there."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from sprat.fit import FitResult
from sprat.golf import finish, score
from sprat.golf.corpus import Corpus
from sprat.golf.model import Decoder
from sprat.golf.recipe import Recipe
from sprat.golf.score import Score
from sprat.progress import Progress, silent


@dataclass(frozen=True)
class Ended:
    """A model in its cap. before, rounded, after: what it scores before any rounding, as rounding alone leaves it, and
    as its file stands; fitted: None for a file that no fit made."""

    before: Score
    rounded: Score
    after: Score
    fitted: FitResult | None

    def figures(self) -> dict[str, Any]:
        """Its part of a row."""
        after, fitted = self.after, self.fitted
        return {
            "bits_per_byte": after.bits_per_byte,
            "bits_per_byte_before": self.before.bits_per_byte,
            "bits_per_byte_rounded": self.rounded.bits_per_byte,
            "engine": after.engine,
            "documents": [[b, n] for b, n in zip(after.bits.tolist(), after.nbytes.tolist(), strict=True)],
            "level": fitted and fitted.level,
            "bits_per_weight": fitted and fitted.bits_per_weight,
            "finish_seconds": fitted and {stage: round(s, 1) for stage, s in fitted.seconds.items()},
            "warnings": fitted.warnings if fitted else [],
        }


def end(
    model: Decoder,
    recipe: Recipe,
    tokenizer: Tokenizer,
    cap: int,
    corpus: Corpus,
    out: Path,
    seed: int,
    progress: Progress = silent,
) -> Ended:
    """Write `out` in at most `cap` bytes, and score what each stage left on the corpus' held-out documents."""
    train, held = corpus.train, corpus.validation
    before = score.score_model(model, recipe.context, tokenizer, held, progress=progress)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as root:
        unhealed = Path(root) / out.name
        fitted = finish.into_cap(model, recipe, tokenizer, cap, out, train, seed, progress, unhealed)
        after = rounded = score.score_file(out, held, threads=threads, progress=progress)
        if unhealed.exists():
            rounded = score.score_file(unhealed, held, threads=threads, progress=progress)
    return Ended(before, rounded, after, fitted)
