"""HTTP tasks: one request at its instant, from the worker's event loop.

- `Idempotency-Key: <run id>` goes with every request, the same for each attempt; a header of the job's own wins.
- A string as body is sent as text, any other JSON value as JSON, null as no body.
- Redirects are not followed: a 3xx is an answer like any other, to be expected or not.
- The worker's own network is out of reach (`outbound/`) unless the worker allows it; proxies from the environment
  are not used; a connection serves one request, so none is shared between hosts.
- The answer's body is kept as the output `response`, up to 1 MiB, also that of an unexpected answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from duly.core.errors import DulyError
from duly.core.model import Failure, HttpTask, Output
from duly.outbound.address import AddressRefused, Resolve, resolve_by_system
from duly.ports import Blobs
from duly.tasks.alarm import Alarm
from duly.tasks.attempt import MAX_DETAIL, Held, Sink, Stage, Tempo
from duly.tasks.executor import microseconds
from duly.tasks.instant import short_of
from duly.version import __version__

if TYPE_CHECKING:
    import httpx2

MAX_BODY: Final = 1 << 20  # bytes of the answer that are kept
KEPT_HEADERS: Final = ("content-type", "content-length", "etag", "last-modified", "location", "retry-after", "date")
_AGAIN: Final = 5_000  # µs between two looks for a free slot
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_EXPECT: Final = re.compile(r"[1-5](?:\d\d|xx)\Z")


class NotSendable(Exception):
    """The request cannot be made, now or later."""


def expected(status: int, expect: str) -> bool:
    """Whether a status is one of "2xx", "200", "200,204,3xx". Raises NotSendable for anything else."""
    patterns = [part.strip().lower() for part in expect.split(",")]
    if not all(_EXPECT.match(pattern) for pattern in patterns):
        raise NotSendable(f"expect {expect!r} is not like 2xx or 200,204,3xx")
    text = str(status)
    return any(text == pattern or (pattern.endswith("xx") and text[0] == pattern[0]) for pattern in patterns)


def request_parts(task: HttpTask, run_id: str) -> tuple[dict[str, str], bytes | None]:
    """Headers and body. Raises NotSendable for headers that would break out of their line."""
    headers = {"user-agent": f"duly/{__version__}", "idempotency-key": run_id, "accept": "*/*"}
    for name, value in task.headers.items():
        if not _HEADER_NAME.match(name):
            raise NotSendable(f"{name!r} is not a header name")
        if _CONTROL.search(value):
            raise NotSendable(f"the value of header {name!r} has line breaks or control characters")
        headers[name.lower()] = value
    body = msgspec.json.decode(task.body)
    if body is None:
        return headers, None
    if isinstance(body, str):
        headers.setdefault("content-type", "text/plain; charset=utf-8")
        return headers, body.encode()
    headers.setdefault("content-type", "application/json")
    return headers, bytes(task.body)


class _Answer:
    """What came back; the body only as far as it is kept."""

    def __init__(self, status: int, reason: str, headers: dict[str, str]) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        self.body = b""
        self.truncated = False

    async def read(self, chunks: AsyncIterator[bytes]) -> None:
        """Take the body up to `MAX_BODY`."""
        body = bytearray()
        async for chunk in chunks:
            body += chunk
            if len(body) > MAX_BODY:
                self.truncated = True
                break
        self.body = bytes(body[:MAX_BODY])

    def result(self) -> bytes:
        """The run's result, as JSON."""
        kept = {name: self.headers[name] for name in KEPT_HEADERS if name in self.headers}
        return msgspec.json.encode({"status": self.status, "headers": kept, "truncated": self.truncated})


class HttpRunner:
    """Runs HTTP tasks."""

    def __init__(
        self,
        sink: Sink,
        blobs: Blobs,
        stage: Stage,
        *,
        slots: int,
        tempo: Tempo,
        resolve: Resolve = resolve_by_system,
    ) -> None:
        self._sink = sink
        self._blobs = blobs
        self._allow_private = stage.allow_private_addresses
        self._shares_clock = stage.shares_clock
        self._slots = slots
        self._tempo = tempo
        self._resolve = resolve
        self._client: asyncio.Task[httpx2.AsyncClient] | None = None
        self._waiting: dict[int, Held] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._serial = 0

    async def start(self) -> None:
        """Get ready. The client is made when the first task comes: its library takes a while to import."""
        self._alarm = Alarm()

    def stage(self, batch: Sequence[Held]) -> None:
        """Take attempts."""
        if self._client is None:
            self._client = asyncio.get_running_loop().create_task(self._make_client())
        for held in batch:
            self._serial += 1
            held.ticket = self._serial
            self._waiting[held.ticket] = held
            self._alarm.at(held.due, lambda held=held: self._begin(held))  # type: ignore[misc]  # a default, not an argument

    def stop(self, held: Held, *, unless_started: bool = False) -> None:
        """End an attempt."""
        if self._waiting.pop(held.ticket, None) is not None:
            self._sink.withdrawn(held)
        elif unless_started:
            held.ending = None
        elif held.ticket in self._tasks:
            self._tasks[held.ticket].cancel()

    def log_path(self, held: Held, stream: str) -> str | None:
        """Nothing is captured of a request."""
        return None

    def occupied(self) -> int:
        """None of the process lane's slots."""
        return 0

    async def close(self) -> None:
        """Break off what is under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await (await self._client).aclose()
        self._alarm.close()

    # -- one request ----------------------------------------------------------------------------------------

    def _begin(self, held: Held) -> None:
        if held.ticket not in self._waiting:
            return
        now = microseconds()
        if self._shares_clock and (left := short_of(held.run.due_at)):
            self._alarm.at(now + left, lambda: self._begin(held))
            return
        if len(self._tasks) >= self._slots:
            if held.too_late(now):
                del self._waiting[held.ticket]
                self._sink.given_back(held, "no_capacity")
            else:
                held.cause = "no_capacity"
                self._alarm.at(now + _AGAIN, lambda: self._begin(held))
            return
        del self._waiting[held.ticket]
        task = asyncio.get_running_loop().create_task(self._run(held))
        self._tasks[held.ticket] = task
        task.add_done_callback(lambda task: self._done(task, held))

    def _done(self, task: asyncio.Task[None], held: Held) -> None:
        """Forget it; one that was cancelled before its first step could not say so itself."""
        del self._tasks[held.ticket]
        if task.cancelled():
            self._sink.withdrawn(held)

    async def _run(self, held: Held) -> None:
        started = microseconds()
        self._sink.started(held, started)
        task = held.job.task
        assert isinstance(task, HttpTask)
        try:
            answer = await self._exchange(task, held.run.id)
            good = expected(answer.status, task.expect)
            outputs = await self._keep(answer)
        except (NotSendable, AddressRefused) as error:
            self._fail(held, started, Failure(kind="input", message=str(error)), retryable=False)
        except asyncio.CancelledError:
            self._fail(held, started, Failure(kind="http", message="broken off"))
        except DulyError as error:
            self._fail(held, started, Failure(kind="http", message=f"its answer could not be stored: {error}"))
        except Exception as error:  # noqa: BLE001 - every way in which a network can fail
            message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self._fail(held, started, Failure(kind="http", message=message[:2_000]))
        else:
            finished = microseconds()
            if good:
                self._sink.succeeded(held, started, finished, answer.result(), outputs=outputs)
            else:
                self._fail(held, started, _unexpected(answer, task.expect), _again(answer.status), outputs)
        finally:
            self._tempo.finished(microseconds() - started, 1)

    def _fail(
        self,
        held: Held,
        started: int,
        error: Failure,
        retryable: bool = True,
        outputs: tuple[Output, ...] = (),
    ) -> None:
        self._sink.failed(held, microseconds(), error, started=started, retryable=retryable, outputs=outputs)

    async def _exchange(self, task: HttpTask, run_id: str) -> _Answer:
        import httpx2

        assert self._client is not None
        client = await self._client
        headers, body = request_parts(task, run_id)
        expected(200, task.expect)  # a bad pattern is refused before anything is sent
        try:
            request = client.build_request(task.method, task.url, headers=headers, content=body)
        except (httpx2.InvalidURL, ValueError) as error:
            raise NotSendable(f"{task.url!r} cannot be requested: {error}") from error
        response = await client.send(request, stream=True)
        try:
            answer = _Answer(response.status_code, response.reason_phrase, dict(response.headers))
            await answer.read(response.aiter_bytes(1 << 16))
        finally:
            await response.aclose()
        return answer

    async def _make_client(self) -> httpx2.AsyncClient:
        def make() -> Any:
            import httpx2

            from duly.outbound.transport import CheckedTransport

            transport = CheckedTransport(
                allow_private=self._allow_private,
                mend="start the worker with allow_private_addresses to let jobs reach it",
                resolve=self._resolve,
            )
            return httpx2.AsyncClient(
                transport=transport, timeout=httpx2.Timeout(None), follow_redirects=False, trust_env=False
            )

        client: httpx2.AsyncClient = await asyncio.to_thread(make)
        return client

    async def _keep(self, answer: _Answer) -> tuple[Output, ...]:
        if not answer.body:
            return ()
        digest, size = await self._blobs.put(answer.body, limit=MAX_BODY)
        return (Output(path="response", size=size, digest=digest),)


def _again(status: int) -> bool:
    """Whether another try may be answered otherwise."""
    return status >= 500 or status in (408, 425, 429)


def _unexpected(answer: _Answer, expect: str) -> Failure:
    reason = f" {answer.reason}" if answer.reason else ""
    detail = answer.body[-MAX_DETAIL:].decode("utf-8", "replace")
    return Failure(kind="http", message=f"answered {answer.status}{reason}, expected {expect}", detail=detail)
