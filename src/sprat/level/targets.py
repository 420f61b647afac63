"""Targets: what is rounded together, its weights and its metric, layer by layer from the cached statistics."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from sprat.coding.tensors import Dense, Entry, Stored
from sprat.errors import RecipeError
from sprat.methods.metric import Metric, Rows, floored
from sprat.recipe import Recipe
from sprat.sense.cache import Cache
from sprat.sense.embedding import embedding_metric
from sprat.sense.shrink import shrink
from sprat.sense.statistics import GroupStatistics, HeadStatistics, TableStatistics
from sprat.source.load import Source
from sprat.source.maps import Group, Head, Map, groups, head, layer_groups, tables

#: Share of the machine's memory that factors may take between the files that a search builds.
FACTOR_SHARE = 0.1
#: G is shrunk by so many times the strength of H: it is of a model whose other maps are whole, and the directions that
#: hardly mattered there matter more once all are rounded. (On speeches it won as much with H's own strength; on four
#: held-out contexts of the model's own text, nothing with that and nothing lost with this.)
CAUTION = 4


@dataclass(frozen=True)
class Target:
    """Maps stacked by rows that share their input: w (m, n), h (n, n), g (m,) and fisher (m, m) as measured."""

    name: str
    parameters: tuple[str, ...]
    rows: tuple[int, ...]
    transposed: bool
    w: Tensor
    h: Tensor
    g: Tensor
    fisher: Tensor | None
    probes: Tensor
    tokens: int
    layer: int | None
    maps: tuple[Map, ...] = field(default=())

    def metric(self, recipe: Recipe, strength: float | None = None) -> Metric:
        """Its moments shrunk, by the recipe or with another strength; an embedding's are built from shrunk parts."""
        strength = recipe.shrinkage if strength is None else strength
        h = self.h if self.layer is None else shrink(self.h, self.tokens, strength)
        fisher = self.fisher
        if fisher is not None:
            fisher = shrink(fisher, self.tokens, CAUTION * strength)
            fisher.diagonal().copy_(floored(fisher.diagonal(), recipe.row_floor))
        return Metric(h, self.g, fisher, name=self.name)

    def own(self, recipe: Recipe) -> Recipe:
        """The recipe for this target: constraints are the layers'."""
        return recipe.unconstrained() if self.layer is None else recipe

    def entry(self, stored: Stored) -> Entry:
        return Entry(self.parameters, self.rows, stored, self.transposed)


class Targets:
    """The targets of a model, read from the cache when asked for, one layer in memory at a time."""

    def __init__(self, source: Source, cache: Cache, recipe: Recipe):
        self.source, self.cache, self.recipe = source, cache, recipe
        self.by_layer = layer_groups(groups(source.model))
        self.head = head(source.model)
        self.tables = tables(source.model)
        self._factors: dict[str, tuple[Tensor, Rows]] = {}
        self._room = int(FACTOR_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))

    def metric(self, target: Target) -> Metric:
        """Target's metric as the recipe shrinks it; its factors are kept, while there is room, for all levels.

        Their Cholesky decompositions are most of a wide map's rounding.
        """
        metric = target.metric(self.recipe)
        if target.name not in self._factors:
            factors = metric.inputs, metric.outputs
            room = sum(f.nbytes for f in (metric.inputs, metric.outputs.v) if f is not None)
            if room > self._room:
                return metric
            self._room -= room
            self._factors[target.name] = factors
        u, rows = self._factors[target.name]
        return replace(metric, u=u, known=rows)

    def layer(self, index: int) -> list[Target]:
        found = self.cache.get(f"layer/{index}", GroupStatistics)
        out = []
        for group in self.by_layer[index]:
            s: GroupStatistics = found[group.name]
            # Stacked maps keep their weights the same way round; Conv1D and Linear never share a block in practice.
            kinds = {m.transposed for m in group.maps}
            assert len(kinds) == 1, group.name
            out.append(
                Target(
                    group.name.removesuffix(".weight"),
                    tuple(m.name for m in group.maps),
                    tuple(m.shape[0] for m in group.maps),
                    kinds.pop(),
                    torch.cat([m.weight() for m in group.maps]).float(),
                    s.h,
                    s.g,
                    s.fisher if len(s.fisher) else None,
                    s.probes,
                    s.tokens,
                    index,
                    group.maps,
                )
            )
        return out

    def embeddings(self) -> list[Target]:
        """The embedding (tied), or the input and the output one; then tables that are read beside it."""
        found: HeadStatistics = self.cache.get("head", HeadStatistics)["head"]
        beside = [self._table(found, name) for name in self.tables]
        if self.head.tied:
            return [self._embedding(found, "tied", self.head.input_name, self.head.input), *beside]
        return [
            self._embedding(found, "input", self.head.input_name, self.head.input),
            self._embedding(found, "output", self.head.output_name, self.head.output),
            *beside,
        ]

    def _table(self, found: HeadStatistics, name: str) -> Target:
        """A table whose rows are added to the first columns of the token's: its role is the input embedding's."""
        frequency = self.cache.get("tables", TableStatistics)[name].frequency
        floor, w = self.recipe.vocabulary_floor, self.tables[name].weight.detach().float()
        g = (1 - floor) * frequency + floor * frequency.mean()
        h = shrink(found.f[: w.shape[1], : w.shape[1]], found.tokens, self.recipe.shrinkage)
        none = torch.zeros(0, w.shape[1])
        return Target(
            name.removesuffix(".weight"), (name,), (len(w),), False, w, h, g, None, none, found.tokens, None
        )

    def _embedding(self, found: HeadStatistics, role: str, name: str, module: torch.nn.Module) -> Target:
        h, g = embedding_metric(found, role, self.recipe.vocabulary_floor, self.recipe.shrinkage)
        weight = module.weight
        assert isinstance(weight, Tensor)
        w = weight.detach().float()
        if w.shape[1] != len(h):  # a factored embedding: no metric of that width was measured
            h = torch.eye(w.shape[1])
        none = torch.zeros(0, w.shape[1])
        short = name.removesuffix(".weight")
        return Target(short, (name,), (len(w),), False, w, h, g, None, none, found.tokens, None)

    def embedding_names(self) -> frozenset[str]:
        """Names of what `embeddings` gives."""
        ends = (self.head.input_name, self.head.output_name, *self.tables)
        return frozenset(name.removesuffix(".weight") for name in ends)

    def shapes(self, embeddings: bool = True) -> list[tuple[int, int]]:
        """(rows, columns) of every target, or of the layers'."""
        beside = [(table.num_embeddings, table.embedding_dim) for table in self.tables.values()]
        found = [*shapes(self.by_layer, self.head), *beside]
        return found if embeddings else found[: sum(len(gs) for gs in self.by_layer.values())]

    def vectors(self, embeddings: bool = True) -> int:
        """Rows and columns of all targets, or of the layers': the scales and classes that a file keeps."""
        return sum(map(sum, self.shapes(embeddings)))

    def layers(self) -> list[int]:
        """The decoder layers that have maps of their own."""
        return sorted(self.by_layer)

    def all(self) -> Iterator[Target]:
        for index in self.layers():
            yield from self.layer(index)
        yield from self.embeddings()

    def dense(self) -> dict[str, Entry]:
        """Everything that is not rounded: norms, biases, routers, position embeddings, a checkpoint's small buffers."""
        model = self.source.model
        rounded = {m.name for g in self.by_layer.values() for group in g for m in group.maps}
        rounded |= {self.head.input_name, self.head.output_name, *self.tables}
        out, saved = {}, model.state_dict().keys()
        for name, parameter in model.named_parameters():
            if name not in rounded:
                array = parameter.detach().float().numpy().copy()
                rows = array.shape[0] if array.ndim else 1
                stored = Dense(array, self.recipe.dense_type)
                if not np.isfinite(stored.dense()).all():
                    raise RecipeError(
                        f"{name} has values up to {np.abs(array).max():.6g}, which {stored.dtype} cannot hold: f32 can "
                        "(the recipe's `dense_type`: --set dense_type=f32)"
                    )
                out[name] = Entry((name,), (rows,), stored)
        for name, buffer in model.named_buffers():
            if name in saved:  # in full precision, as a router's bias is, whose differences decide
                out[name] = Entry((name,), (len(buffer),), Dense(buffer.float().numpy().copy(), "f32"))
        return out


def shapes(by_layer: Mapping[int, Sequence[Group]], ends: Head) -> list[tuple[int, int]]:
    """(rows, columns) of what a model's targets will be: stacked maps, then the embeddings."""
    stacked = [(sum(m.shape[0] for m in g.maps), g.width) for gs in by_layer.values() for g in gs]
    modules = {ends.input_name: ends.input, ends.output_name: ends.output}
    return stacked + [tuple(module.weight.shape) for module in modules.values()]  # type: ignore[misc]
