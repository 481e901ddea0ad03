"""One role, one process: what `duly servicer`, `duly scheduler` and `duly worker` are, until a signal.

servicer    HTTP face ─ Servicer ─ stores, broker, blobs           any number, behind a load balancer or one socket
scheduler   probes ──── Scheduler of each shard, Keeper ─ the same  leads some shards, stands by for the others
worker      probes ──── Worker ─ broker, blobs, servicers over HTTP  holds no credentials of a database

Each tells `started` once it is up: with its URL, or with its name.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import random  # noqa: TID251 - chance comes in here, as in embedded.py
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from duly.adapters.http_broker import HttpBroker
from duly.adapters.system_clock import SystemClock
from duly.boot.apps import register_apps
from duly.boot.embedded import worker_settings
from duly.boot.parts import open_blobs, open_broker, open_stores, open_worker_broker
from duly.boot.serving import given_listeners, host_of, listen, serving, signals, url_of
from duly.boot.webhooks import make_webhooks, watch_overdue
from duly.core.errors import DulyError, InvalidInput, TimedOut, Unavailable
from duly.core.instants import MILLISECOND, SECOND
from duly.core.messages import NOTICES
from duly.core.model import WorkerId
from duly.faces.probes import create_probes
from duly.faces.transport import Transport
from duly.ports import Clock, Store
from duly.roles.events import all_of
from duly.roles.herald import Herald
from duly.roles.keeper import Keeper
from duly.roles.scheduler import Scheduler, SchedulerSettings
from duly.roles.scratch import Scratch
from duly.roles.servicer import Servicer
from duly.roles.shard_balance import ShardBalance
from duly.roles.worker import Worker
from duly.settings import Settings
from duly.tasks.registry import FunctionRegistry
from duly.telemetry import Telemetry

log = logging.getLogger("duly.boot")

Told = dict[str, Any]
Started = Callable[[Told], None]

TOKENS: Final = "tokens.json"
FIRST_PAUSE: Final = 50 * MILLISECOND  # between two tries to reach a servicer for the first time; doubles
LAST_PAUSE: Final = 2 * SECOND


async def run_servicer(settings: Settings, *, started: Started) -> None:
    """Serve the API. Takes listening sockets from whoever started this process, as systemd does: besides its own one,
    or as that if one of them has the port of the settings.

    Raises InvalidInput when the address would be open to others without a token.
    """
    from duly.faces.api import create_app
    from duly.faces.http.access import Access, bind_problem, hosts_for, is_loopback
    from duly.faces.http.settings import HttpSettings
    from duly.faces.pages.dashboard import dashboard
    from duly.faces.pages.sessions import KEY_FILE, session_key
    from duly.faces.tokens import TokenFile

    clock = SystemClock()
    tokens = TokenFile(Path(settings.dir) / TOKENS, monotonic=clock.monotonic)
    given = given_listeners()
    host = next((name for name in map(host_of, given) if not is_loopback(name)), settings.host)
    for name in {host, settings.host}:
        problem = bind_problem(name, tokens)
        if problem:
            raise InvalidInput.at("/host", problem)
    telemetry = Telemetry()
    asked = asyncio.Event()
    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        is_given = settings.port in [listener.getsockname()[1] for listener in given]
        own = [] if is_given else [listen(settings.host, settings.port)]
        listeners = [stack.enter_context(listener) for listener in (*own, *given)]
        stack.enter_context(signals(asked))
        servicer = (await _colleague(stack, settings, clock, telemetry)).servicer
        key = _shared_session_key(settings) or session_key(Path(settings.dir) / KEY_FILE, entropy=secrets.token_bytes)
        app = create_app(
            servicer,
            access=Access(tokens, clock=clock),
            telemetry=telemetry,
            settings=HttpSettings(
                hosts=hosts_for(host, tuple(settings.allowed_hosts)), max_blob_bytes=settings.max_blob_bytes
            ),
            stop=stop,
            pages=dashboard(key=key, wall=clock.wall, entropy=secrets.token_bytes),
        )
        async with serving(app, listeners, clock) as face:
            try:
                started({"url": url_of(listeners[0], settings.host if own else None)})
                await face.until(asked)
                log.info("draining")
            finally:
                stop.set()
            await servicer.drain()


def _shared_session_key(settings: Settings) -> bytes | None:
    """What all servicers with the cluster's key sign sessions with, so that each takes those of the others."""
    return (
        hmac.digest(settings.cluster_key[0].encode(), b"duly dashboard session", "sha256")
        if settings.cluster_key
        else None
    )


class Colleague(NamedTuple):
    """A servicer without a face, and what it stands on."""

    clock: Clock
    store: Store
    servicer: Servicer


@contextlib.asynccontextmanager
async def colleague(settings: Settings) -> AsyncIterator[Colleague]:
    """One more servicer of a cluster, in this process."""
    async with contextlib.AsyncExitStack() as stack:
        yield await _colleague(stack, settings, SystemClock(), Telemetry())


async def _colleague(
    stack: contextlib.AsyncExitStack, settings: Settings, clock: Clock, telemetry: Telemetry
) -> Colleague:
    name = _name(settings)
    store = await open_stores(stack, settings, clock)
    blobs = open_blobs(settings, clock)
    broker = await open_broker(stack, settings, clock, blobs, name, telemetry)
    servicer = Servicer(
        name=name,
        store=store,
        broker=broker,
        blobs=blobs,
        clock=clock,
        entropy=secrets.token_bytes,
        dice=random.random,
        telemetry=telemetry,
        max_blob_bytes=settings.max_blob_bytes,
        alone=False,
        lease=settings.lease,
    )
    webhooks = make_webhooks(settings, clock, telemetry)
    if webhooks is not None:
        stack.push_async_callback(webhooks.stop)
        stack.push_async_callback(webhooks.drain)
        await webhooks.start()
    servicer.send_webhooks(webhooks)
    stack.push_async_callback(servicer.stop)
    await servicer.start()
    return Colleague(clock, store, servicer)


async def run_scheduler(settings: Settings, *, started: Started) -> None:
    """Lead shards and stand by for the others; remove what is kept no longer."""
    clock = SystemClock()
    telemetry = Telemetry()
    name = _name(settings)
    async with contextlib.AsyncExitStack() as stack:
        asked = asyncio.Event()
        stack.enter_context(signals(asked))
        store = await open_stores(stack, settings, clock)
        blobs = open_blobs(settings, clock)
        broker = await open_broker(stack, settings, clock, blobs, name, telemetry)
        webhooks = make_webhooks(settings, clock, telemetry)
        if webhooks is not None:
            stack.push_async_callback(webhooks.stop)
            stack.push_async_callback(webhooks.drain)
            await webhooks.start()
        herald = Herald(broker=broker, clock=clock, origin=secrets.token_hex(4))
        stack.push_async_callback((await broker.subscribe(NOTICES, herald.hear)).stop)
        stack.push_async_callback(herald.stop)
        await herald.start()
        schedulers = [
            Scheduler(
                shard=shard,
                owner=name,
                store=store,
                broker=broker,
                clock=clock,
                telemetry=telemetry,
                dice=random.random,
                settings=SchedulerSettings(lead=settings.lead, window=settings.look_ahead, worker_ttl=settings.lease),
                committed=herald.committed if webhooks is None else all_of(herald.committed, webhooks.committed),
            )
            for shard in store.shards
        ]
        balance = ShardBalance(name=name, schedulers=schedulers, broker=broker, clock=clock)
        keeper = Keeper(
            store=store,
            blobs=blobs,
            clock=clock,
            interval=settings.retention_interval,
            may_tidy=lambda: balance.first,  # one of them all
        )
        for part in (*schedulers, *watch_overdue(webhooks, schedulers, store, clock), balance, keeper):
            stack.push_async_callback(part.stop)
            await part.start()
        async with _probed(settings, clock, list, telemetry) as told:
            started({"name": name, **told})
            await asked.wait()
            log.info("draining")
            await balance.drain()


async def run_worker(settings: Settings, *, started: Started) -> None:
    """Take runs and run them. Learns from the servicers which shards there are."""
    from duly.faces.http_transport import HttpTransport

    clock = SystemClock()
    telemetry = Telemetry()
    name = _name(settings)
    async with contextlib.AsyncExitStack() as stack:
        asked = asyncio.Event()
        stack.enter_context(signals(asked))
        scratch = Path(settings.dir, "scratch")
        cache = Scratch(str(scratch))
        stack.callback(cache.close)
        blobs = open_blobs(settings, clock, cache=Path(cache.open()) / "fetched")
        broker = await open_worker_broker(stack, settings, clock, blobs, name, telemetry)
        shards = await _shards(broker.http, WorkerId(name), clock, asked)
        if shards is None:
            return
        worker = Worker(
            id=WorkerId(name),
            broker=broker,
            blobs=blobs,
            clock=clock,
            shards=shards,
            functions=FunctionRegistry(settings.functions),
            settings=worker_settings(settings, scratch, shares_clock=False),
        )
        stack.push_async_callback(worker.stop)
        await worker.start()
        if settings.app:
            transport = HttpTransport(settings.server, token=settings.token)
            stack.push_async_callback(transport.close)
            registering = asyncio.create_task(_register(settings, transport, clock), name="register")
            stack.callback(registering.cancel)
        async with _probed(settings, clock, worker.unheard, telemetry) as told:
            started({"name": name, **told})
            await asked.wait()
            log.info("draining")
            await worker.drain()


async def migrate(settings: Settings) -> int:
    """Bring every shard to this version's schema; returns the number of steps taken."""
    async with contextlib.AsyncExitStack() as stack:
        store = await open_stores(stack, settings, SystemClock())
        return await store.migrate()


async def _shards(servicers: HttpBroker, name: WorkerId, clock: Clock, asked: asyncio.Event) -> tuple[str, ...] | None:
    """The shards that a servicer names, as soon as one answers; None when an end is asked for before.

    Raises Unauthenticated, Forbidden: a refused token does not get better by waiting.
    """
    pause = FIRST_PAUSE
    while not asked.is_set():
        try:
            return await servicers.shards(name, timeout=LAST_PAUSE)
        except (Unavailable, TimedOut) as error:
            log.info("no servicer answers yet: %s", error)
        await clock.wait(asked, pause)
        pause = min(2 * pause, LAST_PAUSE)
    return None


async def _register(settings: Settings, transport: Transport, clock: Clock) -> None:
    """Register the apps' jobs as soon as a servicer takes them; the worker works meanwhile."""
    pause = FIRST_PAUSE
    while True:
        try:
            await register_apps(settings.app, transport)
            return
        except DulyError as error:
            if error.status < 500 and error.status != 429:
                advice = "`duly register` does it, with a token of scope operate" if error.status == 403 else ""
                log.error("the apps' jobs are not registered: %s %s", error, advice)  # noqa: TRY400 - says it all
                return
            log.info("the apps' jobs are not registered yet: %s", error)
        await clock.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE)


@contextlib.asynccontextmanager
async def _probed(
    settings: Settings, clock: Clock, missing: Callable[[], list[str]], telemetry: Telemetry
) -> AsyncIterator[Told]:
    """Health and metrics over HTTP, if that is wanted; yields where."""
    if settings.probe_port < 0:
        yield {}
        return
    with listen(settings.probe_host, settings.probe_port) as listener:
        async with serving(create_probes(missing, telemetry), [listener], clock):
            yield {"url": url_of(listener, settings.probe_host)}


def _name(settings: Settings) -> str:
    """Unlike that of any other process, and unlike this one's before a restart: terms and leases hang on it."""
    return f"{settings.name or socket.gethostname()}-{secrets.token_hex(3)}"
