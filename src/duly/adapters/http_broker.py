"""The part of a broker that a worker cannot do without, over HTTP to any servicer: its beats and its reports.

Nothing can be published or heard this way: what a scheduler would have sent stands in the answers to beats. Servicers
are asked in turn, beginning with the one that answered last, within the time that the caller gives.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Final, TypeVar

import httpx2
import msgspec

from duly.core.errors import Forbidden, InvalidInput, TimedOut, TooLarge, Unauthenticated, Unavailable
from duly.core.instants import SECOND
from duly.core.messages import AnyMessage, Beat, BeatAnswer, Report, ReportAnswer, beats
from duly.core.model import WorkerId
from duly.core.worker_wire import MAX_BODY, ShardNames, WorkerBeat, WorkerReport, encode
from duly.ports import Clock, Handler

LEAST: Final = SECOND  # µs that a request is given, even by a caller who would have waited less for a broker
CONNECTIONS: Final = 8
MAX_ANSWER: Final = 256 * 1024**2  # bytes: a full list of the largest jobs is half of it
QUIET: Final = 10 * SECOND  # between two log lines

T = TypeVar("T")
log = logging.getLogger("duly.broker")


class _Silent:
    """A subscription to which nothing comes."""

    async def stop(self) -> None:
        """Nothing to do."""


class HttpBroker:
    """The Broker port as far as servicers can stand in for it. `counters`: http.requests, .failures, .unsent."""

    def __init__(self, urls: str | Sequence[str], *, token: str | None, clock: Clock) -> None:
        """`urls`: http:// or https:// addresses of servicers, or one text of them separated by commas.

        Raises InvalidInput for an address that is none.
        """
        given = [urls] if isinstance(urls, str) else list(urls)
        self._urls = [url.strip().rstrip("/") for part in given for url in part.split(",") if url.strip()]
        for url in self._urls:
            if not url.startswith(("http://", "https://")):
                raise InvalidInput.at("/server", "a servicer is http://HOST:PORT or https://HOST:PORT")
        if not self._urls:
            raise InvalidInput.at("/server", "name at least one servicer, like http://127.0.0.1:7350")
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self.counters: Counter[str] = Counter({"http.requests": 0, "http.failures": 0, "http.unsent": 0})
        self._clock = clock
        self._client = httpx2.AsyncClient(headers=headers, limits=httpx2.Limits(max_connections=CONNECTIONS))
        self._told = -QUIET
        self._closed = False

    @property
    def connected(self) -> bool:
        """False: nothing that is published arrives."""
        return False

    async def publish(self, subject: str, message: AnyMessage) -> None:
        """Goes nowhere, which is counted."""
        self._check_open()
        self.counters["http.unsent"] += 1

    async def subscribe(self, subject: str, handler: Handler, *, group: str | None = None) -> _Silent:
        """Nothing will come."""
        self._check_open()
        return _Silent()

    async def request(self, subject: str, message: AnyMessage, *, timeout: int) -> AnyMessage:
        """A Beat or a Report to a servicer; waits `LEAST` at least. Unavailable for everything else.

        Raises Unauthenticated and Forbidden as well, when a servicer refuses the token.
        """
        self._check_open()
        until = self._clock.monotonic() + max(timeout, LEAST)
        if isinstance(message, Beat):
            shard = subject.removeprefix(beats(""))
            body = encode(WorkerBeat(shard=shard, beat=message))
            return await self._ask(message.worker.id, "beat", body, BeatAnswer, until)
        if isinstance(message, Report):
            return await self._report(message, until)
        raise Unavailable(f"only beats and reports go to servicers, not {type(message).__name__}")

    async def _report(self, report: Report, until: int) -> ReportAnswer:
        body = encode(WorkerReport(report=report))
        if len(body) <= MAX_BODY or len(report.events) == 1:
            return await self._ask(report.worker, "report", body, ReportAnswer, until)
        middle = len(report.events) // 2
        words: tuple[str, ...] = ()
        for events in (report.events[:middle], report.events[middle:]):
            words += (await self._report(msgspec.structs.replace(report, events=events), until)).words
        return ReportAnswer(words=words)

    async def shards(self, worker: WorkerId, *, timeout: int) -> tuple[str, ...]:
        """The shards that there are, as a servicer names them."""
        self._check_open()
        until = self._clock.monotonic() + max(timeout, LEAST)
        return (await self._ask(worker, "shards", None, ShardNames, until)).shards

    async def close(self) -> None:
        """Let the connections go. Later calls raise Unavailable."""
        self._closed = True
        await self._client.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the broker is closed")

    async def _ask(self, worker: str, what: str, body: bytes | None, shape: type[T], until: int) -> T:
        """The first answer that is one; the servicer that gave it is asked first the next time."""
        problem: Unavailable | TimedOut = Unavailable("no servicer answers")
        for left in range(max(2, len(self._urls)), 0, -1):  # twice: a connection that was kept may be closed
            time = until - self._clock.monotonic()
            if time <= 0:
                problem = TimedOut("no servicer has answered in time")
                break
            url = self._urls[0]
            self.counters["http.requests"] += 1
            try:
                return await self._once(f"{url}/v1/workers/{worker}/{what}", body, shape, time / left / SECOND)
            except httpx2.TimeoutException:
                problem = TimedOut(f"{url} has not answered in time")
            except (httpx2.HTTPError, msgspec.MsgspecError, ValueError, Unavailable, TooLarge) as error:
                problem = Unavailable(f"{url}: {error}")
            self.counters["http.failures"] += 1
            self._tell(f"{what} by HTTP: {problem}")
            self._urls.append(self._urls.pop(0))
        raise problem

    async def _once(self, url: str, body: bytes | None, shape: type[T], seconds: float) -> T:
        method = "GET" if body is None else "POST"
        async with self._client.stream(method, url, content=body, timeout=seconds) as response:
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_ANSWER:
                    raise TooLarge(f"an answer of more than {MAX_ANSWER:,} bytes")
        if response.status_code != 200:
            detail = bytes(content[:300]).decode(errors="replace")
            if response.status_code in (401, 403):
                self._tell(f"the token is refused by {url}: {detail}")
                raise Unauthenticated(detail) if response.status_code == 401 else Forbidden(detail)
            raise Unavailable(f"answers {response.status_code}: {detail}")
        return msgspec.json.decode(content, type=shape)

    def _tell(self, line: str) -> None:
        now = self._clock.monotonic()
        if now - self._told >= QUIET:
            self._told = now
            log.warning("%s", line)
