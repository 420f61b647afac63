"""All that both models are run for, in one call: what a proof's figures are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sprat.progress import Progress, silent
from sprat.prove import across, breakdown, honesty
from sprat.prove.generations import diverge
from sprat.prove.layers import by_layer
from sprat.prove.metrics import Metrics, compare, summarise
from sprat.prove.settings import Settings
from sprat.prove.text import Contexts, Text

if TYPE_CHECKING:
    import torch

    from sprat.run.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Figures:
    """What was measured; `docs/proof.md` says what each part is. reason: why KL could not be had, else empty."""

    metrics: Metrics
    scored_bytes: int
    positions: list[dict[str, Any]] = field(default_factory=list)
    frequencies: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] | None = None
    generations: dict[str, Any] | None = None
    reason: str = ""


def measure(
    original: torch.nn.Module,
    compressed: torch.nn.Module,
    tokenizers: tuple[TextTokenizer, TextTokenizer],
    sample: Sequence[Text],
    contexts: Contexts,
    settings: Settings,
    progress: Progress = silent,
    remembered: torch.nn.Module | None = None,
) -> Figures:
    """Compare two models on `contexts`, cut from `sample` with the compressed model's tokenizer.

    tokenizers: the original's, the compressed model's; where they differ bits per byte is all. remembered: what
    predicts in the original's place (`remember`), where its logits are had already.
    """
    draw = {"seed": settings.seed, "resamples": settings.resamples}
    if reason := honesty.different_tokens(tokenizers[1], tokenizers[0], sample):
        metrics, scored = across.bits_per_byte(original, compressed, tokenizers, contexts, progress, **draw)
        return Figures(metrics, scored, reason=reason)
    scores = compare(remembered or original, compressed, contexts, progress)
    return Figures(
        metrics=summarise(scores, **draw),
        scored_bytes=int(contexts.bytes_scored.sum()),
        positions=breakdown.by_position(scores, **draw),
        frequencies=breakdown.by_frequency(scores, **draw),
        layers=by_layer(original, compressed, contexts, progress) if settings.layers else None,
        generations=diverge(
            original, compressed, contexts, tokenizers[1], settings.generations, progress, **draw
        )
        if settings.generations
        else None,
    )
