"""The routes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from typing import Any, NoReturn

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from sprat.errors import nearest
from sprat.run.serve import prompts, schema
from sprat.run.serve.errors import ApiError, invalid
from sprat.run.serve.guard import Guard
from sprat.run.serve.prompts import Limits
from sprat.run.serve.replies import Reply, to_json, usage
from sprat.run.serve.scheduler import Choice, Event, Job, Scheduler
from sprat.run.serve.writing import TokenLogprob
from sprat.run.tokenizer import TextTokenizer

#: Seconds that a request's body may take to arrive, and that a reader may stand still behind the deadline.
BODY_SECONDS, SLOW_READER_SECONDS = 30.0, 30.0
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
        asked = schema.parse(kind, await _body(request, self.limits.body))
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
                found = await _unless_gone(request, _collect(events, choices))
                return _json(reply.whole(found, usage(choices, asked.n or 1)))
            # Until the first news an error is still a status of its own.
            first = _checked(await _unless_gone(request, events.get()))
            return _Stream(_parts(first, events, choices, reply, asked), job, deadline)
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


class _Stream(Response):
    """Server-sent events. A client that leaves, or reads nothing for too long, ends the job."""

    media_type = "text/event-stream"

    def __init__(self, parts: AsyncIterator[str], job: Job, deadline: float):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._parts, self._job, self._deadline = parts, job, deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [asyncio.ensure_future(self._send(send)), asyncio.ensure_future(_disconnect(receive))]
        limit = self._deadline + SLOW_READER_SECONDS - time.monotonic()
        try:
            await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._job.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for part in self._parts:
            await send({"type": "http.response.body", "body": part.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _parts(
    event: Event, events: asyncio.Queue[Event], choices: list[Choice], reply: Reply, asked: schema.Request
) -> AsyncIterator[str]:
    """The lines of the stream, from the first event on."""
    left = {choice.index for choice in choices}
    usage_field = {"usage": None} if asked.wants_usage else {}
    if reply.chat:
        for choice in choices:
            yield _line(reply.first(choice.index) | usage_field)
    while True:
        if event.failure is not None:
            yield _line(event.failure.body)
            return
        piece = event.piece
        if piece.text or piece.logprobs:
            part = reply.part(event.choice, piece.text, piece.logprobs, None)
            yield _line(part | usage_field)
        if event.finish is not None:
            left.discard(event.choice)
            yield _line(reply.part(event.choice, "", (), event.finish) | usage_field)
        if not left:
            break
        event = await events.get()
    if asked.wants_usage:
        yield _line(reply.last(usage(choices, asked.n or 1)))
    yield "data: [DONE]\n\n"


async def _collect(
    events: asyncio.Queue[Event], choices: list[Choice]
) -> list[tuple[str, list[TokenLogprob], str]]:
    """All news until every choice is over; the first failure fails the whole request."""
    texts: list[list[str]] = [[] for _ in choices]
    logprobs: list[list[TokenLogprob]] = [[] for _ in choices]
    ends: dict[int, str] = {}
    while len(ends) < len(choices):
        event = _checked(await events.get())
        texts[event.choice].append(event.piece.text)
        logprobs[event.choice] += event.piece.logprobs
        if event.finish is not None:
            ends[event.choice] = event.finish
    return [("".join(texts[i]), logprobs[i], ends[i]) for i in range(len(choices))]


def _checked(event: Event) -> Event:
    if event.failure is not None:
        raise event.failure
    return event


async def _unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """The result of `work`; `ApiError` 499 (that nobody reads) once the client is gone."""
    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ApiError(499, "the client closed the request", None, "gone")
        return doing.result()
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.gather(doing, gone, return_exceptions=True)


async def _disconnect(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, limit: int) -> Any:
    """The JSON of a request; `ApiError` for what is too large, too slow or no JSON."""
    too_large = ApiError(413, f"the request is larger than {limit:,} bytes", None, "too_large")
    claimed = request.headers.get("content-length", "0")
    if claimed.isdecimal() and int(claimed[:20]) > limit:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                data += part
                if len(data) > limit:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body took more than {BODY_SECONDS:g} s", None, "timeout") from None
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise invalid(
            f"the body is no valid JSON: {str(error)[:200]}".encode("ascii", "replace").decode()
        ) from None
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _line(value: dict[str, Any]) -> str:
    return f"data: {to_json(value)}\n\n"


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, "application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _json(error.body, error.status, error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    return _json(ApiError(500, "the server made a mistake").body, 500)
