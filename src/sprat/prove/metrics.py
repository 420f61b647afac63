"""Two causal language models on the same positions, streamed a context at a time.

With p the original's next-token distribution, q the compressed model's and x the text's next token, each
scored position gives  KL = Σ p (log p − log q),  −log p(x),  −log q(x)  in nats,  p(x) − q(x),  and whether both
favour the same token. Only one context's logits exist at a time, and only a few rows of them in full precision.
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
from sprat.prove.intervals import Estimate, estimate, gather, resample
from sprat.prove.text import Contexts

if TYPE_CHECKING:
    import torch

#: Rows of logits compared at once.
_ROWS = 64
#: Columns of `Scores.sums`.
_KL, _TOP, _NLL_ORIGINAL, _NLL_COMPRESSED, _SHIFT, _TOKENS, _BYTES = range(7)
#: How far from 1 the masses of a distribution may sum: float32 sums over a large vocabulary stay within 1e-4.
_MASS = 1e-3


@dataclass(frozen=True)
class Scores:
    """What every scored position gave: arrays of (contexts, scored), nats; 0 where `contexts.mask` is False."""

    kl: np.ndarray
    nll_original: np.ndarray
    nll_compressed: np.ndarray
    same_top: np.ndarray
    shift: np.ndarray
    """(p(x) − q(x))²"""
    contexts: Contexts

    def sums(self) -> np.ndarray:
        """(contexts, 7): everything that the figures are ratios of, summed over each context's positions."""
        mask = self.contexts.mask
        columns = [self.kl, self.same_top, self.nll_original, self.nll_compressed, self.shift, mask]
        parts = [c.sum(axis=1, dtype=np.float64) for c in columns]
        return np.stack([*parts, self.contexts.bytes_scored], axis=1)


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Figures of the compressed model beside the original. KL in nats per token; perplexity per token.

    None is what cannot be had: all but bits per byte where the two models cut text into different tokens.
    """

    kl: Estimate | None = None
    kl_median: float | None = None
    kl_p99: float | None = None
    kl_max: float | None = None
    same_top: Estimate | None = None
    probability_shift_rms: Estimate | None = None
    perplexity_original: Estimate | None = None
    perplexity_compressed: Estimate | None = None
    perplexity_ratio: Estimate | None = None
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
    """Score both models on `contexts`. Raises `ProofError` naming the model whose predictions are none."""
    import torch

    shape = contexts.mask.shape
    names = ("kl", "nll_original", "nll_compressed", "same_top", "shift")
    out = {name: np.zeros(shape) for name in names}
    forward = [forward_of(model, contexts.skip) for model in (original, compressed)]
    lengths = contexts.skip + 1 + contexts.mask.sum(axis=1)
    with torch.inference_mode():
        for i, row in enumerate(contexts.ids):
            ids = torch.from_numpy(row[: lengths[i]])[None]
            p, q = forward[0](ids), forward[1](ids)
            if p.shape != q.shape:
                raise ProofError(
                    f"the models predict {p.shape[1]} and {q.shape[1]} tokens: KL needs one vocabulary"
                )
            for start in range(0, len(p), _ROWS):
                rows = slice(start, min(start + _ROWS, len(p)))
                targets = ids[0, contexts.skip + 1 :][rows].to(p.device)
                for name, values in _positions(p[rows], q[rows], targets).items():
                    out[name][i, rows] = values
            progress("comparing the two models", i + 1, shape[0])
    return Scores(**out, contexts=contexts)


def forward_of(model: torch.nn.Module, skip: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """ids (1, length) -> logits (length − 1 − skip, vocabulary) where the model lies, and no others where it can."""
    few, weight = keeps_few(model), next(model.parameters(), None)

    def run(ids: torch.Tensor) -> torch.Tensor:
        options = {"logits_to_keep": ids.shape[1] - skip} if few else {}
        there = ids if weight is None else ids.to(weight.device)
        logits = model(input_ids=there, use_cache=False, **options).logits[0]
        return logits[:-1] if few else logits[skip:-1]

    return run


def keeps_few(model: torch.nn.Module) -> bool:
    """Whether the model can compute the logits of the last positions alone (`logits_to_keep`)."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def distribution(logits: torch.Tensor, name: str) -> torch.Tensor:
    """(rows, vocabulary) logits as log-probabilities in float32; `ProofError` where they are none."""
    import torch

    # A masked-out token may be -inf; NaN or +inf means a broken model, and so does a row with no mass.
    if torch.isnan(logits).any() or torch.isposinf(logits).any():
        raise ProofError(
            f"the {name} model gave logits that are not finite: it is broken, nothing was measured"
        )
    logs = logits.float().log_softmax(-1)
    if not bool(((logs.exp().sum(-1) - 1).abs() < _MASS).all()):
        raise ProofError(
            f"the {name} model's probabilities do not sum to 1: it is broken, nothing was measured"
        )
    return logs


def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of each row of two `distribution`s in nats: float64 (rows,)."""
    import torch

    mass = log_p.exp()
    return torch.where(mass > 0, mass * (log_p - log_q), 0.0).sum(-1, dtype=torch.float64)


def _positions(p: torch.Tensor, q: torch.Tensor, targets: torch.Tensor) -> dict[str, np.ndarray]:
    """Per-position figures of logits p, q: (rows, vocabulary) and targets (rows,)."""
    log_p, log_q = distribution(p, "original"), distribution(q, "compressed")
    kl = divergence(log_p, log_q)
    seen_p, seen_q = (logs.gather(1, targets[:, None])[:, 0].double() for logs in (log_p, log_q))
    if not bool(kl.isfinite().all() and seen_p.isfinite().all() and seen_q.isfinite().all()):
        raise ProofError(
            "a model gives probability 0 to a token that the text or the original has: KL is infinite"
        )
    figures = {
        "kl": kl,
        "nll_original": -seen_p,
        "nll_compressed": -seen_q,
        "same_top": (p.argmax(-1) == q.argmax(-1)).double(),
        "shift": (seen_p.exp() - seen_q.exp()) ** 2,
    }
    return {name: value.cpu().numpy() for name, value in figures.items()}


def summarise(scores: Scores, seed: int = 0, resamples: int = 2000) -> Metrics:
    """Every figure with its paired interval (see intervals.py)."""
    sums = gather(scores.sums(), scores.contexts.clusters)
    draws = resample(sums, resamples, seed)
    kl = scores.kl[scores.contexts.mask]

    def ratio(top: int, bottom: int, scale: float = 1.0) -> Callable[[np.ndarray], np.ndarray]:
        return lambda s: s[..., top] / s[..., bottom] * scale

    def perplexity(column: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda s: np.exp(s[..., column] / s[..., _TOKENS])

    bit = 1 / math.log(2)
    figures: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "kl": ratio(_KL, _TOKENS),
        "same_top": ratio(_TOP, _TOKENS),
        "probability_shift_rms": lambda s: np.sqrt(s[..., _SHIFT] / s[..., _TOKENS]),
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
        kl_median=float(np.median(kl)),
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
    )
