"""`sprat golf train | score | compare | leaderboard`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.cli import terminal
from sprat.cli.arguments import Parser, add_corpus, add_settings, budget, seed, settings, whole
from sprat.errors import RecipeError
from sprat.sizes import format_bytes

if TYPE_CHECKING:
    from sprat.golf.schedule import Length
    from sprat.golf.training import Point

SUMMARY = "Train a language model from nothing into a cap of bytes, and score it in bits per byte."
EXAMPLES = """  sprat golf train recipes/golf-cpu-250kB.toml --cap 250kB --minutes 5 --text speeches/*.txt -o tiny.sprat
  sprat chat tiny.sprat
  sprat golf score tiny.sprat --text other.txt --stride 64
  sprat golf compare naive.json tiny.json
  sprat golf leaderboard records -o golf.html"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The verbs of a golf."""
    verbs = parser.add_subparsers(dest="golf", metavar="VERB", required=True, parser_class=Parser)
    _train_flags(
        verbs.add_parser("train", help="train a recipe on text and write the file", description=SUMMARY)
    )
    _score_flags(verbs.add_parser("score", help="bits per byte of a file on text"))
    _compare_flags(
        verbs.add_parser("compare", help="which of two trainings is better, and whether that can be told")
    )
    _leaderboard_flags(verbs.add_parser("leaderboard", help="all results under a folder, by cap and length"))


def _train_flags(train: argparse.ArgumentParser) -> None:
    train.add_argument("recipe", type=Path, metavar="RECIPE", help="a recipe file (recipes/golf-*.toml)")
    train.add_argument(
        "--cap", type=budget, required=True, metavar="B", help="the most the whole file may weigh"
    )
    add_corpus(train)
    train.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the file to write")
    add_length(train)
    train.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of everything random (default 0)"
    )
    train.add_argument("--seeds", type=whole, default=1, metavar="N", help="train so many times (default 1)")
    train.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint beside FILE, if there is one"
    )
    train.add_argument("--threads", type=whole, metavar="N", help="threads to compute with")
    add_settings(train)
    train.add_argument(
        "--teacher", type=Path, metavar="FILE", help="a .sprat with the same tokenizer to learn from as well"
    )
    train.set_defaults(golf_execute=_train, parser=train)


def _score_flags(score: argparse.ArgumentParser) -> None:
    score.add_argument("file", type=Path, metavar="FILE", help="a .sprat file, or what int8-zlib wrote")
    score.add_argument(
        "--text",
        nargs="+",
        action="extend",
        required=True,
        metavar="TEXT",
        help="files, folders, patterns or hub:NAME",
    )
    score.add_argument(
        "--held-out",
        type=float,
        metavar="SHARE",
        help="only the documents that a training with this `validation` holds out",
    )
    score.add_argument(
        "--stride", type=whole, metavar="N", help="sliding windows, N tokens apart (default: side by side)"
    )
    score.add_argument("--threads", type=whole, metavar="N", help="threads to compute with")
    score.add_argument(
        "--code", action="store_true", help="say too how many bytes of code running the file takes"
    )
    score.set_defaults(golf_execute=_score, parser=score)


def _compare_flags(compare: argparse.ArgumentParser) -> None:
    compare.add_argument("a", type=Path, metavar="A", help="the JSON beside a trained file")
    compare.add_argument("b", type=Path, metavar="B", help="the JSON beside another")
    compare.set_defaults(golf_execute=_compare, parser=compare)


def _leaderboard_flags(board: argparse.ArgumentParser) -> None:
    board.add_argument(
        "folder", type=Path, metavar="FOLDER", help="where the JSONs of trainings lie (records)"
    )
    board.add_argument(
        "-o", "--out", type=Path, metavar="PAGE", help="write a page with a picture too: .html or .md"
    )
    board.set_defaults(golf_execute=_leaderboard, parser=board)


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
    """Run the verb that was asked for."""
    arguments.golf_execute(arguments)


def _train(arguments: argparse.Namespace) -> None:
    given = settings(arguments.settings)
    from sprat.golf.golf import golf
    from sprat.golf.recipe import Recipe
    from sprat.training import processes

    if arguments.teacher:
        given["teacher"] = str(arguments.teacher)
    recipe, length = Recipe.read(arguments.recipe, given), length_of(arguments)
    _use(arguments.threads)

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
            progress=progress,
            watch=watch if first else lambda point, bits: None,
        )
    if first:
        _show(arguments.out, result)


def _show(out: Path, result: dict[str, Any]) -> None:
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
        f"every figure is in {out.with_suffix('.json')}",
        markup=False,
        soft_wrap=True,
    )
    for row in result["runs"]:
        for warning in row["warnings"]:
            terminal.note(f"{row['file']}: {warning}")


def _score(arguments: argparse.Namespace) -> None:
    from sprat.golf import corpus
    from sprat.golf.score import score_file

    _use(arguments.threads)
    share = arguments.held_out
    documents = (
        list(dict.fromkeys(corpus.documents(arguments.text)))
        if share is None
        else corpus.read(arguments.text, share).validation
    )
    with terminal.bars() as progress:
        found = score_file(arguments.file, documents, arguments.stride, arguments.threads, progress)
    console = terminal.out()
    size = arguments.file.stat().st_size
    how = f"sliding windows, {found.stride} tokens apart" if arguments.stride else "windows side by side"
    console.print(
        f"{found.bits_per_byte:.4f} bits a byte, {size:,} bytes: {len(documents)} documents, "
        f"{int(found.nbytes.sum()):,} bytes, {found.tokens:,} tokens, {found.engine} engine, {how}",
        markup=False,
        soft_wrap=True,
    )
    if arguments.code:
        from sprat.golf.code import code

        needed = code(arguments.file)
        console.print(
            f"{needed.nbytes:,} bytes of code run it: {needed.files} files of sprat; not counted: Python, "
            + ", ".join(needed.others),
            markup=False,
            soft_wrap=True,
        )


def _compare(arguments: argparse.Namespace) -> None:
    from sprat.golf.compare import compare
    from sprat.golf.result import read

    found = compare(read(arguments.a), read(arguments.b))
    rows = [
        (
            name.name,
            f"{side.seeds}",
            f"{side.largest:,}",
            f"{side.mean:.4f}",
            f"{side.deviation:.4f}" if side.seeds > 1 else "",
        )
        for name, side in ((arguments.a, found.a), (arguments.b, found.b))
    ]
    console = terminal.out()
    console.print(terminal.table(("", "seeds", "bytes", "bits a byte", "deviation"), rows))
    for line in found.sentences():
        console.print(line, markup=False, soft_wrap=True)


def _leaderboard(arguments: argparse.Namespace) -> None:
    from sprat.golf.leaderboard import COLUMNS, gather, write

    boards, console = gather(arguments.folder), terminal.out()
    for board in boards:
        console.print(f"\n{board.title}", markup=False, soft_wrap=True)
        console.print(terminal.table(COLUMNS, board.rows()))
    if arguments.out:
        write(boards, arguments.out)
        console.print(f"written to {arguments.out}", markup=False, soft_wrap=True)


def _use(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
