"""What operations answer with: a body, a stream of bytes, or a stream of events, and how each is delivered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final, TypeVar

import msgspec
from anyio.lowlevel import checkpoint

from duly.core.errors import DulyError, Overloaded
from duly.core.views import problem
from duly.faces.http.call import Call
from duly.faces.http.problems import Headers, Internal, seconds

T = TypeVar("T")
_LOG = logging.getLogger("duly.http")
_FAREWELL: Final = 1.0  # seconds that the end of a stream may take to be sent
_GZIP_FROM: Final = 1024
_GZIP_THREAD_FROM: Final = 128 * 1024  # larger bodies are compressed off the loop
_JSON: Final = (b"content-type", b"application/json")
_encode = msgspec.json.Encoder().encode


class Answer:
    """An answer that can deliver itself."""

    __slots__ = ("headers", "status")

    def __init__(self, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers

    async def deliver(self, call: Call) -> None:
        """Send it, start to end."""
        raise NotImplementedError

    async def _start(self, call: Call) -> None:
        await call.send({"type": "http.response.start", "status": self.status, "headers": self.headers})


class Reply(Answer):
    """A whole body. JSON beyond 1 KiB is compressed if the client takes it and no ETag names its bytes."""

    __slots__ = ("body", "compressible")

    def __init__(
        self, body: bytes = b"", *, status: int = 200, headers: Headers | None = None, compressible: bool = False
    ) -> None:
        super().__init__(status, [] if headers is None else headers)
        self.body = body
        self.compressible = compressible

    async def deliver(self, call: Call) -> None:
        body = self.body
        if self.compressible and len(body) > _GZIP_FROM:
            self.headers.append((b"vary", b"accept-encoding"))
            if takes_gzip(call.headers.get(b"accept-encoding", b"")):
                body = await asyncio.to_thread(_gzip, body) if len(body) >= _GZIP_THREAD_FROM else _gzip(body)
                self.headers.append((b"content-encoding", b"gzip"))
        if self.status not in (204, 304):
            self.headers.append((b"content-length", str(len(body)).encode()))
        await self._start(call)
        await call.send({"type": "http.response.body", "body": b"" if call.head else body})


class Streamed(Answer):
    """Bytes as they come. A failure on the way breaks the connection off, so that no part passes for the whole."""

    __slots__ = ("chunks",)

    def __init__(self, chunks: AsyncIterator[bytes], *, headers: Headers, status: int = 200) -> None:
        super().__init__(status, headers)
        self.chunks = chunks

    async def deliver(self, call: Call) -> None:
        await self._start(call)
        if call.head:
            await call.send({"type": "http.response.body"})
            return
        async with _watched(call, stoppable=False) as watch:
            await watch.until_done(self._write(call))

    async def _write(self, call: Call) -> None:
        async with _closing(self.chunks):
            async for chunk in self.chunks:
                await call.send({"type": "http.response.body", "body": chunk, "more_body": True})
        await call.send({"type": "http.response.body"})


class EventStream(Answer):
    """Server-sent events until they end, the client hangs up or the server stops; a comment breaks long silence.

    Nothing is buffered here: a slow client is written to as it reads, and the source decides what it skips; one that
    reads nothing for two heartbeats is let go. Of all kinds of streams a server has `max_streams` at once: beyond,
    Overloaded.
    """

    __slots__ = ("_busy", "_quiet", "_written", "frames")

    def __init__(self, frames: AsyncIterator[bytes]) -> None:
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        super().__init__(200, headers)
        self.frames = frames
        self._quiet = True
        self._busy = False
        self._written = 0  # frames

    async def deliver(self, call: Call) -> None:
        if call.head:
            await self._start(call)
            await call.send({"type": "http.response.body"})
            return
        context = call.context
        async with _closing(self.frames):
            if context.streams >= context.settings.max_streams:
                raise Overloaded(
                    f"this server has {context.streams} event streams open, as many as it may", retry_after=5
                )
            context.streams += 1
            try:
                await self._stream(call)
            finally:
                context.streams -= 1

    async def _stream(self, call: Call) -> None:
        async with _watched(call, stoppable=True) as watch:
            first = watch.begin(_next(self.frames))
            await checkpoint()  # so that the source listens before the client is told that it does
            if first.done():
                first.result()
            await self._start(call)
            await call.send({"type": "http.response.body", "body": b": connected\n\n", "more_body": True})
            writing = watch.begin(self._write(call, first))
            stuck: int | None = None
            while not await watch.settled(writing, seconds(call.context.settings.heartbeat)):
                if self._busy and stuck == self._written:
                    break
                stuck = self._written if self._busy else None
                if self._quiet and not self._busy:
                    await call.send({"type": "http.response.body", "body": b": still here\n\n", "more_body": True})
                self._quiet = True
        with contextlib.suppress(TimeoutError):  # a client that does not read is cut off by the server
            async with asyncio.timeout(_FAREWELL):
                await call.send({"type": "http.response.body"})

    async def _write(self, call: Call, first: asyncio.Task[bytes | None]) -> None:
        try:
            frame = await first
            while frame is not None:
                await self._put(call, frame)
                frame = await _next(self.frames)
        except DulyError as error:
            await self._put(call, _error_frame(error, call))
        except Exception:  # noqa: BLE001 - the boundary: the answer has begun, so the stream itself says that it failed
            _LOG.exception("an event stream failed (request %s)", call.scope["duly.request_id"])
            await self._put(call, _error_frame(Internal(), call))

    async def _put(self, call: Call, frame: bytes) -> None:
        self._busy = True
        await call.send({"type": "http.response.body", "body": frame, "more_body": True})
        self._busy = self._quiet = False
        self._written += 1


def json_reply(value: Any, *, status: int = 200, headers: Headers | None = None) -> Reply:
    """A value as JSON."""
    headers = [_JSON, *(headers or [])]
    compressible = all(name != b"etag" for name, _ in headers)
    return Reply(_encode(value), status=status, headers=headers, compressible=compressible)


def takes_gzip(accept_encoding: bytes) -> bool:
    """True if the header names gzip and does not weigh it 0."""
    for part in accept_encoding.split(b","):
        name, _, weight = part.partition(b";")
        if name.strip().lower() in (b"gzip", b"*"):
            return weight.replace(b" ", b"") not in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000")
    return False


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(level=4, wbits=31)
    return packer.compress(body) + packer.flush()


def _error_frame(error: DulyError, call: Call) -> bytes:
    return b"event: error\ndata: " + _encode(problem(error, request_id=call.scope["duly.request_id"])) + b"\n\n"


async def _next(frames: AsyncIterator[bytes]) -> bytes | None:
    """The next frame, None at the end."""
    return await anext(frames, None)


@contextlib.asynccontextmanager
async def _closing(source: AsyncIterator[bytes]) -> AsyncIterator[None]:
    """Closes a generator when its reader is done with it, cancelled or not."""
    try:
        yield
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


class _Watch:
    """Tells when a client hangs up or the server stops, while something is being written."""

    def __init__(self, call: Call, *, stoppable: bool) -> None:
        self._signs: set[asyncio.Future[Any]] = {asyncio.ensure_future(call.gone())}
        if stoppable:
            self._signs.add(asyncio.ensure_future(call.context.stop.wait()))
        self._work: list[asyncio.Task[Any]] = []

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start something that is cancelled at the latest when the watch ends."""
        task = asyncio.create_task(work)
        self._work.append(task)
        return task

    async def settled(self, writing: asyncio.Task[None], timeout: float | None = None) -> bool:
        """True once it is written or no longer wanted, False after `timeout` seconds. Raises what writing raised."""
        done, _ = await asyncio.wait({writing, *self._signs}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if writing in done:
            writing.result()
        return bool(done)

    async def until_done(self, work: Coroutine[Any, Any, None]) -> None:
        """Write to the end, or until nobody wants it."""
        await self.settled(self.begin(work))

    async def close(self) -> None:
        """Let nothing run on."""
        tasks = [*self._signs, *self._work]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def _watched(call: Call, *, stoppable: bool) -> AsyncIterator[_Watch]:
    watch = _Watch(call, stoppable=stoppable)
    try:
        yield watch
    finally:
        await watch.close()
