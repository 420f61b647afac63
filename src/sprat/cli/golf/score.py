"""`sprat golf score`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sprat.cli import terminal
from sprat.cli.arguments import whole

SUMMARY = "Measure the bits per byte of a file on text."


def configure(parser: argparse.ArgumentParser) -> None:
    """What to score, on what."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a .sprat file, or what int8-zlib wrote")
    parser.add_argument(
        "--text",
        nargs="+",
        action="extend",
        required=True,
        metavar="TEXT",
        help="files, folders, patterns, package:NAME or hub:NAME",
    )
    parser.add_argument(
        "--held-out",
        type=float,
        metavar="SHARE",
        help="only the documents that a training with this `validation` holds out",
    )
    parser.add_argument(
        "--stride", type=whole, metavar="N", help="sliding windows, N tokens apart (default: side by side)"
    )
    parser.add_argument("--threads", type=whole, metavar="N", help="threads to compute with")
    parser.add_argument(
        "--code", action="store_true", help="say too how many bytes of code running the file takes"
    )


def execute(arguments: argparse.Namespace) -> None:
    """Score, and print a line."""
    import torch

    from sprat.golf import corpus
    from sprat.golf.score import score_file

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
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
