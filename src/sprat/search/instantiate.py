"""A network of any shape from an equation with random numbers: written, opened, run, and its dense twin computed.

It shows what such a network takes: bytes, memory, operations, time. It says nothing of what one could learn.
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sprat import __version__
from sprat.anatomy.shape import Shape
from sprat.coding import container, entropy
from sprat.coding.tensors import Dense, Entry, Lattice, LogScale
from sprat.equations.maps import Embedding, Maps
from sprat.equations.network import Equation, parse
from sprat.equations.term import Factor
from sprat.equations.terms.lowrank import LowRank
from sprat.equations.terms.monarch import Monarch
from sprat.errors import RecipeError, SpratError
from sprat.folders import refuse_target
from sprat.golf.model import Decoder
from sprat.golf.pretrained import GolfConfig, config
from sprat.golf.recipe import Recipe
from sprat.progress import Progress, silent
from sprat.search import decode

#: Steps of the lattice in one deviation of a factor, as a power of two: about 6.05 bits a number.
FINE = 4
#: Rank of a default equation's embedding, as a share of the width.
SHARE = 1 / 8
#: Tokens that its config allows.
CONTEXT = 2048
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def count_of(text: str) -> int:
    """417M -> 417,000,000. RecipeError."""
    match = re.fullmatch(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([kKmMbB]?)\s*", text)
    value = float(re.sub("[,_]", "", match[1])) * _UNITS[match[2].lower()] if match else 0.0
    if not 1 <= value < 1e12:
        raise RecipeError(f"{text!r} is no count of numbers: write 417M, 1.5B or 500000")
    return int(value)


def network_of(shape: Shape) -> Shape:
    """`shape` with the norms of queries and keys that every network made of equations has."""
    return replace(shape, head_norms=2 * shape.head_dim)


def numbers_of(equation: Equation, shape: Shape) -> int:
    """All that is stored, the norms of queries and keys among them."""
    return sum(equation.parameters(network_of(shape)).values())


def default(shape: Shape, most: int) -> Equation:
    """Monarch maps of the largest grid that stays within `most` numbers, and a low-rank embedding. RecipeError."""
    rank = max(1, round(shape.width * SHARE))
    embedding = LowRank(min(rank, shape.vocabulary))
    found: Equation | None = None
    for blocks in range(1, min(shape.width, shape.kv_heads * shape.head_dim, shape.maps[-1].columns) + 1):
        equation = Equation(Monarch(blocks), Monarch(blocks), embedding)
        if numbers_of(equation, shape) > most:
            break
        found = equation
    if found is None:
        least = numbers_of(Equation(Monarch(1), Monarch(1), embedding), shape)
        raise RecipeError(
            f"no default equation has at most {most:,} numbers at this shape; the least has {least:,}"
        )
    return found


def instantiate(
    shape: Shape,
    most: int,
    out: str | Path,
    *,
    equation: str | None = None,
    threads: int = 2,
    tokens: int = 32,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write `out` with at most `most` random numbers, run it in a process of its own, and return all figures.

    RecipeError where the equation has more numbers, or does not fit the shape.
    """
    out = Path(out)
    refuse_target(out)
    chosen = parse(equation) if equation else default(shape, most)
    chosen.check(shape)
    numbers = numbers_of(chosen, shape)
    if numbers > most:
        raise RecipeError(f"{chosen} has {numbers:,} numbers at this shape, more than the {most:,} allowed")
    nbytes = write(chosen, shape, out, seed, progress)
    progress("running", 0, 1)
    speed = _measured(out, threads, tokens)
    progress("running", 1, 1)
    dense = network_of(shape).parameters
    return {
        "equation": str(chosen),
        "numbers": numbers,
        "bytes": nbytes,
        "flops": chosen.flops(shape),
        **speed,
        "dense": {
            "numbers": dense,
            "bytes": 2 * dense,
            "flops": shape.flops(0),
            "tokens_per_second": speed["bandwidth"] / (2 * dense),
        },
    }


def write(equation: Equation, shape: Shape, out: Path, seed: int = 0, progress: Progress = silent) -> int:
    """The file, random numbers as a training would begin with, each factor on a lattice; its bytes."""
    recipe = Recipe(
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        inner=shape.maps[-1].columns,
        context=CONTEXT,
        equation=str(equation),
    )
    said = config(recipe, shape.vocabulary, 0)
    with torch.device("meta"):
        model = Decoder(
            GolfConfig(**{k: v for k, v in said.items() if k != "model_type"}).recipe(), shape.vocabulary
        )
    generator, entries, counts = torch.Generator().manual_seed(seed), {}, entropy.Counts.none()
    found = list(_drawn(model))
    for done, (name, shape_of, factor) in enumerate(found, 1):
        values = torch.randn(shape_of, generator=generator)
        if len(shape_of) == 2:
            lattice = _lattice(values.numpy(), factor.deviation)
            entries[name] = Entry((name,), (shape_of[0],), lattice)
            counts = counts + entropy.count([lattice], 1)
        else:
            exact = values * factor.deviation + factor.mean
            entries[name] = Entry((name,), shape_of, Dense(exact.numpy()))
        progress("drawing numbers", done, len(found))
    ledger = container.write(
        out,
        config=said,
        entries=entries,
        recipe={"seed": seed},
        provenance={"sprat": __version__, "model": "random numbers"},
        tables=entropy.Tables.from_counts(counts),
        progress=progress,
    )
    return ledger.total


def _drawn(model: Decoder) -> Iterator[tuple[str, tuple[int, ...], Factor]]:
    """(name, shape, how it begins) of every parameter."""
    factors: dict[str, Factor] = {}
    for path, module in model.named_modules():
        if isinstance(module, Maps):
            factors |= {f"{path}.stored.{n}": module.factors[n.partition("-")[0]] for n in module.stored}
        elif isinstance(module, Embedding):
            names = ("weight", "right")
            factors |= {f"{path}.{n}": f for n, f in zip(names, module.factors, strict=True)}
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        start = Factor(shape, 1, 0.02) if len(shape) == 2 else Factor(shape, 1, 0.0, 1.0)
        yield name, shape, factors.get(name, start)


def _lattice(values: np.ndarray, deviation: float) -> Lattice:
    """values: (m, n) of deviation 1."""
    m, n = values.shape
    step = LogScale.nearest(np.full(m, deviation * 2.0**-FINE), 32)
    classes = entropy.classes(np.full(m, 2.0**FINE), np.ones(n))
    q = np.rint(values * 2**FINE).astype(np.int16)
    return Lattice(q, step, LogScale(np.zeros(n, np.int32), 32), *classes)


def _measured(path: Path, threads: int, tokens: int) -> dict[str, Any]:
    """In a process of its own, whose memory is nothing but the run's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(decode.figures, path, threads, tokens).result()
        except BrokenProcessPool:
            raise SpratError(
                f"{path} could not be run: the process ended, most likely for want of memory"
            ) from None
