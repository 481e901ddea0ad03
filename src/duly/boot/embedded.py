"""An embedded duly: SQLite shards, a broker in this process, blobs in a directory, one worker.

assemble(settings) ─▶ Node(store, broker, blobs, servicer, schedulers, worker, keeper)
Node.start ─▶ migrate, servicer, schedulers, worker, keeper      Node.stop ─▶ the same backwards
"""

from __future__ import annotations

import logging
import os
import random  # noqa: TID251 - this is where chance comes in: everything else is handed `dice` and `entropy`
import secrets
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from duly.adapters.local_broker import LocalBroker
from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.adapters.sharded_store import ShardedStore
from duly.adapters.sqlite_store import SqliteStore
from duly.adapters.system_clock import SystemClock
from duly.boot.collector import look_less_often
from duly.boot.webhooks import make_webhooks, watch_overdue
from duly.core.errors import InvalidInput
from duly.core.model import WorkerId
from duly.core.ring import map_slots
from duly.ports import Blobs, Broker, Clock, Store
from duly.roles.events import all_of
from duly.roles.keeper import Keeper
from duly.roles.overdue import OverdueWatch
from duly.roles.scheduler import Scheduler, SchedulerSettings
from duly.roles.servicer import Servicer
from duly.roles.webhooks import Webhooks
from duly.roles.worker import Worker, WorkerSettings
from duly.settings import Settings
from duly.tasks.attempt import Runner
from duly.tasks.registry import FunctionRegistry
from duly.telemetry import Telemetry

log = logging.getLogger("duly.boot")


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
        webhooks: Webhooks | None = None,
        watches: Sequence[OverdueWatch] = (),
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
        self.webhooks = webhooks
        self.watches = watches

    async def start(self) -> None:
        """Bring everything up; if a part fails to start, what had started is stopped again."""
        try:
            await self.store.migrate()
            if self.webhooks is not None:
                await self.webhooks.start()
            await self.servicer.start()
            for scheduler in self.schedulers:
                await scheduler.start()
            for watch in self.watches:
                await watch.start()
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
        if self.webhooks is not None:
            await self.webhooks.drain()

    async def stop(self) -> None:
        """Stop every part, whatever state it is in; the store last."""
        await self.keeper.stop()
        for watch in self.watches:
            await watch.stop()
        await self.worker.stop()
        for scheduler in self.schedulers:
            await scheduler.stop()
        await self.servicer.stop()
        if self.webhooks is not None:
            await self.webhooks.stop()
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
    look_less_often()
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
    webhooks = make_webhooks(settings, clock, telemetry)
    seen = servicer.event_log.from_schedulers
    committed = seen if webhooks is None else all_of(seen, webhooks.committed)
    servicer.send_webhooks(webhooks)
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
            committed=committed,
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
        webhooks=webhooks,
        watches=watch_overdue(webhooks, schedulers, store, clock),
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
    return ShardedStore(stores, map_slots(dict.fromkeys(names, 1.0)))


def worker_settings(settings: Settings, scratch: Path, *, shares_clock: bool = True) -> WorkerSettings:
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
        shares_clock=shares_clock,
    )
