"""How long the compressed model writes what the original writes: greedy continuations of the evaluation text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sprat.errors import ProofError
from sprat.progress import Progress, silent
from sprat.prove.intervals import estimate, gather, resample
from sprat.prove.metrics import keeps_few
from sprat.prove.text import Contexts

if TYPE_CHECKING:
    import torch

    from sprat.run.tokenizer import TextTokenizer

#: Tokens of text in front, and tokens written.
PROMPT, WRITTEN = 64, 64


def diverge(
    original: torch.nn.Module,
    compressed: torch.nn.Module,
    contexts: Contexts,
    tokenizer: TextTokenizer,
    count: int,
    progress: Progress = silent,
    *,
    prompt: int = PROMPT,
    written: int = WRITTEN,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Any]:
    """{prompts: [{prompt, original, compressed, same_tokens, tokens}], divergence}.

    Both models continue the first `prompt` tokens of `count` contexts, spread evenly, with the likeliest token
    each time, up to `written` tokens or the end of their text (which counts as a token). same_tokens: those
    before the first difference; divergence: its mean over the prompts, which `written` bounds from above.
    """
    prompt = min(prompt, contexts.ids.shape[1])
    whole = np.flatnonzero(contexts.mask.sum(axis=1) + contexts.skip + 1 >= prompt)
    if not len(whole):
        raise ProofError(f"no document has the {prompt} tokens that a prompt needs")
    places = whole[np.unique(np.linspace(0, len(whole) - 1, count).round().astype(int))]
    ids = contexts.ids[places, :prompt]
    texts = []
    for i, model in enumerate((original, compressed)):
        texts.append([_until_end(row, tokenizer.eos_ids) for row in greedy(model, ids, written).tolist()])
        progress("writing with both models", i + 1, 2)
    prompts = []
    for row, mine, theirs in zip(ids.tolist(), *texts, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), len(mine))
        prompts.append(
            {
                "prompt": tokenizer.decode(row),
                "original": [tokenizer.token_text(token) for token in mine],
                "compressed": [tokenizer.token_text(token) for token in theirs],
                "same_tokens": same,
                "tokens": len(mine),
            }
        )
    sums = gather(np.array([[p["same_tokens"], 1] for p in prompts], np.float64), contexts.clusters[places])
    length = estimate(sums, resample(sums, resamples, seed), lambda s: s[..., 0] / s[..., 1])
    return {"prompts": prompts, "divergence": length}


def greedy(model: torch.nn.Module, ids: np.ndarray, count: int) -> np.ndarray:
    """The likeliest continuation of each row of `ids`, (rows, prompt) int64: (rows, count), in one batch."""
    import torch
    from transformers import DynamicCache

    cache, last = DynamicCache(), torch.from_numpy(ids)
    options = {"logits_to_keep": 1} if keeps_few(model) else {}
    out = []
    with torch.inference_mode():
        for _ in range(count):
            logits = model(input_ids=last, past_key_values=cache, use_cache=True, **options).logits[:, -1]
            last = logits.argmax(-1, keepdim=True)
            out.append(last)
    return torch.cat(out, dim=1).numpy()


def _until_end(ids: list[int], ends: frozenset[int]) -> list[int]:
    """`ids` up to the first token that ends a text, with it."""
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[: stop + 1]
