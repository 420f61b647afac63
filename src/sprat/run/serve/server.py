"""The socket, and the life of the process."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sprat.errors import RequestError, SpratError
from sprat.run.engine import Engine
from sprat.run.serve.app import Model, make_app
from sprat.run.serve.prompts import Limits
from sprat.run.serve.scheduler import Scheduler
from sprat.run.tokenizer import open_tokenizer

if TYPE_CHECKING:
    import uvicorn

    from sprat.coding.container import Artifact

#: Connections behind which uvicorn itself refuses: far more than the queue, so that clients hear of the queue.
CONNECTIONS = 1000


@dataclass(frozen=True)
class Settings:
    """How a file is served."""

    host: str = "127.0.0.1"
    port: int = 8000  #: 0: any that is free
    api_key: str | None = None
    context: int | None = None  #: tokens of a text; default and limit: the engine's
    max_clients: int = 16  #: texts written at a time
    max_waiting: int | None = None  #: texts that may wait; default 4 times as many, and at least 64
    max_tokens: int | None = None  #: of an answer; default: as the context goes
    timeout: float = 600.0  #: seconds for a request, waiting included
    keep: int = 4  #: caches of ended texts that are kept for what follows them

    @property
    def texts(self) -> int:
        """Caches that may be there at a time."""
        return self.max_clients + min(self.keep, self.max_clients)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise RequestError(f"port must lie between 0 and 65535, not {self.port}", "port")
        if not 0 < self.timeout <= 10**6:
            raise RequestError(
                f"timeout must be above 0 seconds and at most 1000000, not {self.timeout}", "timeout"
            )
        if self.api_key is not None and not (
            self.api_key.isascii() and self.api_key.strip() == self.api_key != ""
        ):
            raise RequestError("the API key must be ASCII text without spaces around it", "api_key")


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; `SpratError` says what is wrong with the address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpratError(
            f"unknown host {host!r}: {reason}; 127.0.0.1 serves this machine, 0.0.0.0 all"
        ) from error
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(1024)
    except OSError as error:
        made.close()
        place = f"{host} port {port}"
        raise SpratError(
            f"cannot listen on {place}: {error.strerror}; choose another port with --port (0: any that is free)"
        ) from error
    return made


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def address(bound: socket.socket) -> str:
    """http://…, as a browser takes it."""
    host, port = bound.getsockname()[:2]
    shown = str({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host))
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def build(
    artifact: Artifact, engine: Engine, settings: Settings, loopback: bool = True
) -> tuple[uvicorn.Server, Scheduler]:
    """The server, not yet running, and its scheduler, which is."""
    import uvicorn

    context = engine.context if settings.context is None else settings.context
    if not 2 <= context <= engine.context:
        raise RequestError(
            f"context must lie between 2 and {engine.context} tokens, not {context}", "context"
        )
    tokenizer = open_tokenizer(artifact)
    waiting = settings.max_waiting
    waiting = max(64, 4 * settings.max_clients) if waiting is None else waiting
    limits = Limits(context, settings.max_tokens, settings.max_clients + waiting, settings.timeout)
    model = Model(
        artifact.path.stem,
        int(artifact.path.stat().st_mtime),
        tokenizer,
        engine.vocabulary,
    )
    scheduler = Scheduler(
        engine,
        tokenizer.eos_ids,
        context,
        settings.max_clients,
        waiting,
        min(settings.keep, settings.max_clients),
    )
    app = make_app(model, scheduler, limits, settings.api_key, loopback)
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        lifespan="on",
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=2,
        ws="none",
    )
    return uvicorn.Server(config), scheduler


def serve(
    artifact: Artifact,
    engine: Engine,
    settings: Settings,
    ready: Callable[[str, bool], None] = lambda url, near: None,
) -> None:
    """Serve until Ctrl-C. ready(url, loopback) is called once the socket listens."""
    bound = listen(settings.host, settings.port)
    try:
        near = is_loopback(bound)
        server, scheduler = build(artifact, engine, settings, near)
        try:
            ready(address(bound), near)
            server.run(sockets=[bound])
        finally:
            scheduler.close()
    finally:
        bound.close()
