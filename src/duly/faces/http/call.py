"""One request as an operation sees it: who asks, its parameters and headers, and its body within limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final, TypeVar

from starlette.types import Message, Receive, Scope, Send

from duly.core.definition import MAX_JOB_BYTES, decode
from duly.core.errors import Malformed, TooLarge
from duly.core.tokens import Principal
from duly.faces.http.problems import RequestTimedOut, UnsupportedMediaType, seconds
from duly.faces.http.query import Query
from duly.faces.http.settings import Context

T = TypeVar("T")
Q = TypeVar("Q", bound=Query)

_PACE: Final = 16 * 1024  # bytes per second that a body must keep up beyond the first patience


class ClientGone(Exception):
    """The client hung up; there is nobody to answer."""


class Call:
    """One request. Header names are lower case; of a repeated header the last one counts."""

    __slots__ = ("_query", "_receive", "_send", "context", "headers", "namespace", "path", "principal", "scope")

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        context: Context,
        principal: Principal | None,
        namespace: str | None,
        query: Query,
    ) -> None:
        self.scope = scope
        self.context = context
        self.principal = principal
        self.namespace = namespace
        self.path: dict[str, str] = scope["path_params"]
        self.headers: dict[bytes, bytes] = scope["duly.headers"]
        self._query = query
        self._receive = receive
        self._send = send

    @property
    def one_namespace(self) -> str:
        """The namespace of an operation that makes something."""
        assert self.namespace is not None
        return self.namespace

    @property
    def by(self) -> str:
        """The key id of the caller's token, "" for one without a token."""
        return "" if self.principal is None else self.principal.key_id

    @property
    def head(self) -> bool:
        """True for HEAD: headers are wanted, no content."""
        return bool(self.scope["method"] == "HEAD")

    def query(self, shape: type[Q]) -> Q:
        """The query parameters, in the shape that the operation declares."""
        assert isinstance(self._query, shape)
        return self._query

    def header(self, name: bytes) -> str | None:
        """A header's value, None if it was not sent."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    async def send(self, message: Message) -> None:
        """Pass an ASGI message to the server."""
        await self._send(message)

    # -- body -----------------------------------------------------------------------------------------------

    @property
    def media_type(self) -> str:
        """The content type in lower case without its parameters, "" if none was sent."""
        return (self.header(b"content-type") or "").partition(";")[0].strip().lower()

    async def json(self, shape: type[T], *, limit: int = MAX_JOB_BYTES, also: tuple[str, ...] = ()) -> T:
        """The JSON body as `shape`; `also` names media types that are taken besides application/json.

        Raises UnsupportedMediaType, TooLarge, Malformed, InvalidInput.
        """
        media_type = self.media_type
        if media_type != "application/json" and media_type not in also:
            wanted = " or ".join(("application/json", *also))
            raise UnsupportedMediaType(f"send {wanted}, not {media_type[:80] or 'a body without Content-Type'!r}")
        return decode(await self.body(limit), shape, limit=limit)

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises TooLarge without reading further than `limit` bytes, RequestTimedOut, ClientGone."""
        self._check_length(limit)
        started = asyncio.get_running_loop().time()
        chunk, more = await self._pull(started, 0, limit)
        if not more:
            return chunk
        body = bytearray(chunk)
        while more:
            chunk, more = await self._pull(started, len(body), limit)
            body += chunk
        return bytes(body)

    async def chunks(self, limit: int) -> AsyncIterator[bytes]:
        """The body as it comes. Raises as `body` does."""
        self._check_length(limit)
        started = asyncio.get_running_loop().time()
        size, more = 0, True
        while more:
            chunk, more = await self._pull(started, size, limit)
            size += len(chunk)
            if chunk:
                yield chunk

    async def _pull(self, started: float, size: int, limit: int) -> tuple[bytes, bool]:
        """The next bytes of a body that began to be read at `started` and had `size` so far; True if more come."""
        try:
            async with asyncio.timeout_at(started + seconds(self.context.settings.patience) + size / _PACE):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimedOut from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        if size + len(chunk) > limit:
            raise TooLarge(f"the body has more than the {limit:,} bytes allowed here")
        return chunk, message.get("more_body", False)

    def _check_length(self, limit: int) -> None:
        length = self.headers.get(b"content-length")
        if length is None:
            return
        if not length.isdigit():
            raise Malformed("Content-Length is a number")
        if int(length[:19]) > limit:
            raise TooLarge(f"the body has {int(length[:19]):,} bytes, more than the {limit:,} allowed here")

    # -- the client's patience ------------------------------------------------------------------------------

    async def gone(self) -> None:
        """Returns when the client has hung up."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of `work`; None if the client hung up or the server stops first (`work` is then cancelled)."""
        task = asyncio.ensure_future(work)
        watch = [asyncio.ensure_future(self.gone()), asyncio.ensure_future(self.context.stop.wait())]
        try:
            await asyncio.wait([task, *watch], return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for each in (task, *watch):
                each.cancel()
            await asyncio.gather(task, *watch, return_exceptions=True)
