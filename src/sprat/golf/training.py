"""A training under way: the model, its optimizers, and one step of them.

On several processes (training/processes.py) each has the whole model and reads its own micro-batches; a step's
gradients are their mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sprat.errors import TrainingError
from sprat.golf.batches import Batches
from sprat.golf.loss import cross_entropy
from sprat.golf.model import Decoder
from sprat.golf.muon import Muon
from sprat.golf.noise import rounding_noise
from sprat.golf.prune import kept, narrowed, saliency
from sprat.golf.rate_term import RateTerm
from sprat.golf.recipe import Recipe
from sprat.golf.schedule import Length, rate
from sprat.golf.teacher import Teacher, without_gradient
from sprat.methods.distil import divergence
from sprat.sense.walk import working_dtype
from sprat.training import processes
from sprat.training.devices import CPU

#: A loss so many nats above that of knowing nothing, ln(vocabulary), and for so many steps in a row, is a training that
#: diverges: a first step at the full rate may overshoot once and come back. No training may end on such a loss.
DIVERGED, PATIENCE = 1.0, 10


class Training:
    """A model under way, and all that its next step depends on."""

    def __init__(
        self,
        recipe: Recipe,
        vocabulary: int,
        batches: Batches,
        length: Length,
        seed: int,
        teacher: Teacher | None = None,
        device: torch.device = CPU,
    ):
        """teacher: of tokens and logits that lie on `device`, where all is computed."""
        self.recipe, self.vocabulary, self.batches, self.length, self.seed, self.teacher = (
            recipe,
            vocabulary,
            batches,
            length,
            seed,
            teacher,
        )
        #: Bits a weight of the rounding to come, for the recipe's `noise` and `rate_term`.
        self.noise_bits = 8.0
        self.rate: RateTerm | None = None
        self.device = device
        chosen = {"auto": working_dtype(device), "bf16": torch.bfloat16, "float32": torch.float32}
        self.dtype = chosen[recipe.precision]
        self.inner = recipe.prune_from or recipe.inner
        self._use(Decoder(replace(recipe, inner=self.inner, prune_from=0), vocabulary, seed))
        self.mean = [p.detach().clone() for p in self.model.parameters()] if recipe.ema else []
        self.step, self.seconds = 0, 0.0
        #: Steps in a row that knew less than nothing, `DIVERGED` says by how much.
        self.above = 0

    def _use(self, model: Decoder) -> None:
        """Train `model`, with optimizers that know nothing yet."""
        recipe, self.model = self.recipe, model.to(self.device)
        self.forward = torch.compile(model) if recipe.compile else model
        named = dict(model.named_parameters())
        embeddings = [named.pop(name) for name in [*named] if "embed" in name]
        self.matrices = [p for p in named.values() if p.ndim == 2]
        vectors = [p for p in named.values() if p.ndim == 1]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(self.matrices, recipe.matrix_rate, recipe.momentum, recipe.weight_decay, self.dtype),
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
        if self.rate is not None:
            self.rate = RateTerm(self.rounded, self.rate.steps)

    @property
    def tokens(self) -> int:
        return self.step * self.recipe.step_tokens * processes.count()

    @property
    def share(self) -> float:
        """How much of the training is over."""
        return self.length.share(self.tokens, self.seconds)

    def advance(self) -> float:
        """One step; returns its loss in nats a token, that of the weights before it.

        TrainingError where it has diverged: at the PATIENCE-th loss in a row that is above, or at once for one that is
        no number. That step moves no weight; those before it have.
        """
        recipe = self.recipe
        if self.inner > recipe.inner and self.share >= recipe.prune_at:
            self._prune()
        if recipe.rate_term and self.rate is None and self.share >= 1 - recipe.rate_term:
            self.rate = RateTerm.begin(self.rounded, self.noise_bits)
        now = rate(self.share, recipe.warm_up, recipe.cool_down)
        groups = [group for o in self.optimizers for group in o.param_groups]
        for group, full in zip(groups, self.full_rates, strict=True):
            group["lr"] = full * now
        loss = self._gradients()
        self.above = 0 if loss < math.log(self.vocabulary) + DIVERGED else self.above + 1
        if self.above == PATIENCE or not math.isfinite(loss):
            raise self.diverged(loss, "diverged", self.step + 1)
        if recipe.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.mean:
            for mean, p in zip(self.mean, self.model.parameters(), strict=True):
                mean.lerp_(p.detach(), 1 - recipe.ema)
        self.step += 1
        return loss

    def diverged(self, loss: float, how: str, step: int) -> TrainingError:
        """What is raised for a training that knows less than nothing; how: "diverged", "ended diverging"."""
        return TrainingError(
            f"the training {how} at step {step} ({self.tokens:,} tokens, {self.share:.1%} of it): "
            f"a loss of {loss:.3f} nats a token, where knowing nothing costs {math.log(self.vocabulary):.3f}; "
            "lower matrix_rate or embedding_rate, or warm up for longer"
        )

    def _gradients(self) -> float:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        recipe, total = self.recipe, 0.0
        for part in range(recipe.accumulate):
            number = (self.step * recipe.accumulate + part) * processes.count() + processes.rank()
            read, next_ids = (ids.to(self.device) for ids in self.batches[number])
            if recipe.noise and self.share >= 1 - recipe.noise:
                generator = torch.Generator().manual_seed(hash((self.seed, self.step, part)) & 0x7FFFFFFF)
                with rounding_noise(self.rounded, self.noise_bits, generator):
                    total += self._backward(read, next_ids)
            else:
                total += self._backward(read, next_ids)
        if self.rate is not None:
            (recipe.rate_weight * self.rate.bits()).backward()
        processes.average_gradients(self.model.parameters())
        # What a batch moves by itself: the bias of experts.
        processes.average(p for p in self.model.parameters() if not p.requires_grad)
        return processes.total(total)[0] / recipe.accumulate / processes.count()

    def _backward(self, read: Tensor, next_ids: Tensor) -> float:
        """Nats a token of the text alone; the gradient is that of all that is learnt from."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.forward(read).flatten(0, 1)
            taught = without_gradient(self.teacher, read) if self.teacher else None
        loss = cross_entropy(logits, next_ids.flatten())
        told = loss.item()
        if taught is not None:
            share = self.recipe.distill
            loss = (1 - share) * loss + share * divergence(taught, logits.float())
        (loss / self.recipe.accumulate).backward()
        return told

    def _prune(self) -> None:
        """Go on with the recipe's own feed-forwards: what matters of them, and what the optimizers know of it."""
        read, _ = self.batches[self.step * self.recipe.accumulate * processes.count() + processes.rank()]
        saliencies = saliency(self.model, read.to(self.device))
        processes.average(saliencies.values())
        keep = kept(saliencies, self.recipe.inner)
        before = dict(self.model.named_parameters())
        optimizers, means = self.optimizers, self.mean
        self._narrow()
        # No means without ema.
        self.mean = [narrowed(name, mean, keep) for name, mean in zip(before, means, strict=False)]
        for name, parameter in self.model.named_parameters():
            old = before[name]
            with torch.no_grad():
                parameter.copy_(narrowed(name, old, keep))
            for optimizer, new in zip(optimizers, self.optimizers, strict=True):
                for key, value in optimizer.state.get(old, {}).items():
                    new.state[parameter][key] = (
                        narrowed(name, value, keep) if value.shape == old.shape else value
                    )

    def _narrow(self) -> None:
        self.inner = self.recipe.inner
        self._use(Decoder(self.recipe, self.vocabulary, self.seed))

    def result(self) -> Decoder:
        """The model as it would be stored: its weights, or their mean; in eval mode, on the processor."""
        if self.inner > self.recipe.inner:  # a training of few steps
            self._prune()
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
            "inner": self.inner,
            "rate_steps": self.rate.steps if self.rate else None,
            "step": self.step,
            "seconds": self.seconds,
            "above": self.above,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """What `state` gave."""
        if state["inner"] != self.inner:
            self._narrow()
            self.mean = [torch.empty_like(mean, device=self.device) for mean in state["mean"]]
        if state["rate_steps"] is not None:
            self.rate = RateTerm(self.rounded, state["rate_steps"])
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        with torch.no_grad():
            for mean, saved in zip(self.mean, state["mean"], strict=True):
                mean.copy_(saved)
        self.step, self.seconds, self.above = state["step"], state["seconds"], state["above"]
