"""`sprat VERB …`: the table of verbs, and how errors end."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import sprat
from sprat.cli import (
    anatomy,
    bench,
    chat,
    compare,
    export,
    fit,
    golf,
    heal,
    inspect,
    plan,
    prove,
    run,
    search,
    serve,
    sweep,
)
from sprat.cli.parser import Parser
from sprat.errors import SpratError

#: verb -> the file that has its `SUMMARY`, `EXAMPLES`, `configure(parser)` and `execute(arguments)`
VERBS: dict[str, ModuleType] = {
    "fit": fit,
    "heal": heal,
    "plan": plan,
    "inspect": inspect,
    "run": run,
    "chat": chat,
    "serve": serve,
    "bench": bench,
    "prove": prove,
    "export": export,
    "compare": compare,
    "sweep": sweep,
    "anatomy": anatomy,
    "golf": golf,
    "search": search,
}

_EXAMPLES = """examples:
  sprat fit smollm2-135m --budget 50MB -o smol.sprat
  sprat chat smol.sprat
  sprat prove smol.sprat --against smollm2-135m --text held-out.txt

`sprat VERB --help` tells what a verb takes. SPRAT_CACHE names the folder for what may be wanted
again (statistics, text, predictions); SPRAT_DEBUG=1 shows where an error comes from."""

#: What torch says where memory cannot be had; it raises a plain RuntimeError.
_NO_MEMORY = "allocate memory"


def parser() -> argparse.ArgumentParser:
    """All verbs; each module's `configure` adds its arguments."""
    top = Parser(
        prog="sprat",
        description="Fit a language model into the bytes you have, prove what that cost, run the result.",
        epilog=_EXAMPLES,
    )
    top.add_argument("--version", action="version", version=f"sprat {sprat.__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for name, module in VERBS.items():
        verb = verbs.add_parser(
            name, help=module.SUMMARY, description=module.SUMMARY, epilog="examples:\n" + module.EXAMPLES
        )
        module.configure(verb)
        verb.set_defaults(execute=module.execute, parser=verb)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Exit status: 0 done, 2 refused or failed with a message, 130 stopped with Ctrl-C."""
    debug = bool(os.environ.get("SPRAT_DEBUG"))
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as under cron
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  (it stays open)
    # A terminal in another encoding shows ? for what it lacks; bytes that are no text come in as what `encode` refuses.
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "replace"), (sys.stdin, "surrogateescape")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    try:
        arguments, rest = parser().parse_known_args(argv)
        if rest:  # the verb's own parser knows which of its flags is near
            arguments.parser.error(f"unrecognized arguments: {' '.join(rest)}")
        arguments.execute(arguments)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse: --help, --version, or an error already told
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        return _end("sprat: stopped", 130)
    except BrokenPipeError:  # `sprat inspect … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if debug:
            raise
        return _end(f"sprat: error: {sprat.missing(error)}", 2)
    except (SpratError, OSError) as error:
        if debug:
            raise
        return _end(f"sprat: error: {error}", 2)
    except (MemoryError, RuntimeError) as error:
        if debug or not (isinstance(error, MemoryError) or _NO_MEMORY in str(error)):
            raise
        return _end("sprat: error: out of memory", 2)
    return 0


def _end(message: str, status: int) -> int:
    sys.stderr.write(message + "\n")
    return status
