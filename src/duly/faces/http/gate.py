"""The gate around everything: request ids, hosts, origins, and every error as a problem.

One plain ASGI wrapper, because each layer of middleware costs every request.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import secrets
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from duly.core.errors import DulyError, Forbidden, Malformed, TooLarge
from duly.faces.http.call import ClientGone
from duly.faces.http.problems import Internal, Misdirected, answer_to
from duly.faces.http.settings import Context

_LOG = logging.getLogger("duly.http")
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_LINGER: Final = 5.0  # seconds,
_SILENCE: Final = 1.0  # seconds without a byte, after which it sends no more; and
_DISCARDED: Final = 256 * 1024 * 1024  # bytes, in which a client that still sends may come to read its refusal
_NO_SNIFF: Final = (b"x-content-type-options", b"nosniff")


class Gate:
    """Wraps the routes. What lies within may raise; clients get problem+json, the log gets what was unexpected."""

    def __init__(self, app: ASGIApp, *, context: Context) -> None:
        self._app = app
        self._context = context
        self._prefix = secrets.token_hex(5)
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            request_id = given.decode()
        else:
            request_id = f"{self._prefix}-{next(self._numbers):x}"
        scope["duly.headers"] = headers
        scope["duly.request_id"] = request_id
        id_header = (b"x-request-id", request_id.encode())
        status = 0
        unread = True

        async def received() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), id_header, _NO_SNIFF]
            await send(message)

        try:
            self._check_doors(scope["method"], headers)
            await self._app(scope, received, stamped)
        except ClientGone:
            return
        except RecursionError:
            await self._refuse(Malformed("nested too deeply"), scope, stamped, started=status != 0)
        except DulyError as error:
            await self._refuse(error, scope, stamped, started=status != 0, rest=receive if unread else None)
        except Exception:  # noqa: BLE001 - the boundary: whatever goes wrong within is a 500 with its id in the log
            _LOG.exception("request %s failed", request_id)
            await self._refuse(Internal(), scope, stamped, started=status != 0)
        finally:
            self._context.telemetry.request(scope.get("duly.operation", "none"), status)

    def _check_doors(self, method: str, headers: dict[bytes, bytes]) -> None:
        host = _text(headers.get(b"host"))
        if not self._context.doors.answers_to(host):
            raise Misdirected
        if method not in _SAFE and not self._context.doors.may_change(
            _text(headers.get(b"origin")), _text(headers.get(b"sec-fetch-site")), host
        ):
            raise Forbidden("a page of another origin may not change anything here")

    async def _refuse(
        self, error: DulyError, scope: Scope, send: Send, *, started: bool, rest: Receive | None = None
    ) -> None:
        """Answer with the problem; once an answer has begun, only breaking it off can say that it failed.

        `rest` gives what is unread of a body that was too large: see `_discard`.
        """
        if started:
            _LOG.warning("request %s broke off: %s", scope["duly.request_id"], error.code)
            return
        status, body, headers = answer_to(error, scope["duly.request_id"])
        await send({"type": "http.response.start", "status": status, "headers": headers})
        content = b"" if scope["method"] == "HEAD" else body
        if rest is None or not isinstance(error, TooLarge) or b"expect" in scope["duly.headers"]:
            await send({"type": "http.response.body", "body": content})
            return
        await send({"type": "http.response.body", "body": content, "more_body": True})
        await _discard(rest)
        await send({"type": "http.response.body", "body": b""})


async def _discard(rest: Receive) -> None:
    """Read on for a while after the answer.

    To close a connection with bytes unread is to reset it, and a reset may overtake the answer: the client would
    see that instead of a 413.
    """
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER):
            while size < _DISCARDED:
                async with asyncio.timeout(_SILENCE):
                    message = await rest()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                size += len(message.get("body", b""))


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
