"""One candidate, trained for a fixed part of the processor's time and scored as it would be after rounding."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from sprat.coding.tokenizer import pack
from sprat.errors import BudgetError, TrainingError
from sprat.golf import words
from sprat.golf.batches import Batches
from sprat.golf.corpus import Corpus
from sprat.golf.loop import run
from sprat.golf.model import Decoder
from sprat.golf.noise import rounding_noise
from sprat.golf.recipe import Recipe
from sprat.golf.schedule import Length
from sprat.golf.training import Training
from sprat.search.candidate import Network

#: Held-out tokens that a trial is scored on.
SCORED = 1 << 15
#: Windows scored at once.
WINDOWS = 64
#: What a diverging training scores: bits a byte of knowing nothing.
NOTHING = 8.0
#: Bytes of config, recipe, section table, scales and the coder's tables, about.
HEADER = 6000
#: More bits than this a number change nothing.
FINEST = 8.0


@dataclass(frozen=True)
class Text:
    """What all trials read: token streams of the training and the held-out documents."""

    tokenizer: Tokenizer
    train: np.ndarray
    held: np.ndarray
    held_bytes: float
    """Of a held-out token, on average; marks are tokens too."""

    @staticmethod
    def of(corpus: Corpus, vocabulary: int) -> Text:
        tokenizer = words.learn(corpus.train, vocabulary)
        held = words.stream(tokenizer, corpus.validation)
        nbytes = sum(len(document.encode()) for document in corpus.validation)
        return Text(tokenizer, words.stream(tokenizer, corpus.train), held, nbytes / len(held))

    @property
    def vocabulary(self) -> int:
        return self.tokenizer.get_vocab_size()


@dataclass(frozen=True)
class Outcome:
    """bits_per_byte: with rounding noise of the bits that the cap leaves for a number."""

    bits_per_byte: float
    tokens: int
    seconds: float
    diverged: bool = False


def trial(network: Network, text: Text, room: int, seconds: float, seed: int, pace: float = 0.0) -> Outcome:
    """Train for `seconds` of processor time; score on held-out text. room: bytes for the numbers. pace: seconds that a
    token counts as, whatever it took; 0: what it took."""
    recipe = network.recipe
    torch.manual_seed(seed)
    batches = Batches(text.train, recipe.context, recipe.batch, seed)
    length = Length("processor seconds", seconds, pace)
    training = Training(recipe, text.vocabulary, batches, length, seed)
    training.noise_bits = bits = min(FINEST, 8 * room / network.numbers)
    try:
        run(training)
    except TrainingError:
        return Outcome(NOTHING, training.tokens, training.seconds, diverged=True)
    nats = loss(training.result(), recipe, text.held, bits, seed)
    return Outcome(nats / math.log(2) / text.held_bytes, training.tokens, training.seconds)


@torch.no_grad()
def loss(model: Decoder, recipe: Recipe, ids: np.ndarray, bits: float | None, seed: int) -> float:
    """Nats a token of windows side by side, all factors carrying the noise of rounding to so many bits, if any."""
    windows = min(len(ids) - 1, SCORED) // recipe.context
    rows = torch.from_numpy(ids[: windows * recipe.context + 1].astype(np.int64))
    read, following = rows[:-1].view(windows, -1), rows[1:].view(windows, -1)
    noisy = [
        p.unsqueeze(0) if p.ndim == 1 else p for name, p in model.named_parameters() if "norm" not in name
    ]
    total = 0.0
    generator = torch.Generator().manual_seed(seed)
    with nullcontext() if bits is None else rounding_noise(noisy, bits, generator):
        for part, target in zip(read.split(WINDOWS), following.split(WINDOWS), strict=True):
            logits = model(part).float().flatten(0, 1)
            total += float(F.cross_entropy(logits, target.flatten(), reduction="sum"))
    found = total / following.numel()
    return found if math.isfinite(found) else NOTHING * math.log(2)


def room(cap: int, tokenizer: Tokenizer) -> int:
    """Bytes that the cap leaves for numbers. BudgetError where that is nothing."""
    fixed = len(pack(words.files(tokenizer))) + HEADER
    if cap <= fixed:
        raise BudgetError(
            f"a cap of {cap:,} bytes is too small: tokenizer, config and tables need about {fixed:,}; lower the "
            "recipe's vocabulary"
        )
    return cap - fixed
