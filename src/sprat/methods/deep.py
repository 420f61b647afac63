"""Deep healing: the integers of a rounded model trained towards the original's distribution, within their bits.

Every integer has a latent value ℓ in units of the lattice, W = diag(r) · round(ℓ) · diag(k), and
    minimise  KL( p(x) || q(x) ) + λ · bits(Q)      over ℓ, r, k and the dense tensors,
the gradient passing through the rounding as if it were not there (straight-through):
    ∂/∂ℓ_ij = r_i k_j · ∂KL/∂W_ij + λ · b'(Q_ij),        b' the slope of the coder's bits (methods/rate.py).
ℓ starts at the integers. A step divides this by the root of its mean square over rows and columns (factored, as in
Adafactor), so that it is of one size in lattice units everywhere: an integer moves when the steps on it add up to a
half. What is noise does not, as long as rate · √steps stays well below that: few integers move, those on which the
contexts agree. What the recipe holds integers to, zeros or few values, holds latents after each step (methods/held.py).
λ begins at the slope of the rate–distortion curve, 2 ln 2 · KL / weights, and follows the bits: it
rises while they are above what they were.
Sources: straight-through estimator, Bengio et al. (arXiv 1308.3432); quantization-aware distillation after a one-shot
rounding: EfficientQAT (2407.11062), BitDistiller (2402.10631), PV-Tuning (2405.14852), which shows where
straight-through misleads; entropy in the loss: Oktay et al. (1906.06624); Adafactor (1804.04235).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sprat.coding import entropy
from sprat.coding.tensors import Entry, Lattice
from sprat.methods.distil import Teacher, divergence, student_logits
from sprat.methods.heal import Scales
from sprat.methods.held import Held
from sprat.methods.rate import Rate
from sprat.training import processes

#: Rate of the latents, in lattice units a step, over that of the scales, in nats: 0.005 at the default of 0.002
#: (docs/heal.md).
LATTICE_RATE = 2.5
#: Shares that each step keeps of the moving averages: of the direction, of its mean square.
DIRECTION, SQUARE = 0.9, 0.95
#: What a bit is worth in squared lattice units, where a file has to get smaller: from what was trained upwards.
PRICES = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
#: Steps between two looks at the bits, and how λ follows them: a percent too many raises it by a fifth.
LOOK, FOLLOW = 4, 20.0


@dataclass
class _Latent:
    """One entry's. value: (m, n) float32; direction: (m, n) bfloat16; rows (m,), columns (n,): mean squares."""

    parameters: list[nn.Parameter]
    held: Held
    value: Tensor
    direction: Tensor
    rows: Tensor
    columns: Tensor

    def integers(self) -> Tensor:
        """(m, n) float32."""
        return self.held.rounded(self.value)


class Deep:
    """A training.loop.Learner: the integers and scales of `names` and all dense tensors of a rounded model."""

    def __init__(
        self,
        teacher: Teacher,
        rounded: nn.Module,
        entries: Mapping[str, Entry],
        names: Sequence[str],
        held: Mapping[str, Held] | None = None,
    ):
        """rounded: the model that `entries` stand for, whose matrices follow, on the device where all is trained;
        names: plain lattices all of them; held: what integers of some of them are held to.

        Memory beside the models and a context's pass: 8 bytes a weight of `names`.
        """
        self.teacher, self.rounded = teacher, rounded
        self.scales = Scales(teacher, rounded, entries, names)
        self.rate = Rate(entropy.Tables.from_counts(entropy.count([self._lattice(name) for name in names])))
        parameters = dict(rounded.named_parameters())
        self.device = next(rounded.parameters()).device
        self.latents: dict[str, _Latent] = {}
        for name in names:
            q = torch.from_numpy(self._lattice(name).q).to(self.device).float()
            served = [parameters[p] for p in entries[name].maps]
            for parameter in served:
                parameter.requires_grad_(True)
            m, n = q.shape
            self.latents[name] = _Latent(
                served,
                (held or {}).get(name, Held()).on(self.device),
                q,
                q.new_zeros(m, n, dtype=torch.bfloat16),
                q.new_zeros(m),
                q.new_zeros(n),
            )
        self.weights = sum(latent.value.numel() for latent in self.latents.values())
        self.bits = self._bits()
        self.price: float | None = None
        self.steps = 0
        self._loss = 0.0

    def learn(self, context: Tensor, share: float) -> float:
        loss = divergence(self.teacher.logits(context), student_logits(self.rounded, context))
        (loss * share).backward()
        self._loss += share * float(loss.detach())
        return float(loss.detach())

    def average(self) -> None:
        self.scales.average()
        processes.average_gradients(p for latent in self.latents.values() for p in latent.parameters)
        self._loss = processes.total(self._loss)[0] / processes.count()

    def step(self, rate: float) -> None:
        if self.price is None:
            self.price = 2 * math.log(2) * self._loss / self.weights
        self.steps += 1
        self._loss = 0.0
        with torch.no_grad():
            for name in self.latents:
                self._move(name, LATTICE_RATE * rate)
            self.scales.step(rate)
            for name in self.latents:
                self._show(name)
        if self.steps % LOOK == 0:
            self.price *= math.exp(min(1.0, FOLLOW * (self._bits() / self.bits - 1)))

    def _move(self, name: str, rate: float) -> None:
        """One step of an entry's latents; the gradients of its scales are left for the step of the scales."""
        latent, entry = self.latents[name], self.scales.entries[name]
        gradient = torch.cat([g.T if entry.transposed else g for g in map(_taken, latent.parameters)])
        row, col = self._vectors(name)
        gradient *= row[:, None]
        gradient *= col
        q = latent.integers()
        by_row = gradient * q  # r k q = W: what both factors of an element change
        factors = self.scales.factors[name]
        for f, part in zip(factors, by_row.sum(1).split(list(entry.rows)), strict=True):
            f.outputs.grad = part.clone() if f.outputs.requires_grad else None
        factors[0].inputs.grad = by_row.sum(0)
        gradient.add_(self.rate.slopes(self._lattice(name), q), alpha=self.price or 0.0)

        square = gradient.square()
        latent.rows.lerp_(square.mean(1), 1 - SQUARE)
        latent.columns.lerp_(square.mean(0), 1 - SQUARE)
        known = 1 - SQUARE**self.steps  # of averages that began at nothing
        tiny = 1e-38
        gradient *= (latent.rows / known).clamp_min(tiny).rsqrt()[:, None]
        gradient *= (latent.columns / latent.rows.mean().clamp_min(tiny)).clamp_min(tiny).rsqrt()
        latent.direction.mul_(DIRECTION).add_(gradient, alpha=1 - DIRECTION)
        latent.value.sub_(latent.direction.float(), alpha=rate)
        latent.held.hold(latent.value)

    def _show(self, name: str) -> None:
        """The model computes with the rounded latents and the scales as they are now."""
        latent, entry = self.latents[name], self.scales.entries[name]
        row, col = self._vectors(name)
        w = latent.integers().mul_(row[:, None]).mul_(col)
        for parameter, part in zip(latent.parameters, w.split(list(entry.rows)), strict=True):
            parameter.copy_(part.T if entry.transposed else part)

    def _vectors(self, name: str) -> tuple[Tensor, Tensor]:
        """(m,) and (n,): the scales as they are now."""
        lattice, factors = self._lattice(name), self.scales.factors[name]
        row, col = (torch.from_numpy(s.values()).to(self.device) for s in (lattice.row, lattice.col))
        return row * torch.cat([f.outputs.detach() for f in factors]).exp(), col * factors[
            0
        ].inputs.detach().exp()

    def _lattice(self, name: str) -> Lattice:
        lattice = self.scales.entries[name].tensor
        assert isinstance(lattice, Lattice)
        assert not lattice.trellis
        return lattice

    def _bits(self) -> float:
        """Bits of all integers under the tables of the beginning."""
        each = (self.rate.bits(self._lattice(n), x.integers()).sum() for n, x in self.latents.items())
        return float(sum(each))

    def state(self) -> dict[str, Any]:
        latents = {n: (x.value, x.direction, x.rows, x.columns) for n, x in self.latents.items()}
        return {"latents": latents, "scales": self.scales.state(), "price": self.price, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        self.price, self.steps = state["price"], state["steps"]
        for name, latent in self.latents.items():
            saved = (tensor.to(self.device) for tensor in state["latents"][name])
            latent.value, latent.direction, latent.rows, latent.columns = saved
        self.scales.restore(state["scales"])
        with torch.no_grad():
            for name in self.latents:
                self._show(name)

    def candidates(self) -> list[Iterator[dict[str, Entry]]]:
        """As `Scales.candidates`: all that was trained, or its scales alone, where the integers learnt by heart."""
        return [(self.healed(price=price) for price in PRICES), *self.scales.candidates()]

    def healed(self, resolution: int | None = None, price: float = 0.0) -> dict[str, Entry]:
        """The entries as trained. price: what a bit is worth, in squared lattice units: above 0, integers go a step
        towards zero where that saves more bits than it moves them from their latents."""
        out = self.scales.healed(resolution)
        for name, latent in self.latents.items():
            q = latent.integers()
            if price:
                lattice, less = self._lattice(name), latent.held.smaller(q)
                saved = self.rate.bits(lattice, q) - self.rate.bits(lattice, less)
                moved = (latent.value - less).square() - (latent.value - q).square()
                q = torch.where(price * saved > moved, less, q)
            kind = np.int16 if float(q.abs().max()) < 2**15 else np.int32
            tensor = out[name].tensor
            assert isinstance(tensor, Lattice)
            out[name] = replace(out[name], tensor=replace(tensor, q=q.cpu().numpy().astype(kind)))
        return out


def _taken(parameter: nn.Parameter) -> Tensor:
    """The parameter's gradient in float32, which it then has no more; nothing where the loss did not reach it."""
    gradient, parameter.grad = parameter.grad, None
    return torch.zeros_like(parameter, dtype=torch.float32) if gradient is None else gradient.float()
