"""The composition root: settings become adapters, adapters become roles. The only module that knows both sides.

assemble(settings) ─▶ Node(store, broker, blobs, servicer, schedulers, worker, keeper)
Node.start ─▶ migrate, servicer, schedulers, worker, keeper      Node.stop ─▶ the same backwards
serve(settings) ─▶ a Node with its HTTP face, until SIGTERM or SIGINT
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random  # noqa: TID251 - this is where chance comes in: everything else is handed `dice` and `entropy`
import secrets
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import apsw

from duly.adapters.local_broker import LocalBroker
from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.adapters.sharded_store import ShardedStore
from duly.adapters.sqlite_store import SqliteStore
from duly.adapters.system_clock import SystemClock
from duly.core.errors import InvalidInput, Unavailable
from duly.core.instants import MILLISECOND
from duly.core.model import WorkerId
from duly.core.ring import place
from duly.ports import Blobs, Broker, Clock, Store
from duly.roles.keeper import Keeper
from duly.roles.scheduler import Scheduler, SchedulerSettings
from duly.roles.servicer import Servicer
from duly.roles.worker import Worker, WorkerSettings
from duly.settings import Settings
from duly.tasks.attempt import Runner
from duly.tasks.registry import FunctionRegistry, app_object
from duly.telemetry import Telemetry

if TYPE_CHECKING:
    from uvicorn import Server

log = logging.getLogger("duly.boot")

TOKENS: Final = "tokens.json"


class Node:
    """The parts of one embedded duly and their order of life."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        broker: Broker,
        blobs: Blobs,
        clock: Clock,
        servicer: Servicer,
        schedulers: list[Scheduler],
        worker: Worker,
        keeper: Keeper,
        telemetry: Telemetry,
    ) -> None:
        self.settings = settings
        self.store = store
        self.broker = broker
        self.blobs = blobs
        self.clock = clock
        self.servicer = servicer
        self.schedulers = schedulers
        self.worker = worker
        self.keeper = keeper
        self.telemetry = telemetry

    async def start(self) -> None:
        """Bring everything up; if a part fails to start, what had started is stopped again."""
        try:
            await self.store.migrate()
            await self.servicer.start()
            for scheduler in self.schedulers:
                await scheduler.start()
            await self.worker.start()
            await self.keeper.start()
        except BaseException:
            await self.stop()
            raise

    async def drain(self) -> None:
        """Take nothing new, finish what runs within the grace, hand the rest back, then hand over the terms."""
        await self.worker.drain()
        for scheduler in self.schedulers:
            await scheduler.drain()
        await self.servicer.drain()

    async def stop(self) -> None:
        """Stop every part, whatever state it is in; the store last."""
        await self.keeper.stop()
        await self.worker.stop()
        for scheduler in self.schedulers:
            await scheduler.stop()
        await self.servicer.stop()
        await self.broker.close()
        await self.store.close()


def assemble(
    settings: Settings, registry: FunctionRegistry, clock: Clock | None = None, *, file: Path | None = None
) -> Node:
    """An embedded duly: SQLite shards, a local broker, blobs in a directory, one worker.

    All of it in `settings.dir`; or, given a `file`, in that one, with its blobs beside it in `<file>-blobs`.
    """
    clock = clock or SystemClock()
    store: Store
    if file is None:
        directory = Path(settings.dir).absolute()  # tasks run in directories of their own
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        store = _open_store(directory, settings.shards, clock)
        blobs = ObstoreBlobs(directory / "blobs", clock=clock)
        scratch = directory / "scratch"
        scratch.mkdir(exist_ok=True, mode=0o700)
    else:
        file = file.absolute()
        file.parent.mkdir(parents=True, exist_ok=True)
        store = SqliteStore(file, shard="s0", clock=clock)
        blobs = ObstoreBlobs(file.with_name(f"{file.name}-blobs"), clock=clock)
        scratch = Path(tempfile.gettempdir())
    scheduling = SchedulerSettings(lead=settings.lead, window=settings.look_ahead, worker_ttl=settings.lease)
    return connect(settings, registry, clock, store, blobs, scheduling, worker_settings(settings, scratch))


def connect(
    settings: Settings,
    registry: FunctionRegistry,
    clock: Clock,
    store: Store,
    blobs: Blobs,
    scheduling: SchedulerSettings,
    working: WorkerSettings,
    runners: dict[str, Runner] | None = None,
) -> Node:
    """The roles over their adapters, joined by a broker in this process."""
    telemetry = Telemetry()
    broker = LocalBroker(clock)
    name = socket.gethostname()
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
    )
    schedulers = [
        Scheduler(
            shard=shard,
            owner=name,  # stable over restarts: the lock on the file says that the former process is gone
            store=store,
            broker=broker,
            clock=clock,
            telemetry=telemetry,
            dice=random.random,
            settings=scheduling,
        )
        for shard in store.shards
    ]
    worker = Worker(
        id=WorkerId(f"w-{secrets.token_hex(4)}"),
        broker=broker,
        blobs=blobs,
        clock=clock,
        shards=store.shards,
        functions=registry,
        settings=working,
        runners=runners,
    )
    keeper = Keeper(store=store, blobs=blobs, clock=clock, interval=settings.retention_interval)
    return Node(
        settings=settings,
        store=store,
        broker=broker,
        blobs=blobs,
        clock=clock,
        servicer=servicer,
        schedulers=schedulers,
        worker=worker,
        keeper=keeper,
        telemetry=telemetry,
    )


def _open_store(directory: Path, shards: int, clock: Clock) -> Store:
    """One SQLite file a shard. The number of shards is fixed when the directory is made."""
    present = sorted(directory.glob("shard-*.db"))
    if present and len(present) != shards:
        raise InvalidInput.at(
            "/shards", f"{directory} was made with {len(present)} shard(s), not {shards}; moving jobs needs a cluster"
        )
    names = [f"s{number}" for number in range(shards)]
    stores = {name: SqliteStore(directory / f"shard-{name}.db", shard=name, clock=clock) for name in names}
    if shards == 1:
        return stores[names[0]]
    return ShardedStore(stores, place(dict.fromkeys(names, 1.0)))


def worker_settings(settings: Settings, scratch: Path) -> WorkerSettings:
    """The part of the settings that a worker has."""
    return WorkerSettings(
        slots=settings.slots or os.cpu_count() or 1,
        async_slots=settings.async_slots,
        labels=settings.labels,
        functions_in=settings.functions_in,
        apps=tuple(settings.app),
        scratch=str(scratch),
        grace=settings.grace,
        spin=settings.spin,
        allow_private_addresses=settings.allow_private_addresses,
        shares_clock=True,
    )


# -- duly up ------------------------------------------------------------------------------------------------


async def serve(settings: Settings, *, started: Callable[[str], None]) -> None:
    """Run an embedded duly with its HTTP face until SIGTERM or SIGINT; then drain, and stop.

    `started` is called with the URL once the API answers. Raises InvalidInput when the address would be open to
    others without a token, DulyError when the directory is in use.
    """
    from duly.faces.api import create_app
    from duly.faces.http.access import Access, bind_problem, hosts_for
    from duly.faces.http.settings import HttpSettings
    from duly.faces.tokens import TokenFile

    clock = SystemClock()
    tokens = TokenFile(Path(settings.dir) / TOKENS, monotonic=clock.monotonic)
    problem = bind_problem(settings.host, tokens)
    if problem:
        raise InvalidInput.at("/host", problem)
    listener = _listen(settings.host, settings.port)
    try:
        node = assemble(settings, FunctionRegistry(settings.functions), clock)
    except BaseException:
        listener.close()
        raise
    stop = asyncio.Event()
    app = create_app(
        node.servicer,
        access=Access(tokens, clock=clock),
        telemetry=node.telemetry,
        settings=HttpSettings(
            hosts=hosts_for(settings.host, tuple(settings.allowed_hosts)),
            max_blob_bytes=settings.max_blob_bytes,
            sqlite=apsw.sqlite_lib_version(),
        ),
        stop=stop,
    )
    server = _http_server(app)
    address = f"http://{_authority(settings.host, listener.getsockname()[1])}"
    asked = asyncio.Event()
    with listener, _signals(asked):
        await node.start()
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
        try:
            await _until_started(server, serving, clock)
            await register_apps(node)
            started(address)
            await _first(asked, serving)
            log.info("draining")
            stop.set()
            await node.drain()
        finally:
            stop.set()
            server.should_exit = True
            await serving
            await node.stop()


async def register_apps(node: Node) -> None:
    """Create or bring up to date the jobs of the apps' decorated functions."""
    from duly.faces.client import Client
    from duly.faces.registration import register
    from duly.faces.servicer_transport import Here, ServicerTransport

    async def servicer() -> Servicer:
        return node.servicer

    transport = ServicerTransport(Here(), servicer)
    for spec in node.settings.app:
        app = app_object(spec)
        if isinstance(app, Client):
            for registration in app.aio.registrations:
                job = await register(transport, registration)
                if job is not None:
                    log.info("job %s of %s: %s", job.id, registration.name, job.schedule)


def run_up(settings: Settings, *, started: Callable[[str], None]) -> None:
    """`serve` on an event loop of its own, with its log on stderr."""
    import uvloop

    from duly.log_output import configure

    configure(settings.log_level, settings.log_format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, started=started))


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is told before anything else starts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Unavailable(f"cannot listen on {_authority(host, port)}: {error.strerror}; try another --port") from None
    return listener


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _http_server(app: object) -> Server:
    import uvicorn

    class QuietServer(uvicorn.Server):
        """Signals are this program's: uvicorn would take them and raise them again at its end."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=75,
    )
    return QuietServer(config)


async def _until_started(server: Server, serving: asyncio.Task[None], clock: Clock) -> None:
    while not server.started:
        if serving.done():
            await serving
            raise Unavailable("the HTTP server did not start")
        await clock.sleep(5 * MILLISECOND)


async def _first(asked: asyncio.Event, serving: asyncio.Task[None]) -> None:
    waiting = asyncio.create_task(asked.wait())
    try:
        await asyncio.wait({waiting, serving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


@contextlib.contextmanager
def _signals(asked: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a drain; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def ask() -> None:
        if asked.is_set():
            os._exit(1)
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
