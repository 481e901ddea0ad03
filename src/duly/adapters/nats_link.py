"""One connection to a NATS cluster that is always there again: made, watched and replaced while the process lives.

    connecting ──▶ up ──lost (closed, silent, told to leave)──▶ pause ──▶ connecting, to the next server that is known

A client object of nats-py lives as long as one connection does, because its own reconnecting keeps messages that have
gone stale, gives up for good after some errors of the server, and can wait for ever on a peer that takes nothing. What
cannot go now is not kept: the sender is told, and counts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from duly.adapters.nats_wire import INLINE
from duly.core.errors import InvalidInput
from duly.core.instants import MILLISECOND, SECOND
from duly.ports import Clock

UNSENT: Final = 1024**2  # bytes that wait for the socket before a publisher is held up, briefly
UNSENT_AT_MOST: Final = 8 * 1024**2  # beyond this nothing more is taken
HELD_UP: Final = 0.25  # seconds that a publisher waits for a socket that takes nothing
PINGS: Final = 2  # seconds between two; two unanswered mean that the server is gone
CONNECT_WITHIN: Final = 3  # seconds for one try
DISCARD_WITHIN: Final = 1  # seconds
PAUSE_FIRST: Final = 50 * MILLISECOND  # after a loss or a failed try: drawn from once to three times this, doubling
PAUSE_LAST: Final = SECOND
SERVERS: Final = 64  # servers that are known, those that the cluster tells of included
QUIET: Final = 10 * SECOND  # between two log lines of one kind

log = logging.getLogger("duly.broker")


class NatsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach the servers. One of user and password, token, or a credentials file; user:password@ in a server's
    address will do as well. `keys`: the first signs messages, all are believed. `prefix` keeps several dulys apart."""

    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: str | None = None  # path of a NATS credentials file (JWT and seed)
    ca: str | None = None  # path of the certificates that servers are checked by; None: the system's
    keys: tuple[bytes, ...] = ()
    prefix: str = "duly"
    queue: int = 10_000  # messages that wait for one subscriber
    inline: int = INLINE  # bytes of a body beyond which it goes to the blob store


class Login(msgspec.Struct, frozen=True):
    """What a server is shown."""

    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: str | None = None


class Inlet(asyncio.Future[Msg]):
    """Takes a subscription's messages as they are read: a future that is never done, and may be set again and again.

    It spares nats-py's own queue and task for each subscription, which would have to be tidied up after each loss.
    """

    def __init__(self, take: Callable[[Msg], None]) -> None:
        super().__init__()
        self._take = take

    def set_result(self, result: Msg, /) -> None:
        self._take(result)


class NatsLink:
    """The connection. `carry` is awaited with every new client, to subscribe; `dropped` is called after each loss."""

    def __init__(
        self,
        servers: Sequence[str],
        options: NatsOptions,
        *,
        name: str,
        clock: Clock,
        dice: Callable[[], float],
        carry: Callable[[Client], Awaitable[None]],
        dropped: Callable[[], None],
    ) -> None:
        """Raises InvalidInput for an address that is none, and for credentials or certificates that cannot be read."""
        self.client: Client | None = None
        self.up = asyncio.Event()  # set while connected, with everything subscribed
        self.connects = 0
        self._name = name
        self._clock = clock
        self._dice = dice
        self._carry = carry
        self._dropped = dropped
        self._servers, self._login = addresses(servers, options)
        secure = options.ca is not None or any(server.startswith("tls:") for server in self._servers)
        self._tls = _tls(options.ca) if secure else None
        self._lost = asyncio.Event()  # of the client in hand
        self._closing = asyncio.Event()
        self._stuck = False
        self._supervisor: asyncio.Task[None] | None = None
        self._round_trips: set[asyncio.Task[Any]] = set()
        self._told: dict[str, tuple[int, int]] = {}  # kind of log line → when it was last written, and since then

    async def start(self, within: int) -> bool:
        """Begin; True if connected within so many µs."""
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._keep_up(), name=f"broker of {self._name}")
        return await self._clock.wait(self.up, within)

    async def close(self) -> None:
        """Write out what was sent, and let go."""
        if self.client is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DISCARD_WITHIN):
                    await self.synced(self.client)
        self._closing.set()
        self._lost.set()
        if self._supervisor is not None:
            if self.client is None:
                self._supervisor.cancel()
            await asyncio.wait([self._supervisor])

    async def _keep_up(self) -> None:
        tries = 0
        while not self._closing.is_set():
            server = self._servers[0]
            client = await self._connect(server)
            if client is not None:
                tries = 0
                await self._hold(client, server)
            self._servers.append(self._servers.pop(0))
            pause = min(PAUSE_FIRST << min(tries, 8), PAUSE_LAST)
            tries += 1
            await self._clock.wait(self._closing, round(pause * (1 + 2 * self._dice())))

    async def _connect(self, server: str) -> Client | None:
        client = Client()
        lost = self._lost = asyncio.Event()

        async def on_error(error: Exception) -> None:
            if isinstance(error, nats.errors.FlushTimeoutError):
                self._stuck = True
            elif isinstance(error, nats.errors.UnexpectedEOF | OSError):
                lost.set()
            self.tell("connection", "broker at %s: %s", server, _text(error))

        async def on_loss() -> None:
            lost.set()

        connected = False
        login = self._login
        try:
            async with asyncio.timeout(CONNECT_WITHIN):
                await client.connect(
                    [server],
                    name=self._name,
                    error_cb=on_error,
                    disconnected_cb=on_loss,
                    closed_cb=on_loss,
                    lame_duck_mode_cb=on_loss,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=CONNECT_WITHIN,
                    ping_interval=PINGS,
                    max_outstanding_pings=2,
                    pending_size=UNSENT,
                    flush_timeout=HELD_UP,
                    user=login.user,
                    password=login.password,
                    token=login.token,
                    user_credentials=login.credentials,
                    tls=self._tls,
                )
            connected = client.is_connected
        except Exception as error:  # noqa: BLE001 - whatever a server or a file says, the next try may go well
            self.tell("connect", "no broker at %s: %s", server, _text(error))
        finally:
            if not connected:
                await _discard(client)
        if not connected:
            return None
        lost.clear()  # the first of nats-py's two tries may have failed
        return client

    async def _hold(self, client: Client, server: str) -> None:
        """Use this client until it is lost or the link is closed."""
        lost = self._lost
        self._stuck = False
        try:
            self.client = client
            await self._carry(client)
            await self.synced(client)
            if client.is_connected and not lost.is_set():
                self.connects += 1
                log.info("connected to the broker at %s", server)
                self.up.set()
            self._learn(client)
            while client.is_connected and not await self._clock.wait(lost, SECOND):
                self._learn(client)
        except (nats.errors.Error, OSError) as error:
            self.tell("connection", "the connection to the broker broke: %s", _text(error))
        finally:
            self.up.clear()
            self.client = None
            for trip in list(self._round_trips):
                trip.cancel()
            self._dropped()
            await _discard(client)
        if not self._closing.is_set():
            log.warning("the connection to the broker at %s was lost", server)

    def _learn(self, client: Client) -> None:
        """Remember the servers that the cluster tells of."""
        scheme = "tls" if self._tls is not None else "nats"
        for found in client.discovered_servers:
            address = f"{scheme}://{found.netloc}"
            if address not in self._servers and len(self._servers) < SERVERS:
                self._servers.append(address)

    async def synced(self, client: Client) -> None:
        """Returns when the server has seen all that was sent before, or the connection is lost.

        The round trip is never cancelled on a living connection: nats-py could not bear its answer then.
        """
        trip = asyncio.ensure_future(client.flush())
        self._round_trips.add(trip)
        trip.add_done_callback(self._came_back)
        lost = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait([trip, lost], return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()

    def _came_back(self, trip: asyncio.Task[Any]) -> None:
        self._round_trips.discard(trip)
        if not trip.cancelled() and (error := trip.exception()) is not None:
            self.tell("connection", "the broker did not answer: %s", _text(error))

    async def send(self, client: Client, topic: str, payload: bytes, reply: str) -> bool:
        """Hand it to the socket; False if that cannot be. Waits `HELD_UP` at most."""
        waiting = client.pending_data_size
        if waiting <= UNSENT:
            self._stuck = False
        elif self._stuck or waiting > UNSENT_AT_MOST:
            self.tell("unsent", "the broker takes nothing; a message for %s was dropped", topic)
            return False
        try:
            await client.publish(topic, payload, reply=reply)
        except (nats.errors.Error, OSError) as error:
            self.tell("unsent", "a message for %s was dropped: %s", topic, _text(error))
            return False
        return True

    async def attach(self, client: Client, topic: str, group: str, inlet: Inlet) -> Subscription | None:
        """Subscribe on this client; None if it is lost, so that the next one will carry it."""
        try:
            return await client.subscribe(topic, queue=group, future=inlet)
        except (nats.errors.Error, OSError) as error:
            log.debug("%s: not subscribed yet: %s", topic, _text(error))
            return None

    async def detach(self, client: Client, carried: Subscription) -> None:
        """End a subscription, if the client that carries it is there still."""
        if client is self.client:
            try:
                await carried.unsubscribe()
            except (nats.errors.Error, OSError) as error:
                log.debug("%s: not unsubscribed: %s", carried.subject, _text(error))

    def tell(self, kind: str, line: str, *details: object) -> None:
        """Log a line, but no kind of line more often than once in `QUIET`."""
        now = self._clock.monotonic()
        last, silent = self._told.get(kind, (now - QUIET, 0))
        if now - last < QUIET:
            self._told[kind] = (last, silent + 1)
            return
        self._told[kind] = (now, 0)
        if silent:
            line = f"{line} (and {silent} more like this before)"
        log.warning(line, *details)


def addresses(servers: Sequence[str], options: NatsOptions) -> tuple[list[str], Login]:
    """Addresses without logins, and the login: what the options say, else what an address says."""
    if not servers:
        raise InvalidInput.at("/nats", "name at least one NATS server, like nats://127.0.0.1:4222")
    login = Login(options.user, options.password, options.token, options.credentials)
    if login.credentials is not None:
        _check_credentials(login.credentials)
    found: dict[str, None] = {}
    for server in servers:
        try:
            parts = urlsplit(server)
            host, port = parts.hostname, parts.port or 4222
        except ValueError:
            raise InvalidInput.at("/nats", "a NATS server is nats://HOST:PORT or tls://HOST:PORT") from None
        if host is None or parts.scheme not in ("nats", "tls") or parts.path not in ("", "/"):
            raise InvalidInput.at("/nats", "a NATS server is nats://HOST:PORT or tls://HOST:PORT")
        authority = f"[{host}]" if ":" in host else host
        found[f"{parts.scheme}://{authority}:{port}"] = None
        if parts.username and login == Login():
            login = Login(parts.username, parts.password) if parts.password else Login(token=parts.username)
    return list(found), login


def _check_credentials(path: str) -> None:
    if find_spec("nkeys") is None:
        raise InvalidInput.at(
            "/nats_credentials", "credentials files need the package nkeys: pip install duly[cluster]"
        )
    try:
        Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput.at("/nats_credentials", f"{path}: {error.strerror}") from None


def _tls(ca: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise InvalidInput.at("/nats_ca", f"{ca}: {error.strerror or error}") from None


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


async def _discard(client: Client) -> None:
    """Let a client go, whatever state it is in."""
    try:
        async with asyncio.timeout(DISCARD_WITHIN):
            await client.close()
    except Exception as error:  # noqa: BLE001 - it is of no use any more, and must not take the next one with it
        log.debug("a broker's connection was not closed cleanly: %s", _text(error))
    transport = getattr(client, "_transport", None)
    writer = getattr(transport, "_io_writer", None)
    if writer is not None:  # nats-py leaves the socket open when closing fails half way
        writer.transport.abort()
