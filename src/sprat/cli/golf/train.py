"""`sprat golf train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.cli import terminal
from sprat.cli.arguments import add_corpus, add_device, add_settings, budget, seed, settings, whole
from sprat.errors import RecipeError
from sprat.folders import refuse_target
from sprat.sizes import format_bytes

if TYPE_CHECKING:
    from sprat.golf.loop import Point
    from sprat.golf.schedule import Length

SUMMARY = "Train a recipe on text, and write the file."


def configure(parser: argparse.ArgumentParser) -> None:
    """What to train, on what, for how long, and what it may weigh."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a recipe file (recipes/golf-*.toml)")
    parser.add_argument(
        "--cap", type=budget, required=True, metavar="B", help="the most the whole file may weigh"
    )
    add_corpus(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the file to write")
    add_length(parser)
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of everything random (default 0)"
    )
    parser.add_argument("--seeds", type=whole, default=1, metavar="N", help="train so many times (default 1)")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint beside FILE, if there is one"
    )
    parser.add_argument("--threads", type=whole, metavar="N", help="threads to compute with")
    add_device(parser, "where it is trained (with torchrun cuda is each process's own)")
    add_settings(parser)
    parser.add_argument(
        "--teacher",
        metavar="MODEL",
        help="a model with the same tokenizer to learn from as well: a .sprat, a Hugging Face folder or a .gguf",
    )


def add_length(parser: argparse.ArgumentParser) -> None:
    """How long a training is; `length_of` reads it."""
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, metavar="M", help="train for so long, by the clock")
    length.add_argument(
        "--processor-minutes",
        type=float,
        metavar="M",
        help="or by the processor's time, of all threads together",
    )
    length.add_argument("--tokens", type=whole, metavar="N", help="or for so many tokens")


def length_of(arguments: argparse.Namespace) -> Length:
    """What `add_length` asked for; RecipeError where nothing was said."""
    from sprat.golf.schedule import Length

    if arguments.tokens is not None:
        return Length("tokens", arguments.tokens)
    if arguments.minutes is not None:
        return Length("seconds", 60 * arguments.minutes)
    if arguments.processor_minutes is not None:
        return Length("processor seconds", 60 * arguments.processor_minutes)
    raise RecipeError("say how long to train: --minutes 5, --processor-minutes 5 or --tokens 2000000")


def execute(arguments: argparse.Namespace) -> None:
    """Train, and print a row a seed."""
    refuse_target(arguments.out, arguments.recipe)
    given = settings(arguments.settings)  # before the imports: a wrong setting is refused at once
    import torch

    from sprat.golf.golf import golf
    from sprat.golf.recipe import Recipe
    from sprat.training import processes

    if arguments.teacher:
        given["teacher"] = arguments.teacher
    recipe, length = Recipe.read(arguments.recipe, given), length_of(arguments)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    def watch(point: Point, bits: float) -> None:
        terminal.err().print(
            f"sprat: {point.share:4.0%}  step {point.step:,}  {point.tokens:,} tokens  {point.seconds:,.0f} s  "
            f"{point.loss:.3f} nats a token  {bits:.3f} bits a byte of training text",
            markup=False,
            soft_wrap=True,
        )

    with processes.joined() as first, terminal.bars(first) as progress:
        result = golf(
            recipe,
            arguments.text,
            arguments.cap,
            length,
            arguments.out,
            seed=arguments.seed,
            seeds=arguments.seeds,
            validation=arguments.validation,
            resume=arguments.resume,
            device=arguments.device,
            progress=progress,
            watch=watch if first else lambda point, bits: None,
        )
    if first:
        _show(arguments.out, result)


def _show(out: Path, result: dict[str, Any]) -> None:
    from sprat.golf.result import figures

    console, cap, text = terminal.out(), result["cap"], result["validation"]
    rows = []
    for row in result["runs"]:
        rows.append(
            (
                row["file"],
                str(row["seed"]),
                f"{row['bytes']:,}",
                f"{row['bytes'] / cap:.1%}",
                f"{row['parameters']:,}",
                f"{row['bits_per_weight']:.2f}" if row["bits_per_weight"] else "",
                f"{row['tokens']:,}",
                f"{row['seconds']:.0f} s",
                f"{row['bits_per_byte_before']:.4f}",
                f"{row['bits_per_byte_rounded']:.4f}",
                f"{row['bits_per_byte']:.4f}",
            )
        )
    columns = (
        "file",
        "seed",
        "bytes",
        "of the cap",
        "weights",
        "bits each",
        "tokens",
        "trained",
        "unrounded",
        "rounded",
        "bits a byte",
    )
    console.print(terminal.table(columns, rows))
    console.print(
        f"scored on {text['documents']} documents ({format_bytes(text['bytes'])}) that were not learnt from, in bits "
        "a byte: of the weights before rounding (through torch), rounded, and rounded and healed, which is the file; "
        f"every figure is in {figures(out)}",
        markup=False,
        soft_wrap=True,
    )
    for row in result["runs"]:
        for warning in row["warnings"]:
            terminal.note(f"{row['file']}: {warning}")
