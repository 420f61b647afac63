"""`sprat serve`."""

from __future__ import annotations

import argparse
import os

from sprat.cli import running, terminal
from sprat.cli.arguments import add_file, whole
from sprat.errors import SpratError

SUMMARY = "Serve a .sprat file: an OpenAI-compatible API and a chat page."
EXAMPLES = """  sprat serve smol.sprat
  sprat serve smol.sprat --port 9000 --threads 2 --context 4096
  SPRAT_API_KEY=secret sprat serve smol.sprat --host 0.0.0.0"""


def configure(parser: argparse.ArgumentParser) -> None:
    """What to serve, where, to whom, and within which limits."""
    add_file(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="H",
        help="address to listen on (default 127.0.0.1: this machine only)",
    )
    parser.add_argument(
        "--port", type=int, default=8000, metavar="P", help="0: any that is free (default 8000)"
    )
    parser.add_argument(
        "--api-key",
        default=os.environ.get("SPRAT_API_KEY"),
        metavar="KEY",
        help="what clients must send (default: SPRAT_API_KEY from the environment, else none)",
    )
    parser.add_argument(
        "--max-clients",
        type=whole,
        default=16,
        metavar="N",
        help="texts that are written at a time (default 16)",
    )
    parser.add_argument(
        "--max-tokens", type=whole, metavar="N", help="tokens of an answer, at most (default: the context's)"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds that a request may take, waiting included (default 600)",
    )
    running.add_engine(parser)
    running.add_ram(parser)


def execute(arguments: argparse.Namespace) -> None:
    """Serve until Ctrl-C."""
    import sprat

    try:
        from sprat.run.serve.server import Settings, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "uvicorn", "starlette", "pydantic"):
            raise
        raise SpratError(f"the server needs {error.name}: pip install 'sprat[serve]'") from error

    settings = Settings(
        host=arguments.host,
        port=arguments.port,
        api_key=arguments.api_key or None,
        context=arguments.context,
        max_clients=arguments.max_clients,
        max_tokens=arguments.max_tokens,
        timeout=arguments.timeout,
    )
    artifact = sprat.open(arguments.file)
    engine = running.open_engine(artifact, arguments, settings.texts)

    def ready(url: str, loopback: bool) -> None:
        lines = (
            f"{arguments.file.name}: {engine.name} engine, context of {settings.context or engine.context} tokens",
            f"chat page  {url}/",
            f"API        {url}/v1",
        )
        terminal.out().print("\n".join(lines), markup=False, soft_wrap=True)
        terminal.out().file.flush()
        if not loopback and settings.api_key is None:
            terminal.note("anyone who reaches this address can use the model: --api-key KEY asks for a key")

    serve(artifact, engine, settings, ready)
