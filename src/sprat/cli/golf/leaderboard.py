"""`sprat golf leaderboard`."""

from __future__ import annotations

import argparse
from pathlib import Path

from sprat.cli import terminal

SUMMARY = "Show all results under a folder, by cap and length."


def configure(parser: argparse.ArgumentParser) -> None:
    """Where the results lie."""
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="where the JSONs of trainings lie (records)"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="PAGE", help="write a page with a picture too: .html or .md"
    )


def execute(arguments: argparse.Namespace) -> None:
    """Print a table a board; write the page."""
    from sprat.golf.leaderboard import BRIEF, gather, write

    boards, console = gather(arguments.folder), terminal.out()
    for board in boards:
        console.print(f"\n{board.title}", markup=False, soft_wrap=True)
        console.print(terminal.table(BRIEF, board.brief()))
    if arguments.out:
        write(boards, arguments.out)
        console.print(f"written to {arguments.out}", markup=False, soft_wrap=True)
