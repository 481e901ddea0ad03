"""How the suites get at an adapter: a store with its clock in hand. A new store is one more entry of STORES."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from conformance.postgres import DatabaseClock, databases
from conformance.samples import SECOND, T0
from duly.adapters.guarded_store import GuardedStore
from duly.adapters.postgres_store import PostgresStore
from duly.adapters.sharded_store import ShardedStore
from duly.adapters.sqlite_store import SqliteStore
from duly.core.model import JobId
from duly.core.ring import map_slots
from duly.ports import Store
from duly.testing import ManualClock


class Harness:
    """A migrated store and what moves its clock. The clock starts at T0."""

    def __init__(self, store: Store, clock: ManualClock, *, told_within: int = 0) -> None:
        self.store = store
        self.clock = clock
        self.told_within = told_within  # µs after which `now` tells a step of the clock at the latest

    async def passes(self, duration: int) -> None:
        """Let `duration` µs go by on the shard's clock."""
        await self.clock.advance(duration)

    def shard(self, job_name: str = "a") -> str:
        """The shard of a job."""
        return self.store.shard_of(JobId(job_name))


@contextlib.asynccontextmanager
async def memory(directory: Path) -> AsyncIterator[Harness]:
    """SQLite in memory: the product's own lines, on one connection without threads."""
    clock = ManualClock(T0)
    store = SqliteStore(":memory:", clock=clock)
    await store.migrate()
    yield Harness(store, clock)
    await store.close()


@contextlib.asynccontextmanager
async def file(directory: Path) -> AsyncIterator[Harness]:
    """SQLite in a file, with its writer and its readers."""
    clock = ManualClock(T0)
    store = SqliteStore(directory / "shard.db", clock=clock)
    await store.migrate()
    yield Harness(store, clock)
    await store.close()


@contextlib.asynccontextmanager
async def sharded(directory: Path) -> AsyncIterator[Harness]:
    """Three shards in memory, each guarded, behind one face."""
    clock = ManualClock(T0)
    names = ("s0", "s1", "s2")
    store = ShardedStore(
        {name: GuardedStore(SqliteStore(":memory:", clock=clock, shard=name), clock=clock) for name in names},
        map_slots(dict.fromkeys(names, 1.0)),
    )
    await store.migrate()
    yield Harness(store, clock)
    await store.close()


@contextlib.asynccontextmanager
async def postgres(directory: Path) -> AsyncIterator[Harness]:
    """A PostgreSQL database, whose clock is the test's."""
    clock = DatabaseClock(databases().clock_file, T0)
    store = PostgresStore(databases().shard("s0", T0), shard="s0", clock=clock)
    yield Harness(store, clock, told_within=SECOND)
    await store.close()
    assert databases().contradictions("s0") == []


@contextlib.asynccontextmanager
async def sharded_postgres(directory: Path) -> AsyncIterator[Harness]:
    """Three PostgreSQL databases, each guarded, behind one face."""
    clock = DatabaseClock(databases().clock_file, T0)
    names = ("s0", "s1", "s2")
    store = ShardedStore(
        {
            name: GuardedStore(PostgresStore(databases().shard(name, T0), shard=name, clock=clock), clock=clock)
            for name in names
        },
        map_slots(dict.fromkeys(names, 1.0)),
    )
    yield Harness(store, clock, told_within=SECOND)
    await store.close()


Opener = Callable[[Path], AbstractAsyncContextManager[Harness]]
STORES: dict[str, Opener] = {
    "memory": memory,
    "file": file,
    "sharded": sharded,
    "postgres": postgres,
    "sharded-postgres": sharded_postgres,
}
