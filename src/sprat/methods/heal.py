"""Healing: the continuous parameters of a rounded model trained towards the original's distribution.

Rounding leaves W = diag(r) Q diag(k) for every map; Q stays as it is, r and k move, and norms and biases d:
    minimise  KL( p(x) || q_{r,k,d}(x) )  over the calibration text,     r = r0 · exp(b),  k = k0 · exp(a),
by Adam on a, b and d. Since y = r ⊙ (Q (k ⊙ x)), the factors sit at a map's input and output: no gradient of a weight
matrix is ever computed, and any family is served by its hooks. An embedding's k is at work where tokens enter and where
they leave; its r stays, a scale a token, most of which the text says nothing of. A map that is stored as a product, or
has one beside its lattice, has the same factors at its ends, and the product's two halves are trained as well
(methods/adapter.py).
Sources: distillation, Hinton et al. (arXiv 1503.02531); scales alone after rounding: PV-Tuning (2405.14852) section 2
and OneBit (2402.11295) show how much of the loss continuous parameters win back; Adam (1412.6980).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sprat.coding.tensors import Dense, Entry, Lattice, LogScale, LowRank, expand
from sprat.methods import adapter
from sprat.methods.adapter import Adapter
from sprat.methods.distil import Teacher, divergence, student_logits
from sprat.training import processes

BETAS = (0.9, 0.95)
#: Steps an octave that healed scales are stored with, the finest first: the coarser, the fewer bytes.
RESOLUTIONS = (32, 16, 8, 4)


@dataclass(frozen=True)
class _Factors:
    """Of one map: log factors of its inputs (n,), shared by all maps stacked in one entry, and of its outputs (m,)."""

    modules: tuple[nn.Module, ...]
    """Those that use the map's weight: one, or the embedding and the head that is tied to it."""
    inputs: Tensor
    outputs: Tensor
    first: int = 0
    """Row of the entry that the map begins at."""
    adapter: Adapter | None = None


class Scales:
    """A training.loop.Learner: the scales and products of `names`, and all dense tensors of a rounded model."""

    def __init__(
        self,
        teacher: Teacher,
        rounded: nn.Module,
        entries: Mapping[str, Entry],
        names: Sequence[str],
        dense: bool = True,
        rank: int = 0,
    ):
        """rounded: the model that `entries` stand for, on the device where all is trained; products are taken out of
        its matrices, to be computed beside them. names: of maps. rank: of a new product beside each of them that has
        none and is no embedding (methods/adapter.py); 0: none."""
        for model in (teacher.model, rounded):
            for parameter in model.parameters():
                parameter.requires_grad_(False)
        self.teacher, self.rounded, self.entries = teacher, rounded, entries
        users, parameters = _users(rounded), dict(rounded.named_parameters())
        device = next(rounded.parameters()).device
        self.factors = {name: _factors(entries[name], users, device) for name in names}
        generator = torch.Generator().manual_seed(0)
        self.adapters: dict[str, Adapter] = {}
        for name, fs in self.factors.items():
            tensor = entries[name].tensor
            embedding = any(isinstance(m, nn.Embedding) for f in fs for m in f.modules)
            if isinstance(tensor, LowRank):
                made = adapter.going_on(tensor, device)
                _take_out(entries[name], tensor, parameters)
            elif rank and not embedding:
                made = adapter.begin(entries[name], rank, generator, device)
            else:
                continue
            self.adapters[name] = made
            self.factors[name] = [replace(f, adapter=made) for f in fs]
        self.dense: dict[str, tuple[nn.Parameter, Tensor]] = {}
        for name, entry in entries.items():
            if dense and isinstance(entry.tensor, Dense) and entry.maps[0] in parameters:
                parameter = parameters[entry.maps[0]]
                self.dense[name] = parameter, parameter.detach().float().clone()
                parameter.requires_grad_(True)
        free = {id(t): t for fs in self.factors.values() for f in fs for t in (f.inputs, f.outputs)}
        groups: list[dict[str, Any]] = [
            {"params": [t for t in free.values() if t.requires_grad], "size": 1.0}
        ]
        groups += [
            {"params": [tensor], "size": size}
            for a in self.adapters.values()
            for tensor, size in zip((a.left, a.right), a.rates(), strict=True)
            if tensor.requires_grad
        ]
        # A dense tensor's rate is relative to its size, as a scale's is by its logarithm.
        groups += [
            {"params": [exact], "size": max(float(exact.square().mean().sqrt()), 1e-3)}
            for _, exact in self.dense.values()
        ]
        self.optimizer = torch.optim.Adam(groups, lr=0.0, betas=BETAS)

    def learn(self, context: Tensor, share: float) -> float:
        with attached(f for fs in self.factors.values() for f in fs):
            loss = divergence(self.teacher.logits(context), student_logits(self.rounded, context))
            (loss * share).backward()
        return float(loss.detach())

    def average(self) -> None:
        free = [t for group in self.optimizer.param_groups for t in group["params"]]
        # The gradient of a dense tensor is that of the model's own.
        processes.average_gradients([*free, *(parameter for parameter, _ in self.dense.values())])

    def step(self, rate: float) -> None:
        for parameter, exact in self.dense.values():
            exact.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["size"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._show()

    def _show(self) -> None:
        """The model computes with dense tensors as they would be stored."""
        with torch.no_grad():
            for parameter, exact in self.dense.values():
                parameter.copy_(exact)

    def state(self) -> dict[str, Any]:
        factors = {name: [(f.inputs, f.outputs) for f in fs] for name, fs in self.factors.items()}
        dense = {name: exact for name, (_, exact) in self.dense.items()}
        adapters = {name: (a.left, a.right) for name, a in self.adapters.items()}
        return {
            "factors": factors,
            "adapters": adapters,
            "dense": dense,
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, fs in self.factors.items():
                for f, (inputs, outputs) in zip(fs, state["factors"][name], strict=True):
                    f.inputs.copy_(inputs)
                    f.outputs.copy_(outputs)
            for name, made in self.adapters.items():
                for own, saved in zip((made.left, made.right), state["adapters"][name], strict=True):
                    own.copy_(saved)
            for name, (_, exact) in self.dense.items():
                exact.copy_(state["dense"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self._show()

    def candidates(self) -> list[Iterator[dict[str, Entry]]]:
        """What may be kept of the training: each the entries, as trained first, then likely smaller each time."""
        fineness = adapter.FINENESS if self.adapters else adapter.FINENESS[:1]
        return [iter(self.healed(steps, fine) for fine in fineness for steps in RESOLUTIONS)]

    def healed(
        self, resolution: int | None = None, fineness: float = adapter.FINENESS[0]
    ) -> dict[str, Entry]:
        """The entries as trained, scales on the grids that they had or `resolution` steps an octave, products in steps
        of `fineness` (methods/adapter.py)."""
        healed = {
            name: _healed(self.entries[name], fs, resolution, fineness) for name, fs in self.factors.items()
        }
        out = {**self.entries, **healed}
        for name, (_, exact) in self.dense.items():
            tensor = self.entries[name].tensor
            assert isinstance(tensor, Dense)
            out[name] = replace(self.entries[name], tensor=replace(tensor, array=exact.cpu().numpy().copy()))
        return out


def _users(model: nn.Module) -> dict[str, tuple[nn.Module, ...]]:
    """The modules whose weight a parameter is, by its name."""
    of: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        of.setdefault(id(getattr(module, "weight", None)), []).append(module)
    return {n: tuple(of.get(id(p), ())) for n, p in model.named_parameters(remove_duplicate=False)}


def _factors(
    entry: Entry, users: Mapping[str, tuple[nn.Module, ...]], device: torch.device
) -> list[_Factors]:
    assert isinstance(entry.tensor, Lattice | LowRank)
    inputs, out, first = torch.zeros(entry.tensor.shape[1], device=device).requires_grad_(), [], 0
    for name, rows in zip(entry.maps, entry.rows, strict=True):
        tokens = any(isinstance(m, nn.Embedding) for m in users[name])
        outputs = torch.zeros(rows, device=device).requires_grad_(not tokens)
        out.append(_Factors(users[name], inputs, outputs, first))
        first += rows
    return out


def _take_out(entry: Entry, tensor: LowRank, parameters: Mapping[str, nn.Parameter]) -> None:
    """Of the product's maps only the lattice beside it is left, or nothing."""
    with torch.no_grad():
        for name in entry.maps:
            parameters[name].zero_()
        if tensor.rest is not None:
            for name, array in expand({"": replace(entry, tensor=tensor.rest)}).items():
                parameters[name].copy_(torch.from_numpy(array))


@contextmanager
def attached(factors: Iterable[_Factors]) -> Iterator[None]:
    """The maps scaled at both ends, embeddings by the rows that they look up."""
    hooks = []
    for f in factors:
        for module in f.modules:
            if isinstance(module, nn.Embedding):
                hooks.append(module.register_forward_hook(_looked_up(f)))
            else:
                hooks.append(module.register_forward_pre_hook(_before(f)))
                if f.adapter is not None:
                    hooks.append(module.register_forward_hook(_beside(f.adapter, f.first)))
                hooks.append(module.register_forward_hook(_behind(f)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _looked_up(f: _Factors) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out * (f.outputs[args[0]][..., None] + f.inputs).exp().to(out.dtype)

    return hook


def _before(f: _Factors) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] * f.inputs.exp().to(args[0].dtype), *args[1:])

    return hook


def _behind(f: _Factors) -> Any:
    """A bias is added behind the rows' scale, so it is taken out of what is scaled."""

    def hook(module: nn.Module, _: object, out: Tensor) -> Tensor:
        scale, bias = f.outputs.exp().to(out.dtype), module.bias
        return (out - bias) * scale + bias if isinstance(bias, Tensor) else out * scale

    return hook


def _beside(made: Adapter, first: int) -> Any:
    return lambda module, args, out: made.added(args[0], out, first)


def _healed(entry: Entry, factors: list[_Factors], resolution: int | None, fineness: float) -> Entry:
    """Grids and fineness as `Scales.healed` takes them."""
    tensor, made = entry.tensor, factors[0].adapter
    assert isinstance(tensor, Lattice | LowRank)
    outputs = torch.cat([f.outputs for f in factors]).detach().cpu().double().exp().numpy()
    inputs = factors[0].inputs.detach().cpu().double().exp().numpy()
    lattice = tensor.rest if isinstance(tensor, LowRank) else tensor
    healed = lattice and replace(
        lattice,
        row=LogScale.nearest(outputs * lattice.row.values(), resolution or lattice.row.resolution),
        col=LogScale.nearest(inputs * lattice.col.values(), resolution or lattice.col.resolution),
    )
    if made is not None:
        return replace(entry, tensor=made.stored(healed, outputs, inputs, fineness, resolution))
    assert healed is not None
    return replace(entry, tensor=healed)
