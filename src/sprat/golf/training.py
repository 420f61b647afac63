"""The training loop: steps until the length is reached, checkpoints on the way, exact when resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sprat.errors import TrainingError
from sprat.golf.batches import Batches
from sprat.golf.model import Decoder
from sprat.golf.muon import Muon
from sprat.golf.noise import rounding_noise
from sprat.golf.recipe import Recipe
from sprat.golf.schedule import Length, rate
from sprat.progress import Progress, silent
from sprat.sense.walk import working_dtype
from sprat.training.checkpoint import Checkpoint

#: A loss so many nats above that of knowing nothing, ln(vocabulary), is a training that diverges.
DIVERGED = 1.0
#: Shares of the training at which the loss is told.
REPORTS = 20


@dataclass(frozen=True)
class Point:
    """How a training stands. loss: nats a token, the mean since the point before."""

    share: float
    step: int
    tokens: int
    seconds: float
    loss: float


class Training:
    """A model under way, and all that its next step depends on."""

    def __init__(self, recipe: Recipe, vocabulary: int, batches: Batches, length: Length, seed: int):
        self.recipe, self.vocabulary, self.batches, self.length, self.seed = (
            recipe,
            vocabulary,
            batches,
            length,
            seed,
        )
        #: Bits a weight of the rounding to come, for the recipe's `noise`.
        self.noise_bits = 8.0
        self.model = Decoder(recipe, vocabulary, seed)
        named = dict(self.model.named_parameters())
        embeddings = [named.pop(name) for name in [*named] if "embed" in name]
        self.matrices = [p for p in named.values() if p.ndim == 2]
        vectors = [p for p in named.values() if p.ndim == 1]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(self.matrices, recipe.matrix_rate, recipe.momentum, recipe.weight_decay),
            torch.optim.AdamW(
                [
                    {"params": embeddings, "lr": recipe.embedding_rate, "weight_decay": recipe.weight_decay},
                    {"params": vectors, "lr": recipe.vector_rate, "weight_decay": 0.0},
                ],
                betas=(0.9, 0.95),
                eps=1e-10,
            ),
        ]
        self.rounded = [*embeddings, *self.matrices]
        self.full_rates = [group["lr"] for o in self.optimizers for group in o.param_groups]
        self.mean = [p.detach().clone() for p in self.model.parameters()] if recipe.ema else []
        self.step, self.seconds = 0, 0.0
        chosen = {"auto": working_dtype(), "bf16": torch.bfloat16, "float32": torch.float32}
        self.dtype = chosen[recipe.precision]

    @property
    def tokens(self) -> int:
        return self.step * self.recipe.step_tokens

    @property
    def share(self) -> float:
        """How much of the training is over."""
        return self.length.share(self.tokens, self.seconds)

    def advance(self) -> float:
        """One step; returns its loss in nats a token. TrainingError, before any weight moves, where it diverges."""
        recipe = self.recipe
        now = rate(self.share, recipe.warm_up, recipe.cool_down)
        groups = [group for o in self.optimizers for group in o.param_groups]
        for group, full in zip(groups, self.full_rates, strict=True):
            group["lr"] = full * now
        loss = self._gradients()
        if not loss < math.log(self.vocabulary) + DIVERGED:
            raise TrainingError(
                f"the training diverged at step {self.step + 1} ({self.tokens:,} tokens, {self.share:.1%} of it): "
                f"a loss of {loss:.3f} nats a token, where knowing nothing costs {math.log(self.vocabulary):.3f}; "
                "lower matrix_rate or embedding_rate, or warm up for longer"
            )
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.mean:
            for mean, p in zip(self.mean, self.model.parameters(), strict=True):
                mean.lerp_(p.detach(), 1 - recipe.ema)
        self.step += 1
        return loss

    def _gradients(self) -> float:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        recipe, total = self.recipe, 0.0
        for part in range(recipe.accumulate):
            read, next_ids = self.batches[self.step * recipe.accumulate + part]
            if recipe.noise and self.share >= 1 - recipe.noise:
                generator = torch.Generator().manual_seed(hash((self.seed, self.step, part)) & 0x7FFFFFFF)
                with rounding_noise(self.rounded, self.noise_bits, generator):
                    total += self._backward(read, next_ids)
            else:
                total += self._backward(read, next_ids)
        return total / recipe.accumulate

    def _backward(self, read: Tensor, next_ids: Tensor) -> float:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(read)
        loss = F.cross_entropy(logits.float().flatten(0, 1), next_ids.flatten())
        (loss / self.recipe.accumulate).backward()
        return loss.item()

    def result(self) -> Decoder:
        """The model as it would be stored: its weights, or their mean; in eval mode."""
        out = Decoder(self.recipe, self.vocabulary, self.seed)
        out.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            for p, mean in zip(out.parameters(), self.mean or list(self.model.parameters()), strict=True):
                p.copy_(mean)
        return out.eval()

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, beside the arguments of this class."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "mean": self.mean,
            "step": self.step,
            "seconds": self.seconds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """What `state` gave."""
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        with torch.no_grad():
            for mean, saved in zip(self.mean, state["mean"], strict=True):
                mean.copy_(saved)
        self.step, self.seconds = state["step"], state["seconds"]


def run(
    training: Training,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
    watch: Callable[[Point], None] = lambda _: None,
) -> list[Point]:
    """Step until the length is reached; now and then, and at the end, save `checkpoint`.

    watch: is told REPORTS points, which are returned. Raises TrainingError where the loss diverges; the checkpoint
    before stays.
    """
    points: list[Point] = []
    losses: list[float] = []
    told = int(training.share * REPORTS)
    last, saved = training.length.now(), time.monotonic()
    while training.share < 1:
        try:
            losses.append(training.advance())
        except TrainingError as error:
            kept = (
                f"; the last good checkpoint is {checkpoint.path}"
                if checkpoint and checkpoint.path.exists()
                else ""
            )
            raise TrainingError(f"{error}{kept}") from None
        now = training.length.now()
        training.seconds, last = training.seconds + now - last, now
        progress("training", training.share, 1.0)
        if int(training.share * REPORTS) > told:
            told = int(training.share * REPORTS)
            points.append(
                Point(
                    training.share,
                    training.step,
                    training.tokens,
                    training.seconds,
                    sum(losses) / len(losses),
                )
            )
            losses = []
            watch(points[-1])
        if checkpoint and (training.share >= 1 or time.monotonic() - saved > checkpoint.every):
            checkpoint.save(training.state())
            saved = time.monotonic()
    return points
