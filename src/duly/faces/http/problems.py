"""Errors as answers: RFC 9457 problem+json, with the statuses that only HTTP knows.

Errors of `duly.core.errors` carry their own status and code. A field of the request is named by a JSON pointer:
into the body as it is (`/schedule`), or `/query/<name>`, `/header/<name>`, `/part/<name>` for the rest of the request.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Final

import msgspec
from starlette.exceptions import HTTPException

from duly.core.errors import DulyError, Malformed, NotFound, Overloaded, TooLarge, Unavailable
from duly.core.instants import SECOND
from duly.core.views import problem

Headers = list[tuple[bytes, bytes]]
MEDIA_TYPE: Final = b"application/problem+json"


class MethodNotAllowed(DulyError):
    """This path exists, but not with this method."""

    code, status, title = "method_not_allowed", 405, "Method not allowed"

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.allowed = allowed
        super().__init__(f"allowed here: {', '.join(allowed)}")


class RequestTimedOut(DulyError):
    """The request did not arrive in time."""

    code, status, title = "request_timed_out", 408, "Request timed out"


class UnsupportedMediaType(DulyError):
    """This kind of body is not taken here."""

    code, status, title = "unsupported_media_type", 415, "Unsupported media type"


class RangeNotSatisfiable(DulyError):
    """The range lies outside the content."""

    code, status, title = "range_not_satisfiable", 416, "Range not satisfiable"

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(f"the content has {size:,} bytes")


class Misdirected(DulyError):
    """This server does not answer to that host name."""

    code, status, title = "misdirected", 421, "Misdirected request"


class Internal(DulyError):
    """Something went wrong inside duly; the log has it under this request id."""

    code, status, title = "internal_error", 500, "Internal error"


def answer_to(error: DulyError, request_id: str) -> tuple[int, bytes, Headers]:
    """Status, body and headers for an error."""
    body = msgspec.json.encode(problem(error, request_id=request_id))
    headers: Headers = [
        (b"content-type", MEDIA_TYPE),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    retry_after = error.retry_after
    if retry_after is None and isinstance(error, Overloaded | Unavailable):
        retry_after = 1.0
    if retry_after is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(retry_after))).encode()))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b'Bearer realm="duly"'))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allowed).encode()))
    if isinstance(error, RangeNotSatisfiable):
        headers.append((b"content-range", f"bytes */{error.size}".encode()))
    if isinstance(error, TooLarge | RequestTimedOut):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    return error.status, body, headers


def from_starlette(error: HTTPException) -> DulyError:
    """What the framework raised, as an error of ours."""
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound("there is nothing at this path; /openapi.json lists what there is")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "GET")
        return MethodNotAllowed(tuple(name.strip() for name in allowed.split(",")))
    return Malformed(error.detail)


def seconds(us: int) -> float:
    """Microseconds as the seconds of asyncio."""
    return us / SECOND
