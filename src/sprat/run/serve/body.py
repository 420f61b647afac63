"""The JSON of a request, with limits to its size and to the time that it takes."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from sprat.run.serve.errors import ApiError, invalid

#: Seconds that a request's body may take to arrive.
BODY_SECONDS = 30.0


async def read_json(request: Request, limit: int) -> Any:
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
    except ClientDisconnect:
        raise ApiError(499, "the client left before its request was whole", None, "gone") from None
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
