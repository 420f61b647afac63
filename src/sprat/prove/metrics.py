"""Two causal language models on the same positions, streamed a context at a time.

With p the original's next-token distribution, q the compressed model's and x the text's next token, each
scored position gives  KL = Σ p (log p − log q),  −log p(x),  −log q(x)  in nats, and whether both favour the
same token. Only one context's logits exist at a time, and only a few rows of them in full precision.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sprat.errors import ProofError
from sprat.progress import Progress, silent
from sprat.prove.intervals import Estimate, estimate, resample
from sprat.prove.text import Contexts

if TYPE_CHECKING:
    import torch

#: Rows of logits compared at once.
_ROWS = 64
#: Columns of `Scores.sums`.
_KL, _TOP, _NLL_ORIGINAL, _NLL_COMPRESSED, _TOKENS, _BYTES = range(6)


@dataclass(frozen=True)
class Scores:
    """What every scored position gave: arrays of (contexts, scored), nats; bytes_scored (contexts,)."""

    kl: np.ndarray
    nll_original: np.ndarray
    nll_compressed: np.ndarray
    same_top: np.ndarray
    bytes_scored: np.ndarray

    def sums(self) -> np.ndarray:
        """(contexts, 6): everything that the figures are ratios of, summed over each context's positions."""
        tokens = np.full(len(self.kl), self.kl.shape[1], np.float64)
        columns = [self.kl, self.same_top, self.nll_original, self.nll_compressed]
        return np.stack(
            [*(c.sum(axis=1, dtype=np.float64) for c in columns), tokens, self.bytes_scored], axis=1
        )


@dataclass(frozen=True)
class Metrics:
    """Figures of the compressed model beside the original. KL in nats per token; perplexity per token."""

    kl: Estimate
    kl_median: float
    kl_p99: float
    kl_max: float
    same_top: Estimate
    perplexity_original: Estimate
    perplexity_compressed: Estimate
    perplexity_ratio: Estimate
    bits_per_byte_original: Estimate
    bits_per_byte_compressed: Estimate
    bits_per_byte_difference: Estimate

    def to_json(self) -> dict[str, Any]:
        return {
            name: value.to_json() if isinstance(value, Estimate) else value
            for name, value in vars(self).items()
        }


def compare(
    original: torch.nn.Module, compressed: torch.nn.Module, contexts: Contexts, progress: Progress = silent
) -> Scores:
    """Score both models on `contexts`. Raises `ProofError` naming the model whose logits are not finite."""
    import torch

    count, scored = len(contexts.ids), contexts.scored
    out = {name: np.zeros((count, scored)) for name in ("kl", "nll_original", "nll_compressed", "same_top")}
    forward = [_forward(original, contexts.skip), _forward(compressed, contexts.skip)]
    with torch.inference_mode():
        for i, row in enumerate(contexts.ids):
            ids = torch.from_numpy(row)[None]
            p, q = forward[0](ids), forward[1](ids)
            if p.shape != q.shape:
                raise ProofError(
                    f"the models predict {p.shape[1]} and {q.shape[1]} tokens: KL needs one vocabulary"
                )
            for start in range(0, scored, _ROWS):
                rows = slice(start, min(start + _ROWS, scored))
                targets = ids[0, contexts.skip + 1 :][rows]
                for name, values in _positions(p[rows], q[rows], targets).items():
                    out[name][i, rows] = values
            progress("comparing the two models", i + 1, count)
    return Scores(**out, bytes_scored=contexts.bytes_scored)


def _forward(model: torch.nn.Module, skip: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """ids (1, length) -> logits (length − 1 − skip, vocabulary), and no others where the model can."""
    few = "logits_to_keep" in inspect.signature(model.forward).parameters

    def run(ids: torch.Tensor) -> torch.Tensor:
        options = {"logits_to_keep": ids.shape[1] - skip} if few else {}
        logits = model(input_ids=ids, use_cache=False, **options).logits[0]
        return logits[:-1] if few else logits[skip:-1]

    return run


def _positions(p: torch.Tensor, q: torch.Tensor, targets: torch.Tensor) -> dict[str, np.ndarray]:
    """Per-position figures of logits p, q: (rows, vocabulary) and targets (rows,)."""
    import torch

    for name, logits in (("original", p), ("compressed", q)):
        # A masked-out token may be -inf in both; NaN or +inf means a broken model.
        if torch.isnan(logits).any() or torch.isposinf(logits).any():
            raise ProofError(
                f"the {name} model gave logits that are not finite: it is broken, nothing was measured"
            )
    log_p, log_q = p.float().log_softmax(-1), q.float().log_softmax(-1)
    mass = log_p.exp()
    terms = torch.where(mass > 0, mass * (log_p - log_q), 0.0)
    figures = {
        "kl": terms.sum(-1, dtype=torch.float64),
        "nll_original": -log_p.gather(1, targets[:, None])[:, 0],
        "nll_compressed": -log_q.gather(1, targets[:, None])[:, 0],
        "same_top": (p.argmax(-1) == q.argmax(-1)).float(),
    }
    return {name: value.double().numpy() for name, value in figures.items()}


def summarise(scores: Scores, seed: int = 0, resamples: int = 2000) -> Metrics:
    """Every figure with its paired interval (see intervals.py)."""
    sums = scores.sums()
    draws = resample(sums, resamples, seed)

    def ratio(top: int, bottom: int, scale: float = 1.0) -> Callable[[np.ndarray], np.ndarray]:
        return lambda s: s[..., top] / s[..., bottom] * scale

    def perplexity(column: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda s: np.exp(s[..., column] / s[..., _TOKENS])

    bit = 1 / math.log(2)
    figures: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "kl": ratio(_KL, _TOKENS),
        "same_top": ratio(_TOP, _TOKENS),
        "perplexity_original": perplexity(_NLL_ORIGINAL),
        "perplexity_compressed": perplexity(_NLL_COMPRESSED),
        "perplexity_ratio": lambda s: np.exp(
            (s[..., _NLL_COMPRESSED] - s[..., _NLL_ORIGINAL]) / s[..., _TOKENS]
        ),
        "bits_per_byte_original": ratio(_NLL_ORIGINAL, _BYTES, bit),
        "bits_per_byte_compressed": ratio(_NLL_COMPRESSED, _BYTES, bit),
        "bits_per_byte_difference": lambda s: (
            (s[..., _NLL_COMPRESSED] - s[..., _NLL_ORIGINAL]) / s[..., _BYTES] * bit
        ),
    }
    return Metrics(
        **{name: estimate(sums, draws, statistic) for name, statistic in figures.items()},
        kl_median=float(np.median(scores.kl)),
        kl_p99=float(np.quantile(scores.kl, 0.99)),
        kl_max=float(scores.kl.max()),
    )
