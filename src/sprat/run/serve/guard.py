"""Who may call: the key, and no foreign web page."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from sprat.run.serve.errors import ApiError
from sprat.run.serve.replies import to_json

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

#: Open to anyone who reaches the server: they tell nothing that is worth a key.
_OPEN = {"/", "/health"}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Guard:
    """ASGI middleware.

    A server on loopback without a key is reachable for every web page that its owner looks at. A page of another
    origin is told by its Origin header; one that got its own name to point here (DNS rebinding) by the Host.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], api_key: str | None, loopback: bool):
        self._app, self._loopback = app, loopback
        self._key = api_key.encode() if api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {name.lower(): value for name, value in scope["headers"]}
            if refusal := self._refusal(scope["path"], headers):
                await respond(refusal, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if self._loopback and _name(f"//{host}") not in _LOOPBACK:
            return ApiError(403, f"the host {host!r} is not this server's name", code="foreign_host")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and urlsplit_safe(origin) != host:
            return ApiError(403, f"pages of {origin!r} may not use this server", code="foreign_origin")
        if self._key is None or path in _OPEN:
            return None
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key):
            return None
        given = "the API key is wrong" if key else "an API key is needed: Authorization: Bearer KEY"
        return ApiError(401, given, None, "invalid_api_key", {"WWW-Authenticate": "Bearer"})


def urlsplit_safe(url: str) -> str | None:
    """Host and port of an origin; None where there is none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return None


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


async def respond(error: ApiError, send: Send) -> None:
    """The refusal as a whole response."""
    body = to_json(error.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    listed = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": listed})
    await send({"type": "http.response.body", "body": body})
