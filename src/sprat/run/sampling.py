"""From logits to a token. Pure numpy, in this order:

1. repetition penalty over the prompt and what was written: positive logits are divided by it, negative ones
   multiplied (CTRL, Keskar et al., arXiv 1909.05858, §4.1);
2. presence and frequency penalties over what was written, and the bias of single tokens, subtracted and added
   (as OpenAI's API defines them);
3. temperature 0: the likeliest token, the lowest id of equals. Else logits are divided by the temperature;
4. top-k: the k likeliest stay (Fan et al., arXiv 1805.04833, §5);
5. top-p: the fewest tokens that hold p of the remaining mass stay, at least one (Holtzman et al., arXiv 1904.09751,
   §3.1);
6. min-p: tokens with at least min_p times the likeliest one's probability stay (Nguyen et al.,
   arXiv 2407.01082, §3);
7. one is drawn from what remains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sprat.errors import RequestError, SourceError

#: Candidates that top-p looks at first: nearly always enough, and far fewer than a vocabulary to sort.
_FIRST_LOOK = 256


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; `RequestError` for a value outside its range."""

    temperature: float = 0.0  #: 0: the likeliest token each time
    top_k: int = 0  #: 0: no limit
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)  #: added to a token's logit
    seed: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        def check(fine: bool, name: str, allowed: str) -> None:
            if not fine:  # NaN fails every comparison, and so lands here too
                text = f"{name.replace('_', '-') if name in _HYPHENS else name.replace('_', ' ')}"
                raise RequestError(f"{text} must {allowed}, not {getattr(self, name)}", name)

        check(0 <= self.temperature <= 100, "temperature", "lie between 0 and 100")
        check(self.top_k >= 0, "top_k", "be 0 (no limit) or more")
        check(0 <= self.top_p <= 1, "top_p", "lie between 0 and 1")
        check(0 <= self.min_p <= 1, "min_p", "lie between 0 and 1")
        check(0.01 <= self.repetition_penalty <= 100, "repetition_penalty", "lie between 0.01 and 100")
        check(-2 <= self.presence_penalty <= 2, "presence_penalty", "lie between -2 and 2")
        check(-2 <= self.frequency_penalty <= 2, "frequency_penalty", "lie between -2 and 2")


_HYPHENS = {"top_k", "top_p", "min_p"}


class Sampler:
    """Draws the tokens of one text: holds the random generator and what the penalties have seen."""

    def __init__(self, settings: Sampling, prompt: Iterable[int] = ()):
        self.settings = settings
        self.random = np.random.default_rng(settings.seed)
        self._prompt = set(prompt) if settings.repetition_penalty != 1 else set()
        self._counts: dict[int, int] = {}

    def draw(self, logits: np.ndarray) -> int:
        """The next token after `logits` (vocabulary,); remembered for the penalties."""
        if not logits.max() < np.inf or np.isnan(logits).any() or logits.max() == -np.inf:
            raise SourceError("the model gave logits that are not finite: the file is broken")
        adjusted = penalised(logits, self.settings, self._prompt, self._counts)
        if self.settings.temperature == 0:
            token = int(adjusted.argmax())
        else:
            ids, mass = distribution(adjusted, self.settings)
            edges = np.cumsum(mass)
            drawn = int(np.searchsorted(edges, self.random.random() * edges[-1], side="right"))
            token = int(ids[min(drawn, len(ids) - 1)])
        self._counts[token] = self._counts.get(token, 0) + 1
        return token


def penalised(
    logits: np.ndarray, settings: Sampling, prompt: Iterable[int], counts: Mapping[int, int]
) -> np.ndarray:
    """Steps 1 and 2: float32 (vocabulary,), `logits` itself where there is nothing to do.

    prompt: tokens before the written text; counts: how often each token was written.
    """
    out = logits
    if settings.repetition_penalty != 1 and (seen := _within(set(prompt) | counts.keys(), logits)):
        out = logits.copy()
        values = out[seen]
        penalty = np.float32(settings.repetition_penalty)
        out[seen] = np.where(values > 0, values / penalty, values * penalty)
    if (settings.presence_penalty or settings.frequency_penalty) and counts:
        out = out.copy() if out is logits else out
        ids = np.fromiter(counts.keys(), np.intp, len(counts))
        often = np.fromiter(counts.values(), np.float32, len(counts))
        out[ids] -= settings.presence_penalty + settings.frequency_penalty * often
    if bias := _within(settings.bias, logits):
        out = out.copy() if out is logits else out
        out[bias] += np.array([settings.bias[i] for i in bias], np.float32)
    return out


def distribution(logits: np.ndarray, settings: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Steps 3 to 6 at a temperature above 0: (token ids, likeliest first where any were cut; their mass).

    The mass is float64 and not normalised to 1: its sum is what was kept of it.
    """
    top, cut = float(logits.max()), 0 < settings.top_k < len(logits)
    ids = largest(logits, settings.top_k) if cut else np.arange(len(logits))
    mass = np.exp(((logits[ids] if cut else logits).astype(np.float64) - top) / settings.temperature)
    mass /= mass.sum()
    if settings.top_p == 1 and settings.min_p == 0:
        return ids, mass
    if not cut:
        ids = _head(mass, settings.top_p, settings.min_p)
        mass = mass[ids]
    # Rounding must not cost the last token of a top-p that the sum just reaches.
    kept = (
        int(np.searchsorted(np.cumsum(mass), settings.top_p * (1 - 1e-12))) + 1
        if settings.top_p < 1
        else None
    )
    ids, mass = ids[:kept], mass[:kept]
    likely = mass >= settings.min_p * mass[0]
    return ids[likely], mass[likely]


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest, largest first, the lower index first among equals."""
    count = min(count, len(values))
    edge = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > edge)
    found = np.concatenate([above, np.flatnonzero(values == edge)[: count - len(above)]])
    return found[np.lexsort((found, -values[found]))]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 log-probabilities of (..., vocabulary)."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _head(mass: np.ndarray, top_p: float, min_p: float) -> np.ndarray:
    """The likeliest tokens, sorted: at least as many as top-p and min-p can keep."""
    look = _FIRST_LOOK
    while look < len(mass):
        ids = largest(mass, look)
        chosen = mass[ids]
        if (top_p < 1 and chosen.sum() >= top_p) or chosen[-1] < min_p * chosen[0]:
            return ids
        look *= 8
    return np.lexsort((np.arange(len(mass)), -mass))


def _within(ids: Iterable[int], logits: np.ndarray) -> list[int]:
    return [i for i in ids if 0 <= i < len(logits)]
