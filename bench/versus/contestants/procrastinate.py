"""Procrastinate on PostgreSQL: workers by its command line, jobs by `batch_defer`."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg
from procrastinate import App, PsycopgConnector

from contestants import bodies
from contestants.common import SECOND, WORKERS, Contestant, main

CHUNK = 1_000
CONCURRENCY = 4  # coroutines in each worker

app = App(connector=PsycopgConnector(conninfo=os.environ["VERSUS_POSTGRES"], max_size=CONCURRENCY + 2))


@app.task(name="noop")
async def noop() -> None:
    """The common body."""
    bodies.noop()


@app.task(name="stamp")
async def stamp(due: int) -> None:
    """The common body."""
    bodies.stamp(due)


if "VERSUS_TICKS" in os.environ:

    @app.periodic(cron="* * * * * *")
    @app.task(name="tick")
    async def tick(timestamp: int) -> None:
        """Told the tick that it is for."""
        began = time.time_ns() // 1000
        bodies.note(timestamp * SECOND, began)


class ProcrastinateContestant(Contestant):
    """Outcomes are rows with status succeeded; jobs are kept, as by default."""

    packages = ("procrastinate", "psycopg")

    def open(self) -> None:
        """Install the schema."""
        self.runner = asyncio.Runner()
        self.runner.run(self._open())
        self.watch = psycopg.connect(os.environ["VERSUS_POSTGRES"], autocommit=True)

    async def _open(self) -> None:
        await app.open_async()
        await app.schema_manager.apply_schema_async()

    def start_workers(self, *, ticks: bool = False) -> None:
        """`procrastinate worker`, polling for jobs whose time has come ten times a second."""
        program = str(Path(sys.executable).with_name("procrastinate"))
        options = ("--concurrency", str(CONCURRENCY), "--fetch-job-polling-interval", "0.1")
        environment = {"VERSUS_TICKS": "1"} if ticks else {}
        for _ in range(WORKERS):
            self.worker(program, "--app", "contestants.procrastinate.app", "worker", *options, **environment)

    def enqueue(self, count: int) -> None:
        """Lists of CHUNK jobs."""
        self.runner.run(self._enqueue(count))

    async def _enqueue(self, count: int) -> None:
        for start in range(0, count, CHUNK):
            await noop.batch_defer_async(*({} for _ in range(min(CHUNK, count - start))))

    def schedule(self, dues: Sequence[int]) -> None:
        """`schedule_at`; a batch has one time, so jobs of one instant go together."""
        self.runner.run(self._schedule(dues))

    async def _schedule(self, dues: Sequence[int]) -> None:
        for due in dict.fromkeys(dues):
            at = dt.datetime.fromtimestamp(due / SECOND, dt.UTC)
            together = ({"due": due} for _ in range(dues.count(due)))
            await stamp.configure(schedule_at=at).batch_defer_async(*together)

    def stored(self) -> int:
        """Jobs that succeeded."""
        row = self.watch.execute("select count(*) from procrastinate_jobs where status = 'succeeded'").fetchone()
        return int(row[0]) if row else 0

    def close(self) -> None:
        """Disconnect."""
        self.watch.close()
        self.runner.run(app.close_async())
        self.runner.close()


if __name__ == "__main__":
    main(ProcrastinateContestant())
