"""APScheduler 4 (pre-release) on PostgreSQL with asyncpg: two schedulers that share a data store."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import sys
import threading
import time
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar, TypeVar

from apscheduler import AsyncScheduler, ConflictPolicy, current_job
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore
from apscheduler.eventbrokers.asyncpg import AsyncpgEventBroker
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from contestants import bodies
from contestants.common import SECOND, WORKERS, Contestant, main

T = TypeVar("T")

KEPT = 3_600  # seconds that an outcome is kept
AT_ONCE = 16  # calls in flight: there is no bulk call


async def noop() -> None:
    """The common body."""
    bodies.noop()


async def stamp(due: int) -> None:
    """The common body."""
    bodies.stamp(due)


async def tick() -> None:
    """Told the tick that it is for by its job."""
    began = time.time_ns() // 1000
    at = current_job.get().scheduled_fire_time
    bodies.note(round(at.timestamp() * SECOND) if at else bodies.UNKNOWN, began)


def address() -> str:
    """As SQLAlchemy has it."""
    return os.environ["VERSUS_POSTGRES"].replace("postgresql:", "postgresql+asyncpg:")


def scheduler() -> AsyncScheduler:
    """One of those that share the store."""
    engine = create_async_engine(address(), pool_size=20)
    return AsyncScheduler(
        SQLAlchemyDataStore(engine), AsyncpgEventBroker.from_async_sqla_engine(engine), max_concurrent_jobs=100
    )


async def serve() -> None:
    """A worker."""
    from contestants import apscheduler4 as module  # noqa: PLW0406 - by the name that jobs are added under

    async with scheduler() as served:
        for function in (module.noop, module.stamp, module.tick):
            await served.configure_task(f"{module.__name__}:{function.__name__}", func=function, job_executor="async")
        await served.run_until_stopped()


class APScheduler4Contestant(Contestant):
    """Outcomes are rows of job_results, kept when result_expiration_time says so."""

    packages: ClassVar[tuple[str, ...]] = ("apscheduler", "sqlalchemy", "asyncpg")

    def open(self) -> None:
        """The schema is made by the first scheduler."""
        self.loop = asyncio.new_event_loop()  # on a thread: its event broker has work between the calls
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.wait(self._open())

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it there."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    async def _open(self) -> None:
        self.stop, self.ready = asyncio.Event(), asyncio.Event()
        self.living = asyncio.create_task(self._live())
        opened = asyncio.create_task(self.ready.wait())
        await asyncio.wait((self.living, opened), return_when=asyncio.FIRST_COMPLETED)
        if self.living.done():
            await self.living
        self.watch = create_async_engine(address())

    async def _live(self) -> None:
        """Entered and left in one task, as its cancel scopes demand."""
        async with scheduler() as self.scheduler:
            self.ready.set()
            await self.stop.wait()

    def start_workers(self, *, ticks: bool = False) -> None:
        """Processes with a scheduler that works; the one here only adds."""
        for _ in range(WORKERS):
            self.worker(sys.executable, "-m", "contestants.apscheduler4", "worker")
        if ticks:
            self.wait(self._tick())

    async def _tick(self) -> None:
        await self.scheduler.add_schedule(
            "contestants.apscheduler4:tick",
            CronTrigger(second="*", timezone=dt.UTC),
            id="tick",
            conflict_policy=ConflictPolicy.replace,
            job_result_expiration_time=KEPT,
        )

    def enqueue(self, count: int) -> None:
        """`add_job`, several at once."""
        self.wait(self._enqueue(count))

    async def _enqueue(self, count: int) -> None:
        left = iter(range(count))

        async def some() -> None:
            for _ in left:
                await self.scheduler.add_job("contestants.apscheduler4:noop", result_expiration_time=KEPT)

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))

    def schedule(self, dues: Sequence[int]) -> None:
        """`add_schedule` with a DateTrigger each."""
        self.wait(self._schedule(dues))

    async def _schedule(self, dues: Sequence[int]) -> None:
        left = iter(dues)

        async def some() -> None:
            for due in left:
                at = dt.datetime.fromtimestamp(due / SECOND, dt.UTC)
                await self.scheduler.add_schedule(
                    "contestants.apscheduler4:stamp", DateTrigger(at), args=(due,), job_result_expiration_time=KEPT
                )

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))

    def stored(self) -> int:
        """Rows of the table of results."""
        return self.wait(self._stored())

    async def _stored(self) -> int:
        async with self.watch.connect() as connection:
            return int((await connection.execute(text("select count(*) from job_results"))).scalar_one())

    def close(self) -> None:
        """Disconnect."""
        self.wait(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)

    async def _close(self) -> None:
        await self.watch.dispose()
        self.stop.set()
        await self.living


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        asyncio.run(serve())
    else:
        main(APScheduler4Contestant())
