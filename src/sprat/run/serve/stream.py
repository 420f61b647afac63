"""News of a job become an answer: whole, or as server-sent events. A client that leaves ends its job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sprat.run.serve.errors import ApiError
from sprat.run.serve.replies import Reply, to_json, usage
from sprat.run.serve.scheduler import Choice, Event, Job
from sprat.run.serve.schema import Request as Asked
from sprat.run.serve.writing import TokenLogprob

#: Seconds that a reader may stand still behind its request's deadline.
SLOW_READER_SECONDS = 30.0


class EventStream(Response):
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


async def parts(
    event: Event, events: asyncio.Queue[Event], choices: list[Choice], reply: Reply, asked: Asked
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


async def collect(
    events: asyncio.Queue[Event], choices: list[Choice]
) -> list[tuple[str, list[TokenLogprob], str]]:
    """All news until every choice is over; the first failure fails the whole request."""
    texts: list[list[str]] = [[] for _ in choices]
    logprobs: list[list[TokenLogprob]] = [[] for _ in choices]
    ends: dict[int, str] = {}
    while len(ends) < len(choices):
        event = checked(await events.get())
        texts[event.choice].append(event.piece.text)
        logprobs[event.choice] += event.piece.logprobs
        if event.finish is not None:
            ends[event.choice] = event.finish
    return [("".join(texts[i]), logprobs[i], ends[i]) for i in range(len(choices))]


def checked(event: Event) -> Event:
    """The event; raises its failure where it is one."""
    if event.failure is not None:
        raise event.failure
    return event


async def unless_gone(request: Request, work: Awaitable[Any]) -> Any:
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


def _line(value: dict[str, Any]) -> str:
    return f"data: {to_json(value)}\n\n"
