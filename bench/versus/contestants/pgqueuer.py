"""PgQueuer on PostgreSQL, driver asyncpg: workers by `pgqueuer.run`, jobs by the batch form of `Queries.enqueue`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import ClassVar

import asyncpg
import uvloop
from pgqueuer import AsyncpgDriver, PgQueuer, Queries, run
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.models import Job, Schedule

from contestants import bodies
from contestants.common import WORKERS, Contestant, main

BATCH = 100  # "increase when jobs are short-lived"
CHUNK = 1_000


def now() -> int:
    """µs since 1970."""
    return time.time_ns() // 1000


@contextlib.asynccontextmanager
async def worker() -> AsyncIterator[PgQueuer]:
    """What `pgqueuer.run` serves, on a pool as the tuning guide has it."""
    async with asyncpg.create_pool(os.environ["VERSUS_POSTGRES"], min_size=5, max_size=20) as pool:
        served = PgQueuer(AsyncpgPoolDriver(pool))

        @served.entrypoint("noop")
        async def noop(job: Job) -> None:
            bodies.noop()

        @served.entrypoint("stamp")
        async def stamp(job: Job) -> None:
            bodies.stamp(int(job.payload or b"0"))

        if "VERSUS_TICKS" in os.environ:

            @served.schedule("tick", "* * * * * *")
            async def tick(schedule: Schedule) -> None:
                bodies.stamp(bodies.UNKNOWN)

        yield served


class PgQueuerContestant(Contestant):
    """Outcomes are rows of its log table, the default durability for all tables."""

    packages = ("pgqueuer", "asyncpg", "uvloop")
    grid: ClassVar[str] = "second"  # a schedule is told its next run, not this one

    def open(self) -> None:
        """Install the schema."""
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.runner.run(self._open())

    async def _open(self) -> None:
        self.connection = await asyncpg.connect(os.environ["VERSUS_POSTGRES"])
        self.queries = Queries(AsyncpgDriver(self.connection))
        await self.queries.install()

    def start_workers(self, *, ticks: bool = False) -> None:
        """Processes of `pgqueuer.run`, as the guide "Programmatic run" has it."""
        environment = {"VERSUS_TICKS": "1"} if ticks else {}
        for _ in range(WORKERS):
            self.worker(sys.executable, "-m", "contestants.pgqueuer", "worker", **environment)

    def enqueue(self, count: int) -> None:
        """Lists of CHUNK jobs, one statement each."""
        self.runner.run(self._enqueue(count))

    async def _enqueue(self, count: int) -> None:
        for start in range(0, count, CHUNK):
            size = min(CHUNK, count - start)
            await self.queries.enqueue(["noop"] * size, [None] * size, [0] * size)

    def schedule(self, dues: Sequence[int]) -> None:
        """`execute_after` counts from the statement's own time, so few in each."""
        self.runner.run(self._schedule(dues))

    async def _schedule(self, dues: Sequence[int]) -> None:
        for start in range(0, len(dues), 100):
            part = dues[start : start + 100]
            payloads: list[bytes | None] = [str(due).encode() for due in part]
            base = now()
            after: list[timedelta | None] = [timedelta(microseconds=due - base) for due in part]
            await self.queries.enqueue(["stamp"] * len(part), payloads, [0] * len(part), after)

    def stored(self) -> int:
        """Successful rows of the log."""
        found = self.runner.run(
            self.connection.fetchval("select count(*) from pgqueuer_log where status = 'successful'")
        )
        return int(found)

    def close(self) -> None:
        """Disconnect."""
        self.runner.run(self.connection.close())
        self.runner.close()


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        uvloop.run(run(worker, batch_size=BATCH))
    else:
        main(PgQueuerContestant())
