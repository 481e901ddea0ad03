"""How the suites get at an adapter: a store with its clock in hand. A new store is one more entry of STORES."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from conformance.samples import T0
from duly.adapters.guarded_store import GuardedStore
from duly.adapters.sharded_store import ShardedStore
from duly.adapters.sqlite_store import SqliteStore
from duly.core.model import JobId
from duly.core.ring import map_slots
from duly.ports import Store
from duly.testing import ManualClock


class Harness:
    """A migrated store and what moves its clock. The clock starts at T0."""

    def __init__(self, store: Store, clock: ManualClock) -> None:
        self.store = store
        self.clock = clock

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


Opener = Callable[[Path], AbstractAsyncContextManager[Harness]]
STORES: dict[str, Opener] = {"memory": memory, "file": file, "sharded": sharded}
