"""Refusals as OpenAI's API words them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class ApiError(Exception):
    """What a client is told when it does not get what it asked for."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    @property
    def body(self) -> dict[str, Any]:
        kinds = {
            401: "authentication_error",
            403: "permission_error",
            404: "not_found_error",
            429: "rate_limit_error",
        }
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The request itself is wrong."""
    return ApiError(400, message, param, code)


def busy(seconds: float) -> ApiError:
    """As many wait already as may; `seconds` until it is worth trying again."""
    wait = str(max(1, min(60, round(seconds))))
    return ApiError(
        429, f"the queue is full: try again in {wait} s", None, "queue_full", {"Retry-After": wait}
    )


def closing() -> ApiError:
    """What a request is told while the server goes down."""
    return ApiError(503, "the server is shutting down", None, "shutting_down", {"Retry-After": "5"})


def late(seconds: float) -> ApiError:
    """What a request is told that took longer than it may."""
    return ApiError(
        504, f"not done within the server's limit of {seconds:g} s: ask for fewer tokens", None, "timeout"
    )
