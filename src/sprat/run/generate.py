"""Text from a `.sprat`: prompt in, pieces of text out.

All that is asked of what computes the model is `Engine.logits`; torch does it now, a native engine can take
its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sprat.errors import SourceError
from sprat.run.tokenizer import TextTokenizer, open_tokenizer

if TYPE_CHECKING:
    from sprat.coding.container import Artifact


class Engine(Protocol):
    """A model in the middle of a text."""

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Append `ids` to the text so far; float32 (vocabulary,) for the token that follows."""
        ...


def generate(
    artifact: Artifact,
    prompt: str,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    chat: bool | None = None,
    engine: Engine | None = None,
) -> Iterator[str]:
    """Stream what the model writes after `prompt`, at most `max_tokens` tokens.

    chat: answer the prompt as a user's message (True), continue it as text (False), or answer where the file
    has a chat template (None). temperature 0 takes the likeliest token each time.
    """
    tokenizer = open_tokenizer(artifact)
    check_sampling(max_tokens, temperature, top_p)
    ids = prompt_ids(tokenizer, prompt, chat)
    if engine is None:
        from sprat.run.model import TorchEngine

        engine = TorchEngine(artifact)
    yield from tokenizer.stream(
        ids, tokens(engine, ids, tokenizer.eos_ids, max_tokens, temperature, top_p, seed)
    )


def prompt_ids(tokenizer: TextTokenizer, prompt: str, chat: bool | None = None) -> list[int]:
    """The tokens that a generation starts from; `SourceError` for a prompt of none."""
    if chat or (chat is None and tokenizer.chat_template is not None):
        ids = tokenizer.chat([{"role": "user", "content": prompt}])
    else:
        ids = tokenizer.encode(prompt)
    if not ids:
        raise SourceError("the prompt is empty: give the model at least one word to continue")
    return ids


def check_sampling(max_tokens: int, temperature: float, top_p: float) -> None:
    """`SourceError` for a setting outside its range."""
    if max_tokens < 1:
        raise SourceError(f"max tokens must be at least 1, not {max_tokens}")
    if not 0 <= temperature <= 100:
        raise SourceError(f"temperature must lie between 0 and 100, not {temperature}")
    if not 0 < top_p <= 1:
        raise SourceError(f"top-p must be above 0 and at most 1, not {top_p}")


def tokens(
    engine: Engine,
    ids: Sequence[int],
    eos_ids: frozenset[int],
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> Iterator[int]:
    """Sample until an end-of-text token or `max_tokens`."""
    random = np.random.default_rng(seed)
    step: Sequence[int] = ids
    for _ in range(max_tokens):
        token = sample(engine.logits(step), temperature, top_p, random)
        if token in eos_ids:
            return
        yield token
        step = [token]


def sample(logits: np.ndarray, temperature: float, top_p: float, random: np.random.Generator) -> int:
    """One token: the likeliest at temperature 0, else drawn from the fewest that hold `top_p` of the mass."""
    if not np.isfinite(logits).any() or np.isnan(logits).any():
        raise SourceError("the model gave logits that are not finite: the file is broken")
    if temperature == 0:
        return int(logits.argmax())
    scaled = (logits.astype(np.float64) - logits.max()) / temperature
    mass = np.exp(scaled)
    mass /= mass.sum()
    if top_p < 1:
        order = np.argsort(-mass, kind="stable")
        kept = order[: int(np.searchsorted(np.cumsum(mass[order]), top_p)) + 1]
        return int(random.choice(kept, p=mass[kept] / mass[kept].sum()))
    return int(random.choice(len(mass), p=mass))
