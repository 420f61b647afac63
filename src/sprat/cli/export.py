"""`sprat export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sprat.cli import terminal
from sprat.cli.arguments import add_file
from sprat.sizes import format_bytes

SUMMARY = "Write a .sprat file out in a form that other tools open."
EXAMPLES = """  sprat export smol.sprat --to hf smol-hf
  sprat export smol.sprat --to hf smol-exact --dtype float32"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Which file, into which form and folder."""
    add_file(parser)
    parser.add_argument("--to", required=True, metavar="FORM", help="hf: a plain, dense Hugging Face folder")
    parser.add_argument(
        "directory", metavar="DIR", type=Path, help="the folder to write; it must not exist or be empty"
    )
    parser.add_argument(
        "--dtype", default="bfloat16", help="bfloat16 (default), or float32: exactly what the file stands for"
    )


def execute(arguments: argparse.Namespace) -> None:
    """Write the folder, and say how large it is."""
    from sprat.run.export import export

    with terminal.bars() as progress:
        folder = export(arguments.file, arguments.to, arguments.directory, arguments.dtype, progress)
    size = sum(path.stat().st_size for path in folder.iterdir())
    terminal.out().print(f"{folder}: {format_bytes(size)} in {arguments.dtype}", markup=False, soft_wrap=True)
