"""The routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from sprat.errors import nearest
from sprat.run.serve import prompts, schema
from sprat.run.serve.body import read_json
from sprat.run.serve.errors import ApiError
from sprat.run.serve.guard import Guard
from sprat.run.serve.prompts import Limits
from sprat.run.serve.replies import Reply, to_json, usage
from sprat.run.serve.scheduler import Event, Job, Scheduler
from sprat.run.serve.stream import EventStream, checked, collect, parts, unless_gone
from sprat.run.tokenizer import TextTokenizer

#: The page talks to this server and to nobody else.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Model:
    """What is served."""

    name: str
    created: int  #: seconds since 1970
    tokenizer: TextTokenizer
    vocabulary: int


def make_app(
    model: Model, scheduler: Scheduler, limits: Limits, api_key: str | None = None, loopback: bool = True
) -> Guard:
    """The ASGI application. It ends the scheduler when it is shut down."""
    server = _Server(model, scheduler, limits)
    return Guard(server.app, api_key, loopback)


class _Server:
    def __init__(self, model: Model, scheduler: Scheduler, limits: Limits):
        self.model, self.scheduler, self.limits = model, scheduler, limits
        # Long texts take a while to become tokens: beside the loop, and few at a time.
        self.workers = ThreadPoolExecutor(2, thread_name_prefix="sprat-tokenizer")
        # No pages of FastAPI's own: they load scripts from the network.
        self.app = FastAPI(
            title="sprat", docs_url=None, redoc_url=None, openapi_url=None, lifespan=self.lifespan
        )
        for path, method, handler in (
            ("/", "GET", self.page),
            ("/health", "GET", self.health),
            ("/v1/models", "GET", self.models),
            ("/v1/models/{name:path}", "GET", self.one_model),
            ("/v1/completions", "POST", self.completions),
            ("/v1/chat/completions", "POST", self.chat),
        ):
            self.app.router.add_route(path, handler, methods=[method])
        self.app.add_exception_handler(ApiError, _refused)
        self.app.add_exception_handler(HTTPException, self.no_route)
        self.app.add_exception_handler(Exception, _broken)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.workers.shutdown(wait=False, cancel_futures=True)
            await asyncio.get_running_loop().run_in_executor(None, self.scheduler.close)

    async def page(self, request: Request) -> Response:
        html = resources.files("sprat.run.serve").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(html, headers=_PAGE_HEADERS)

    async def health(self, request: Request) -> Response:
        found = self.scheduler
        opened, idle = found.sessions
        state = {
            "status": "ok" if found.alive else "stopped",
            "model": self.model.name,
            "running": found.running,
            "waiting": found.waiting,
            "sessions": opened,
            "idle_sessions": idle,
        }
        return _json(state, 200 if found.alive else 503)

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._model()]})

    async def one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self.model.name:
            message = (
                f"there is no model {name!r}{nearest(name, [self.model.name])}: {self.model.name!r} is served"
            )
            raise ApiError(404, message, "model", "model_not_found")
        return _json(self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self.model.name,
            "object": "model",
            "created": self.model.created,
            "owned_by": "sprat",
            "context_length": self.limits.context,
        }

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, schema.CompletionRequest)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, schema.ChatRequest)

    async def _answer(self, request: Request, kind: type[schema.Request]) -> Response:
        deadline = time.monotonic() + self.limits.seconds
        asked = schema.parse(kind, await read_json(request, self.limits.body))
        loop = asyncio.get_running_loop()
        choices = await loop.run_in_executor(
            self.workers, prompts.choices, asked, self.model.tokenizer, self.model.vocabulary, self.limits
        )
        events: asyncio.Queue[Event] = asyncio.Queue()

        def news(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is gone, and with it whoever waited
                loop.call_soon_threadsafe(events.put_nowait, event)

        # Fairness is between addresses, and between the users that one address names.
        client = f"{request.client.host if request.client else ''} {asked.user or ''}"
        job = Job(client, choices, news, deadline, self.limits.seconds)
        is_chat = kind is schema.ChatRequest
        reply = Reply(is_chat, self.model.name, self.model.tokenizer, asked.top is not None)
        self.scheduler.submit(job)
        try:
            if not asked.stream:
                found = await unless_gone(request, collect(events, choices))
                return _json(reply.whole(found, usage(choices, asked.n or 1)))
            # Until the first news an error is still a status of its own.
            first = checked(await unless_gone(request, events.get()))
            return EventStream(parts(first, events, choices, reply, asked), job, deadline)
        except BaseException:
            job.cancel()
            raise

    async def no_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path, paths = request.url.path, ["/v1/models", "/v1/completions", "/v1/chat/completions", "/health"]
        if error.status_code == 405:
            refusal = ApiError(405, f"{path} does not take {request.method}", None, "method_not_allowed")
        else:
            refusal = ApiError(404, f"there is nothing at {path!r}{nearest(path, paths)}", None, "not_found")
        return _json(refusal.body, refusal.status, dict(error.headers or {}))


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, "application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _json(error.body, error.status, error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    return _json(ApiError(500, "the server made a mistake").body, 500)
