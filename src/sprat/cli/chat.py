"""`sprat chat`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from sprat.cli import running, terminal
from sprat.cli.arguments import add_file, whole
from sprat.errors import SpratError, nearest

if TYPE_CHECKING:
    from sprat.run.chat import Answer, Conversation

SUMMARY = "Talk with a .sprat file."
EXAMPLES = """  sprat chat smol.sprat
  sprat chat smol.sprat --system "You are a pirate." --temperature 0.7 --top-p 0.9
  printf 'Hello!\\nWhat did I just say?\\n' | sprat chat smol.sprat"""

COMMANDS = {
    "/help": "what there is",
    "/reset": "forget what was said",
    "/save PATH": "write the conversation as JSON",
    "/stats": "tokens and speed so far",
    "/quit": "leave (so does Ctrl-D)",
}
_HINT = "Ctrl-C stops an answer; /quit or Ctrl-D leaves"


def configure(parser: argparse.ArgumentParser) -> None:
    """What to talk with, how it answers, and how it is computed."""
    add_file(parser)
    parser.add_argument("--system", metavar="TEXT", help="instructions that stand before the conversation")
    parser.add_argument(
        "--max-tokens", type=whole, metavar="N", help="tokens of an answer, at most (default: the context's)"
    )
    running.add_sampling(parser)
    running.add_engine(parser)
    running.add_ram(parser)


def execute(arguments: argparse.Namespace) -> None:
    """Answer line after line, from a terminal or a pipe."""
    import sprat
    from sprat.run.chat import Conversation
    from sprat.run.tokenizer import open_tokenizer

    sampling = running.sampling(arguments)
    artifact = sprat.open(arguments.file)
    tokenizer = open_tokenizer(artifact)
    engine = running.open_engine(artifact, arguments)
    conversation = Conversation(
        engine, tokenizer, sampling, arguments.max_tokens, arguments.context, arguments.system
    )
    interactive = sys.stdin.isatty()
    if interactive:
        _say(
            f"{arguments.file.name}, {engine.name} engine, context of {conversation.context} tokens. {_HINT}."
        )
    for line in _typed() if interactive else _piped():
        if not line.strip():
            continue
        if line.startswith("/") and not line.startswith("//"):
            if not _command(conversation, line.strip(), arguments.file):
                break
            continue
        try:
            _answer(conversation, line.removeprefix("/") if line.startswith("//") else line)
        except SpratError as error:  # this message cannot be answered; another may
            _say(f"sprat: error: {error}")
    if conversation.stats.answers:
        _say(_summary(conversation))
    conversation.close()


def _answer(conversation: Conversation, text: str) -> None:
    """Stream the answer to standard output; what there is to say about it goes to standard error."""
    with _interrupts() as stopped:
        answer = conversation.ask(text, stopped)
        if answer.dropped:
            turns = "turn was" if answer.dropped == 1 else f"{answer.dropped} turns were"
            _say(
                f"sprat: note: the context of {conversation.context} tokens is full: the oldest {turns} forgotten "
                "(/reset starts anew; --context N makes it larger)"
            )
        for piece in answer:
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    _say(_after(conversation, answer))


def _after(conversation: Conversation, answer: Answer) -> str:
    going = answer.generation
    endings = {
        "length": "cut at --max-tokens; ",
        "context": f"cut: the context of {conversation.context} tokens is full; ",
        "stopped": "stopped; ",
    }
    speed = f", {going.tokens_per_second:.1f} tokens/s" if going.steps else ""
    return f"[{endings.get(going.finish or '', '')}{len(going.tokens)} tokens{speed}]"


def _command(conversation: Conversation, line: str, file: Path) -> bool:
    """Do what a line that begins with / asks; False where that is to leave."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/quit":
        return False
    if name == "/help":
        for command, text in COMMANDS.items():
            _say(f"  {command:<11} {text}")
        _say("  //text      says /text")
    elif name == "/reset":
        conversation.reset()
        _say("forgotten")
    elif name == "/stats":
        _say(_summary(conversation))
    elif name == "/save" and rest:
        try:
            conversation.save(Path(rest).expanduser(), file.name)
            _say(f"{rest} written")
        except SpratError as error:
            _say(f"sprat: error: {error}")
    elif name == "/save":
        _say("sprat: error: /save wants a path: /save chat.json")
    else:
        known = [command.split()[0] for command in COMMANDS]
        _say(f"sprat: error: unknown command {name!r}{nearest(name, known)}: one of {', '.join(known)}")
    return True


def _summary(conversation: Conversation) -> str:
    stats = conversation.stats
    return (
        f"{stats.answers} answers, {stats.written_tokens} tokens written at {stats.tokens_per_second:.1f} tokens/s, "
        f"{stats.read_tokens} read at {stats.read_per_second:.1f} tokens/s, {stats.reused_tokens} reused; "
        f"{len(conversation.held)} of {conversation.context} tokens of context in use"
    )


def _typed() -> Iterator[str]:
    """Lines from the keyboard; Ctrl-C empties the line, Ctrl-D ends."""
    with suppress(ImportError):
        import readline  # noqa: F401  arrow keys and history
    while True:
        try:
            yield input("> ")
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            _say(_HINT)


def _piped() -> Iterator[str]:
    for line in sys.stdin:
        yield line.rstrip("\r\n")


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C only makes the yielded function true; the second ends the program.

    An exception in the middle of a step would leave the session's layers at different lengths.
    """
    seen = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, before)


def _say(message: str) -> None:
    terminal.err().print(message, markup=False, soft_wrap=True, style="dim" if sys.stderr.isatty() else None)
