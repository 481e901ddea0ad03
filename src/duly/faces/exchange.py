"""Requests to one or several servicers: whom to ask, when to ask again, and what an answer means.

    try a servicer ──no connection──▶ the next one ──all tried──▶ pause, again      always: nothing was sent
                   ──429, 503───────▶ the next one, pause as long as they say       always: nothing was done
                   ──broken off─────▶ the next one                                 only calls that may be repeated

A call may be repeated when doing it twice is doing it once: reading, replacing, or creating with an idempotency
key. Tries are bounded by number and the pauses by `MAX_PAUSE`; every wait on the network has a timeout.
"""

from __future__ import annotations

import asyncio
import secrets
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import httpx2

from duly.core import errors
from duly.core.errors import DulyError, OutcomeUnknown, Unavailable
from duly.faces.transport import DEFAULT_URL, BlobSource
from duly.faces.wire_errors import problem_error

TRIES: Final = 4  # rounds over the servicers
FIRST_PAUSE: Final = 0.1  # seconds; doubles each round, drawn between half and the whole
MAX_PAUSE: Final = 5.0
CONNECT_TIMEOUT: Final = 3.0
READ_TIMEOUT: Final = 30.0

Params = list[tuple[str, str | int | float | bool | None]]
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_DICE = secrets.SystemRandom()


class Exchange:
    """Sends to the servicers at `urls`. Usable from any number of event loops, each with its own connections."""

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        token: str | None = None,
        tries: int = TRIES,
        connect: Callable[[], httpx2.AsyncBaseTransport] | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,  # noqa: TID251 - a client has no Clock port
        dice: Callable[[], float] = _DICE.random,
    ) -> None:
        """`connect` makes the transport below httpx2, one per event loop; it, `sleep` and `dice` are for tests."""
        given = [urls] if isinstance(urls, str) else list(urls)
        self.urls = tuple(url.strip().rstrip("/") for part in given for url in part.split(",") if url.strip())
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise errors.InvalidInput(f"not the address of a server: {url!r}; write it like {DEFAULT_URL}")
        if not self.urls:
            raise errors.InvalidInput(f"no server given; write it like {DEFAULT_URL}")
        self._token = token
        self._tries = max(1, tries)
        self._connect = connect
        self._sleep = sleep
        self._dice = dice
        self._favourite = 0  # the servicer that answered last
        self._pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncClient] = (
            weakref.WeakKeyDictionary()
        )

    async def close(self) -> None:
        """Closes the connections of the running loop."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.aclose()

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes | BlobSource | None = None,
        params: Params | None = None,
        headers: dict[str, str] | None = None,
        repeat: bool = True,
        gone: bool = False,
        renew: Callable[[], dict[str, str]] | None = None,
    ) -> tuple[int, bytes]:
        """Status and content of an answer below 300; other answers are raised as what they say.

        `repeat`: it may be sent again when nobody knows whether it was done. `gone`: then 404 means that it was.
        `renew` gives headers for a new try, as long as it is certain that nothing was done.
        """
        pause, doubtful = FIRST_PAUSE, False
        problem: DulyError = Unavailable()
        for turn in range(self._tries):
            wanted = 0.0
            for url in self._order():
                if renew is not None and not doubtful:
                    headers = renew()
                try:
                    return await self._once(url, method, path, body, params, headers or {})
                except errors.NotFound:
                    if gone and doubtful:
                        return 204, b""
                    raise
                except (errors.Overloaded, Unavailable) as error:
                    if isinstance(error, OutcomeUnknown):
                        if not repeat:
                            raise
                        doubtful = True
                    problem = error
                    wanted = max(wanted, error.retry_after or 0.0)
                self._favourite += 1
            if turn + 1 < self._tries:
                drawn = pause * (0.5 + self._dice() / 2)
                await self._sleep(min(max(drawn, wanted), MAX_PAUSE))
                pause *= 2
        raise problem

    @asynccontextmanager
    async def open(
        self,
        path: str,
        *,
        params: Params | None = None,
        headers: dict[str, str] | None = None,
        read_timeout: float = READ_TIMEOUT,
    ) -> AsyncIterator[httpx2.Response]:
        """An open answer to GET from the first servicer that gives one; what breaks later is the caller's to see."""
        problem: DulyError = Unavailable()
        timeout = httpx2.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT, read=read_timeout)
        pool = self._pool()
        for url in self._order():
            try:
                with _translated(url):
                    request = pool.build_request("GET", url + path, params=params, headers=headers, timeout=timeout)
                    response = await pool.send(request, stream=True)
            except Unavailable as error:
                problem = error
                self._favourite += 1
                continue
            try:
                with _translated(url):
                    if not response.is_success:
                        content = await response.aread()
                        raise problem_error(response.status_code, content, response.headers.get("retry-after"))
                    yield response
                return
            finally:
                await response.aclose()
        raise problem

    def _pool(self) -> httpx2.AsyncClient:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            headers = {"Accept": "application/json", "User-Agent": "duly-python"}
            if self._token is not None:
                headers["Authorization"] = f"Bearer {self._token}"
            pool = self._pools[loop] = httpx2.AsyncClient(
                headers=headers,
                timeout=httpx2.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT),
                limits=httpx2.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=4.0),
                transport=None if self._connect is None else self._connect(),
                trust_env=False,  # a proxy for the outside world is none for a scheduler on loopback
            )
        return pool

    def _order(self) -> list[str]:
        start = self._favourite % len(self.urls)
        return [*self.urls[start:], *self.urls[:start]]

    async def _once(
        self,
        url: str,
        method: str,
        path: str,
        body: bytes | BlobSource | None,
        params: Params | None,
        headers: dict[str, str],
    ) -> tuple[int, bytes]:
        if isinstance(body, bytes):
            headers = {"Content-Type": "application/json", **headers}
        content = body() if callable(body) else body
        with _translated(url):
            response = await self._pool().request(method, url + path, content=content, params=params, headers=headers)
        if response.is_success:
            return response.status_code, response.content
        raise problem_error(response.status_code, response.content, response.headers.get("retry-after"))


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turns what the network did into duly's errors: Unavailable if nothing was sent, else OutcomeUnknown."""
    try:
        yield
    except _UNSENT as error:
        raise Unavailable(f"no server answers at {url}", retry_after=None) from error
    except httpx2.TimeoutException as error:
        raise OutcomeUnknown(f"{url} did not answer in time", retry_after=None) from error
    except (httpx2.TransportError, httpx2.DecodingError) as error:
        raise OutcomeUnknown(
            f"the connection to {url} broke off: {str(error) or type(error).__name__}", retry_after=None
        ) from error
    except httpx2.InvalidURL as error:
        raise errors.InvalidInput(f"not an address: {url!r}") from error
