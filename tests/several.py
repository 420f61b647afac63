"""Calls a function in several processes at once, as torchrun starts them.

torchrun takes half a minute to start, and so does every process that imports torch and transformers: here one imports
them, once for all tests, and the others are its forks.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["sprat.heal", "transformers.models.llama.modeling_llama"])


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it wrote to standard output and error. status: None where it hung."""

    status: int | None
    out: str
    err: str


def run(
    function: Callable[..., Any], *arguments: Any, processes: int = 2, seconds: float = 120
) -> list[Ended]:
    """Each process's, by rank. function: of a module; what it returns is the exit status."""
    port = _port()
    shared = {
        **os.environ,
        "WORLD_SIZE": f"{processes}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
    }
    with tempfile.TemporaryDirectory() as root:
        texts = [(Path(root) / f"{rank}.out", Path(root) / f"{rank}.err") for rank in range(processes)]
        started = [
            _CONTEXT.Process(
                target=_one, args=({**shared, "RANK": f"{rank}"}, texts[rank], function, arguments)
            )
            for rank in range(processes)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(seconds)
        statuses = [process.exitcode for process in started]
        for process in started:
            process.kill()
            process.join()
        return [
            Ended(status, out.read_text(), err.read_text())
            for status, (out, err) in zip(statuses, texts, strict=True)
        ]


def _port() -> int:
    """A free one, below those that outgoing connections get: none of them takes it before it is used."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _one(
    environment: Mapping[str, str],
    texts: tuple[Path, Path],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(environment)
    for stream, path in zip((sys.stdout, sys.stderr), texts, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream.fileno())
    import torch

    torch.set_num_threads(1)
    sys.exit(function(*arguments))
