"""Equations inside a torch model: the factors of all maps of one kind, and the modules that stand for its layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprat.equations.network import Equation, looked_up, parse, seed_of
from sprat.equations.term import Factor, Space, Term, Values

#: A product of fewer inputs than this never makes W.
FEW = 16
#: Maps that end a branch beside the residual stream: every layer begins near the identity.
ENDS = {"o_proj": 0.02, "down_proj": 0.02}
EMBEDDING_DEVIATION = 0.02


class Maps(nn.Module):
    """The maps of one kind in all layers: the factors of `term`, each a parameter.

    A factor of two axes is a parameter a copy; one of one axis is one parameter, its copies behind each other.
    """

    def __init__(self, term: Term, space: Space, gain: float = 1.0):
        super().__init__()
        term.check(space)
        self.term, self.space = term, space
        self.factors = term.factors(space, gain)
        self.stored = nn.ParameterDict()
        for name, factor in self.factors.items():
            if len(factor.shape) == 1:
                self.stored[name] = nn.Parameter(torch.empty(factor.size))
                continue
            for i in range(factor.copies):
                self.stored[f"{name}-{i}"] = nn.Parameter(torch.empty(factor.shape))

    @torch.no_grad()
    def begin(self, generator: torch.Generator) -> None:
        """Draw the factors that a training begins with."""
        for name, parameter in self.stored.items():
            factor = self.factors[name.partition("-")[0]]
            nn.init.normal_(parameter, factor.mean, factor.deviation, generator)

    def values(self) -> Values:
        """The factors by name and copy."""
        return Values({name: _Copies(self.stored, name, factor) for name, factor in self.factors.items()})

    def dense(self, layer: int) -> Tensor:
        """W of a layer, (rows, columns), in the factors' precision."""
        device = next(iter(self.stored.values())).device
        with torch.autocast(device.type, enabled=False):
            return self.term.dense(self.values(), self.space, layer)

    def forward(self, layer: int, x: Tensor) -> Tensor:
        """W x. x: (..., columns)."""
        tokens = x.numel() // self.space.columns
        whole = 2 * self.space.rows * self.space.columns
        if tokens < FEW or whole > self.term.slowness * self.term.flops(self.space):
            return self.term.product(self.values(), self.space, layer, x)
        return F.linear(x, self.dense(layer))


class _Copies(Sequence[Tensor]):
    """The copies of one factor, each looked up when it is asked for."""

    def __init__(self, stored: nn.ParameterDict, name: str, factor: Factor):
        self._stored, self._name, self._factor = stored, name, factor

    def __len__(self) -> int:
        return self._factor.copies

    def __getitem__(self, i):  # type: ignore[override]  # a number: slices are not asked for
        if len(self._factor.shape) == 2:
            return self._stored[f"{self._name}-{i}"]
        return self._stored[self._name].view(self._factor.copies, -1)[i]


class Map(nn.Module):
    """One layer's map. Its factors are its `Maps`', which the model holds once."""

    def __init__(self, maps: Maps, layer: int):
        super().__init__()
        self._maps, self.layer = [maps], layer  # in a list: no part of this module

    def forward(self, x: Tensor) -> Tensor:
        return self._maps[0](self.layer, x)


class Embedding(nn.Module):
    """A low-rank embedding, the head too: `weight` is the factor with a row a token."""

    def __init__(self, term: Term, space: Space):
        super().__init__()
        term.check(space)
        self.term = term
        self.factors = list(term.factors(space, EMBEDDING_DEVIATION * space.columns**0.5).values())
        self.weight, self.right = (nn.Parameter(torch.empty(f.shape)) for f in self.factors)

    @torch.no_grad()
    def begin(self, generator: torch.Generator) -> None:
        """Draw the factors that a training begins with."""
        for parameter, factor in zip((self.weight, self.right), self.factors, strict=True):
            nn.init.normal_(parameter, factor.mean, factor.deviation, generator)

    def forward(self, ids: Tensor) -> Tensor:
        return looked_up(self.term, Values({"left": [self.weight], "right": [self.right]}), ids)


class Head(nn.Module):
    """The logits behind h (..., width), of a tied head; its numbers are its `Embedding`'s."""

    def __init__(self, embedding: Embedding):
        super().__init__()
        self._embedding = [embedding]  # in a list: no part of this module

    @property
    def weight(self) -> Tensor:
        """The factor with a row a token."""
        return self._embedding[0].weight

    def forward(self, h: Tensor) -> Tensor:
        return head(self._embedding[0], h)


def install(trunk: nn.Module, formula: str) -> None:
    """Replace the linear maps of `trunk.layers` by those of an equation, and the embedding where it has one.

    trunk: has `layers`, alike, and `embed_tokens`; the factors become its `maps`, by the maps' names in
    a layer. Nothing is drawn:
    see `begin`.
    """
    equation: Equation = parse(formula)
    layers: list[nn.Module] = list(trunk.layers)  # type: ignore[arg-type]
    trunk.maps = nn.ModuleDict()
    for path, module in list(layers[0].named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        owner, _, name = path.rpartition(".")
        space = Space(module.out_features, module.in_features, len(layers), seed_of(name))
        maps = trunk.maps[path.replace(".", "-")] = Maps(equation.term(name), space, ENDS.get(name, 1.0))
        for i, layer in enumerate(layers):
            setattr(layer.get_submodule(owner), name, Map(maps, i))
    if str(equation.embedding) != "dense":
        table: nn.Embedding = trunk.embed_tokens  # type: ignore[assignment]
        trunk.embed_tokens = Embedding(equation.embedding, Space(table.num_embeddings, table.embedding_dim))


def begin(model: nn.Module, generator: torch.Generator) -> None:
    """Draw the factors of all equations in `model`."""
    for module in model.modules():
        if isinstance(module, Maps | Embedding):
            module.begin(generator)


def head(embedding: nn.Module, h: Tensor) -> Tensor:
    """The logits behind h (..., width), of a tied head."""
    if isinstance(embedding, Embedding):
        return F.linear(F.linear(h, embedding.right), embedding.weight)
    return F.linear(h, embedding.weight)  # type: ignore[arg-type]
