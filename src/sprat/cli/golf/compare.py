"""`sprat golf compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sprat.cli import terminal

SUMMARY = "Tell which of two trainings is better, and whether that can be told."


def configure(parser: argparse.ArgumentParser) -> None:
    """The two."""
    parser.add_argument("a", type=Path, metavar="A", help="the JSON beside a trained file")
    parser.add_argument("b", type=Path, metavar="B", help="the JSON beside another")


def execute(arguments: argparse.Namespace) -> None:
    """Print both, and what can be told."""
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
