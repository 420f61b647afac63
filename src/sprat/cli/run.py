"""`sprat run`."""

from __future__ import annotations

import argparse
import sys

from sprat.cli import running
from sprat.cli.arguments import add_file, whole

SUMMARY = "Let a .sprat file write: answer a prompt, or continue it."
EXAMPLES = """  sprat run smol.sprat "Why is the sky blue?"
  sprat run smol.sprat "Once upon a time" --raw --max-tokens 100 --temperature 0.8 --seed 3
  echo "Summarise: ..." | sprat run smol.sprat -"""


def configure(parser: argparse.ArgumentParser) -> None:
    """What to let write, from which prompt, and how."""
    add_file(parser)
    parser.add_argument(
        "prompt", metavar="PROMPT", help="the text to answer or continue; '-' reads standard input"
    )
    parser.add_argument(
        "--max-tokens", type=whole, default=256, metavar="N", help="stop after N tokens (default 256)"
    )
    running.add_sampling(parser)
    running.add_engine(parser)
    running.add_ram(parser)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--chat", dest="chat", action="store_true", default=None, help="answer as a chat")
    mode.add_argument(
        "--raw",
        dest="chat",
        action="store_false",
        help="continue the text (default: chat where the file has a template)",
    )


def execute(arguments: argparse.Namespace) -> None:
    """Write to standard output, token by token."""
    import sprat
    from sprat.run.generate import generate

    sampling = running.sampling(arguments)
    artifact = sprat.open(arguments.file)
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    pieces = generate(
        artifact,
        prompt,
        max_tokens=arguments.max_tokens,
        sampling=sampling,
        chat=arguments.chat,
        engine=running.open_engine(artifact, arguments),
    )
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
