"""What the verbs that run a model share: their arguments, and opening it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from sprat.cli import terminal
from sprat.cli.arguments import add_cache, budget, seed, whole

if TYPE_CHECKING:
    from sprat.coding.container import Artifact
    from sprat.run.engine import Engine
    from sprat.run.sampling import Sampling


def add_engine(parser: argparse.ArgumentParser) -> None:
    """How it is computed."""
    parser.add_argument(
        "--threads", type=whole, metavar="N", help="threads that compute (default: the engine chooses)"
    )
    parser.add_argument(
        "--context",
        type=whole,
        metavar="N",
        help="tokens of the longest text, the answer included (default: what the model was made for)",
    )
    add_cache(parser)
    parser.add_argument(
        "--engine",
        default="auto",
        metavar="KIND",
        help="native, torch, or auto: native where it serves the model (default)",
    )
    parser.add_argument(
        "--keep-unpacked",
        action="store_true",
        default=None,
        help="keep the unpacked weights in the cache folder, so that the next start is quicker"
        " (or SPRAT_KEEP_UNPACKED=1)",
    )


def add_ram(parser: argparse.ArgumentParser) -> None:
    """How much memory it may take."""
    parser.add_argument(
        "--ram",
        type=budget,
        metavar="B",
        help="refuse where weights and the key-value cache of the whole context take more than this: 200MB, 1GiB",
    )


def add_sampling(parser: argparse.ArgumentParser, temperature: float = 0.0) -> None:
    """How tokens are drawn; the order is that of `sprat.run.sampling`."""

    def add(name: str, kind: Callable[[str], object], default: object, metavar: str, text: str) -> None:
        parser.add_argument(name, type=kind, default=default, metavar=metavar, help=text)

    said = "0: the likeliest token each time"
    add("--temperature", float, temperature, "T", f"{said} (default {temperature:g})")
    add("--top-k", int, 0, "K", "draw from the K likeliest tokens (default 0: all)")
    add("--top-p", float, 1.0, "P", "draw from the likeliest tokens that hold P of the mass (default 1)")
    add("--min-p", float, 0.0, "P", "draw from tokens with P times the likeliest's mass (default 0: all)")
    add("--repetition-penalty", float, 1.0, "R", "above 1: tokens that came before count less (default 1)")
    add("--seed", seed, 0, "N", "seed of the drawing (default 0)")


def sampling(arguments: argparse.Namespace) -> Sampling:
    """What `add_sampling` asked for. Raises RequestError for a value outside its range."""
    from sprat.run.sampling import Sampling

    return Sampling(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
        seed=arguments.seed,
    )


def open_engine(artifact: Artifact, arguments: argparse.Namespace, texts: int = 1) -> Engine:
    """The engine that the arguments ask for; a note where the native one could not be had.

    texts: of how many --ram must hold the caches.
    """
    from sprat.run import engine
    from sprat.run.price import refuse_memory

    opened = engine.open_engine(
        artifact,
        arguments.threads,
        arguments.context,
        arguments.engine,
        arguments.cache,
        arguments.keep_unpacked,
    )
    note_engine(opened, arguments)
    if arguments.ram is not None:
        weights = artifact.ledger().weights
        refuse_memory(opened, arguments.ram.bytes(2 * weights, weights), texts)
    return opened


def note_engine(opened: Engine, arguments: argparse.Namespace) -> None:
    """Say why the native engine was not taken, where nobody asked for another."""
    from sprat.run.engine import why

    if arguments.engine == "auto" and (reason := why(opened)):
        terminal.note(f"running through torch, which is slow: {reason}")
