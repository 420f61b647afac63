"""Equations measured: 42 times fewer numbers, hand-written equations at one cap, and the search beside them.

    verdict   networks of 42 times fewer numbers by equations, beside (a) the dense network of their shape, (b) a dense
              network of their bytes, (c) the dense network of their shape rounded to those bytes; equal processor time,
              paced (bench/pace.py), and (a) and (b) once more on as many tokens as an equation reads in it
    claim     the shape of the claim, written with random numbers, opened and run: what it takes, not what it knows
    hand      hand-written equations at the widest network that the cap holds, scored as the search scores
    depth     structured equations in the two layers that searches chose, and what those found; equal processor time,
              paced
    search    searches from random starts, a seed each, and their best candidate trained again with other seeds

Every training is written down as soon as it is over, and the same command goes on where it was cut off. The parts have
a file each and may run beside each other. All of it takes about 90 minutes of processor time.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.equation_tables import page
from bench.pace import paces, timed
from bench.record import Record
from bench.texts import text_name
from sprat.anatomy.shape import from_numbers
from sprat.cli.arguments import budget, whole
from sprat.cli.terminal import bars
from sprat.equations.network import parse
from sprat.errors import BudgetError, SpratError, StatisticsError
from sprat.folders import write_whole
from sprat.golf import corpus, finish, score
from sprat.golf.batches import Batches
from sprat.golf.loop import run
from sprat.golf.recipe import Recipe
from sprat.golf.schedule import Length
from sprat.golf.training import Training
from sprat.prove.environment import machine, versions
from sprat.search.candidate import Candidate, Network, network, shape_of
from sprat.search.instantiate import instantiate
from sprat.search.search import search
from sprat.search.trial import Text, loss, room, trial

#: The shape of the verdict, and equations that give it RATIO times fewer numbers, embedding included, or more.
WIDE = {"layers": 6, "width": 128, "heads": 4, "kv_heads": 4, "inner": 512}
RATIO = 42
EQUATIONS = (
    "shared(monarch(8)); embedding: lowrank(16)",
    "kron(1, 16); embedding: lowrank(24)",
    "monarch(1); embedding: lowrank(16)",
)
BASE = {"vocabulary": 512, "context": 128, "batch": 8, "matrix_rate": 0.02, "embedding_rate": 0.01}
#: (formula, layers): at least one of each kind; the first is what they are compared with.
HAND = (
    ("dense", 3),
    ("dense", 2),
    ("dense; embedding: lowrank(32)", 3),
    ("lowrank(16)", 3),
    ("kron(4, 8)", 3),
    ("monarch(4, 2)", 3),
    ("circulant(4)", 3),
    ("toeplitz(4)", 3),
    ("shared(dense)", 3),
    ("shared(dense) + lowrank(4)", 4),
    ("scaled(shared(dense))", 4),
    ("polynomial(1, dense)", 4),
    ("mixture(2, dense)", 4),
    ("scaled(seeded) + lowrank(8)", 3),
    ("hypernetwork(4)", 3),
    ("coordinates(8)", 3),
)
#: The best of them in two layers, and what three searches found (records/2026-11-22-equations).
DEPTH = (
    ("dense", 2),
    ("dense", 3),
    ("lowrank(16)", 2),
    ("lowrank(16)", 3),
    ("shared(dense)", 2),
    ("mixture(2, dense)", 2),
    ("polynomial(1, dense)", 2),
    ("toeplitz(4)", 2),
    ("scaled(seeded) + lowrank(8)", 2),
    ("kron(4, 8)", 2),
    ("attention: seeded + lowrank(12); ffn: toeplitz(4); embedding: lowrank(64)", 2),
    ("attention: shared(scaled(dense), 2); ffn: dense", 2),
    ("shared(dense, 3); embedding: lowrank(48)", 3),
)
BITS = 4
#: The shape of the claim, and its numbers.
CLAIM = from_numbers(width=4096, layers=64, ffn=16384, vocabulary=50257, tied=True)
CLAIMED = 417_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    torch.set_num_threads(1)
    settings = {"cap": str(options.cap), "seconds": options.seconds, "share": options.share, "base": BASE}
    try:
        records = {
            part: Record(options.record / part, settings, "sprat.equations/1") for part in options.parts
        }
        for record in records.values():
            record.begin(_command(options), versions(), machine())
        base = Recipe.from_dict({**BASE, "validation": options.share})
        given = corpus.of(base, options.text)
        text = Text.of(given, base.vocabulary)
        with bars() as progress:
            for seed in range(options.seeds):
                for part in options.parts:
                    PARTS[part](records[part], options, base, given, text, seed, progress)
    except SpratError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    write_whole(options.record / "table.md", page(options.record))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.search", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--record", type=Path, default=Path("records/2026-11-22-equations"), help="default %(default)s")
    add("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="default: all")
    add("--text", nargs="+", default=[], metavar="FILE")
    add("--share", type=float, default=0.01, help="of the documents that is scored (default %(default)s)")
    add("--cap", type=budget, default="60kB", metavar="B", help="of hand and search (default %(default)s)")
    add("--seconds", type=float, default=30.0, help="processor time of a training (default %(default)s)")
    add("--search-minutes", type=float, default=6.0, help="processor time of a search (default %(default)s)")
    add("--seeds", type=whole, default=3, metavar="N", help="default %(default)s")
    return parser.parse_args(arguments)


def _command(options: argparse.Namespace) -> str:
    """The call, with no more of the texts' paths than their folder."""
    words = ["python", "-m", "bench.search", "--parts", *options.parts, "--cap", f"{options.cap.value:.0f}"]
    for flag in ("seconds", "search_minutes", "seeds"):
        words += [f"--{flag.replace('_', '-')}", f"{getattr(options, flag):g}"]
    return shlex.join([*words, "--text", *dict.fromkeys(text_name(text) for text in options.text)])


def once(record: Record, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row `name`, measured where it is not there yet."""
    if name not in record.rows:
        started = time.process_time()
        row = measure()
        record.add(name, row | {"processor": round(time.process_time() - started, 1)})
        print(name, {k: v for k, v in row.items() if not isinstance(v, list | dict)}, flush=True)
    return record.rows[name]


def verdict(record, options, base, given, text, seed, progress) -> None:
    """The four networks of one seed."""
    wide, seconds = replace(base, **WIDE), 2 * options.seconds  # wide shapes are slow
    shape = shape_of(wide, text.vocabulary)
    for formula in EQUATIONS:
        numbers = sum(parse(formula).parameters(shape).values())
        if numbers * RATIO > shape.parameters:
            raise SpratError(f"{formula} has {numbers:,} numbers, more than {shape.parameters // RATIO:,}")

    def trained(name: str, recipe: Recipe, length: Length, caps: list[int | None]) -> dict[str, Any]:
        return once(
            record, f"verdict/{name}/{seed}", lambda: _trained(recipe, given, text, length, seed, caps)
        )

    chosen = {formula: replace(wide, equation=formula) for formula in EQUATIONS} | {"dense": wide}
    read = timed(given.train)
    pace = once(record, "pace/wide/0", lambda: paces(chosen, read, progress=progress))
    lengths = {name: Length("processor seconds", seconds, pace[name]) for name in chosen}
    rows = [trained(formula, chosen[formula], lengths[formula], [None]) for formula in EQUATIONS]
    # The bytes that all are given, those of the largest of the equations' files, and the most tokens that one reads.
    nbytes = max(record.rows[f"verdict/{formula}/0"]["files"][0]["bytes"] for formula in EQUATIONS)
    tokens = Length("tokens", max(row["tokens"] for row in rows))
    narrow = _dense_of(nbytes, base, text)
    both = {"dense": wide, "narrow": narrow}
    beside = once(record, "pace/narrow/0", lambda: paces(both, read, progress=progress))
    length = replace(lengths["dense"], pace=pace["dense"] * beside["narrow"] / beside["dense"])
    trained("dense, same shape", wide, lengths["dense"], [None, nbytes])
    trained("dense, same bytes", narrow, length, [nbytes])
    trained("dense, same shape, same tokens", wide, tokens, [None])
    trained("dense, same bytes, same tokens", narrow, tokens, [nbytes])


def claim(record, options, base, given, text, seed, progress) -> None:
    """The shape of "17.6 B parameters in 417 M numbers", once."""

    def measure() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as root:
            return instantiate(CLAIM, CLAIMED, Path(root) / "wide.sprat", threads=2, progress=progress)

    once(record, "claim/0", measure)


def hand(record, options, base, given, text, seed, progress) -> None:
    """Every hand-written equation."""
    for name, candidate in _candidates(HAND).items():
        once(record, f"hand/{name}/{seed}", lambda c=candidate: _tried(c, options, base, text, seed))


def depth(record, options, base, given, text, seed, progress) -> None:
    """The same in as many layers as searches chose, and what those found."""
    found, space = _candidates(DEPTH), room(int(options.cap.value), text.tokenizer)
    recipes = {name: _network(candidate, base, text, space).recipe for name, candidate in found.items()}
    pace = once(record, "pace/depth/0", lambda: paces(recipes, timed(given.train), progress=progress))
    for name, candidate in found.items():
        once(record, f"depth/{name}/{seed}",
             lambda c=candidate, p=pace[name]: _tried(c, options, base, text, seed, p))  # fmt: skip


def searched(record, options, base, given, text, seed, progress) -> None:
    """One search from a random start; its best candidate three times more, with seeds that it has not seen."""

    def measure() -> dict[str, Any]:
        found = search(options.text, options.cap, options.search_minutes, options.record / "search" / f"seed-{seed}",
                       recipe=base, seconds=options.seconds, seed=seed, progress=progress)  # fmt: skip
        return {name: found[name] for name in ("trials", "candidates", "rank_correlation_of_guess", "best")}

    best = Candidate.from_dict(once(record, f"search/{seed}", measure)["best"][0]["candidate"])
    for again in range(options.seeds):
        once(record, f"found/{seed}/{again}", lambda a=again: _tried(best, options, base, text, 100 + a))


PARTS = {"verdict": verdict, "claim": claim, "hand": hand, "depth": depth, "search": searched}


def _dense_of(nbytes: int, base: Recipe, text: Text) -> Recipe:
    """The widest dense network of three layers that BITS a weight bring to so many bytes."""
    net = network(Candidate(parse("dense"), 3, BITS), base, text.vocabulary, room(nbytes, text.tokenizer))
    if net is None:
        raise SpratError(f"no dense network fits {nbytes:,} bytes")
    return replace(net.recipe, equation="")


def _candidates(rows: Sequence[tuple[str, int]]) -> dict[str, Candidate]:
    """Of (formula, layers), by the name of their rows."""
    return {
        f"{formula}, {layers} layers": Candidate(parse(formula), layers, BITS) for formula, layers in rows
    }


def _network(candidate: Candidate, base: Recipe, text: Text, space: int) -> Network:
    net = network(candidate, base, text.vocabulary, space)
    if net is None:
        raise SpratError(f"{candidate.equation} does not fit the cap")
    return net


def _tried(
    candidate: Candidate,
    options: argparse.Namespace,
    base: Recipe,
    text: Text,
    seed: int,
    pace: float = 0.0,
) -> dict[str, Any]:
    space = room(int(options.cap.value), text.tokenizer)
    net = _network(candidate, base, text, space)
    found = trial(net, text, space, options.seconds, seed, pace)
    return {
        **candidate.to_dict(),
        "width": net.recipe.width,
        "numbers": net.numbers,
        "flops": net.flops,
        **vars(found),
    }


def _trained(
    recipe: Recipe, given: corpus.Corpus, text: Text, length: Length, seed: int, caps: Sequence[int | None]
) -> dict[str, Any]:
    """One training, ended in a file for each cap (None: all that its weights can use)."""
    torch.manual_seed(seed)
    batches = Batches(text.train, recipe.context, recipe.batch, seed)
    training = Training(recipe, text.vocabulary, batches, length, seed)
    run(training)
    model = training.result()
    files = []
    with tempfile.TemporaryDirectory() as root:
        for cap in caps:
            out = Path(root) / f"{cap}.sprat"
            most = 2 * sum(p.numel() for p in model.parameters()) + 10**6
            try:
                finish.into_cap(model, recipe, text.tokenizer, cap or most, out, given.train, seed)
            except (
                BudgetError,
                StatisticsError,
            ) as error:  # so few bits a weight that the rounding is not believed
                files.append({"bytes": cap, "bits_per_byte": None, "refused": str(error)})
                continue
            scored = score.score_file(out, given.validation, threads=1)
            files.append(
                {"bytes": out.stat().st_size, "bits_per_byte": scored.bits_per_byte, "engine": scored.engine}
            )
    exact = loss(model, recipe, text.held, None, seed) / math.log(2) / text.held_bytes
    return {
        "recipe": {name: getattr(recipe, name) for name in ("layers", "width", "inner", "heads", "equation")},
        "numbers": sum(p.numel() for p in model.parameters()),
        "tokens": training.tokens,
        "seconds": training.seconds,
        "bits_per_byte_unrounded": exact,
        "files": files,
    }


if __name__ == "__main__":
    sys.exit(main())
