"""A server of a tiny file in a thread, for tests that talk to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from openai import OpenAI

from sprat.run.serve.scheduler import Scheduler
from sprat.run.serve.server import Settings, address, build, listen


@dataclass(frozen=True)
class Running:
    url: str
    scheduler: Scheduler
    engine: Any
    http: httpx2.Client
    openai: OpenAI

    def post(self, body: Any, path: str = "/v1/completions", **options: Any) -> httpx2.Response:
        return self.http.post(path, json=body, **options)

    def idle(self, seconds: float = 5) -> bool:
        """Wait until nothing runs and all open sessions lie idle."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            opened, idle = self.scheduler.sessions
            if not self.scheduler.running and not self.scheduler.waiting and opened == idle:
                return True
            time.sleep(0.01)
        return False


@contextmanager
def serving(artifact: Any, engine: Any, **settings: Any) -> Iterator[Running]:
    made = Settings(port=0, **settings)
    bound = listen(made.host, 0)
    server, scheduler = build(artifact, engine, made)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    url = address(bound)
    try:
        with (
            httpx2.Client(base_url=url, timeout=30) as http,
            OpenAI(base_url=f"{url}/v1", api_key=made.api_key or "none", max_retries=0) as openai,
        ):
            yield Running(url, scheduler, engine, http, openai)
    finally:
        server.should_exit = True
        thread.join()
        bound.close()
