"""What maps share that a lattice does not use: the bits that low rank, tying and a common basis would save.

At one level, for each kind of map, from the model's statistics: coded bits a weight of the lattice alone, and of a
product of rank r with a lattice of what it leaves (the distortion is the level's, so bits compare directly); the
largest squared correlation of its weights with those of any other layer's map of that kind, which is the share of
variance that a tied map with a scale of its own would explain; and the bits that a basis common to all layers saves.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.record import save_json
from sprat import job as jobs
from sprat.cli.terminal import bars
from sprat.coding import entropy
from sprat.coding.tensors import Stored, lattices
from sprat.level.targets import Target, Targets
from sprat.methods import METHODS
from sprat.methods.metric import Metric
from sprat.methods.waterlevel import step_sizes
from sprat.recipe import Recipe

RANKS = (1, 4, 16, 64)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.redundancy", description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--level", type=float, default=2e-4, help="default %(default)g")
    parser.add_argument("--every", type=int, default=5, help="layers apart for the coded bits (default 5)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    recipe = Recipe()
    with bars() as progress:
        job = jobs.start(options.model, "self", 0, recipe, progress)
        jobs.sense(job, 0)
    figures = {
        "model": job.source.name,
        "level": options.level,
        "bits": _bits(job.targets, options.level, options.every, recipe),
        "between_layers": _between(job.targets, recipe),
    }
    if options.json:
        save_json(options.json, figures)
    for kind, row in figures["bits"].items():
        beside = ", ".join(f"rank {r} {row[f'rank {r}']:+.3f}" for r in RANKS)
        tied = figures["between_layers"][kind]
        print(
            f"{kind:<20} {row['lattice']:.3f} bits; beside a product: {beside}; tied to another layer: "
            f"{tied['tied']:.4f} of the variance; common basis saves {tied['basis']:+.3f} bits"
        )
    return 0


def _bits(targets: Targets, level: float, every: int, recipe: Recipe) -> dict[str, dict[str, float]]:
    """By kind: bits a weight of the lattice, and what a product beside it adds (negative where it saves)."""
    tables, threads = entropy.prior_tables(), torch.get_num_threads()
    sums: dict[str, dict[str, float]] = {}
    for index in list(targets.layers())[::every]:
        for target in targets.layer(index):
            metric = targets.metric(target)

            def coded(rank: int, t: Target = target, metric: Metric = metric) -> float:
                way = replace(recipe, method="waterlevel+lowrank", rank=rank) if rank else recipe
                stored: Stored = METHODS[way.method](t.w, metric, level, way, tables, threads)
                return 8 * sum(x.nbytes for x in lattices(stored))

            row = sums.setdefault(_kind(target), {})
            alone = coded(0)
            for name, bits in {"weights": float(target.w.numel()), "lattice": alone}.items():
                row[name] = row.get(name, 0.0) + bits
            for rank in RANKS:
                row[f"rank {rank}"] = row.get(f"rank {rank}", 0.0) + coded(rank) - alone
        print(f"layer {index}", file=sys.stderr, flush=True)
    return {
        kind: {name: round(v / row["weights"], 4) for name, v in row.items() if name != "weights"}
        for kind, row in sums.items()
    }


def _between(targets: Targets, recipe: Recipe) -> dict[str, dict[str, float]]:
    """By kind: the share of a map's variance that another layer's holds, and the bits that a common basis would save.

    In a basis R common to all layers, W R has columns of other variances, and half their mean logarithm is what a
    weight pays; the basis itself, 8 bits a number, is taken off.
    """
    maps: dict[str, list[Tensor]] = {}
    for index in targets.layers():
        for target in targets.layer(index):
            row, _ = step_sizes(targets.metric(target).inputs.diagonal(), target.g, recipe)
            w = target.w / row.float()[:, None]
            maps.setdefault(_kind(target), []).append((w / w.norm()).bfloat16())
    return {kind: {"tied": _tied(found), "basis": _basis(found)} for kind, found in maps.items()}


def _tied(maps: list[Tensor]) -> float:
    stack = torch.stack([w.flatten() for w in maps]).float()
    squared = (stack @ stack.T).square()
    squared.fill_diagonal_(0)
    return round(float(squared.max(1).values.mean()), 5)


def _basis(maps: list[Tensor]) -> float:
    moments = torch.stack([w.float().T @ w.float() for w in maps])
    _, basis = torch.linalg.eigh(moments.sum(0))
    turned = basis.T @ moments @ basis
    saved = (moments.diagonal(dim1=1, dim2=2).log2() - turned.diagonal(dim1=1, dim2=2).log2()).mean() / 2
    return round(float(saved) - 8 * basis.numel() / sum(w.numel() for w in maps), 4)


def _kind(target: Target) -> str:
    return re.sub(r".*layers\.\d+\.", "", target.name)


if __name__ == "__main__":
    raise SystemExit(main())
