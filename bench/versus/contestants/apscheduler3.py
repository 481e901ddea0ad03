"""APScheduler 3 in this process: BackgroundScheduler, a SQLite job store, a pool of threads."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler

from contestants import bodies
from contestants.common import SECOND, Contestant, NotOffered, main

THREADS = 20  # as in the user guide's example
NO_OUTCOMES = "no outcome is kept: a job's row is deleted when it is started the last time"


class APScheduler3Contestant(Contestant):
    """Misfires and coalescing off, so that everything runs however late."""

    packages: ClassVar[tuple[str, ...]] = ("apscheduler", "sqlalchemy")
    grid: ClassVar[str] = "second"  # a function is not told the time that it is for

    def open(self) -> None:
        """A new file."""
        self.scheduler = BackgroundScheduler(
            jobstores={"default": SQLAlchemyJobStore(url=f"sqlite:///{Path(os.environ['VERSUS_DIR']) / 'jobs.db'}")},
            executors={"default": ThreadPoolExecutor(THREADS)},
            job_defaults={"misfire_grace_time": None, "coalesce": False, "max_instances": 3},
            timezone=dt.UTC,
        )
        self.scheduler.start(paused=True)

    def start_workers(self, *, ticks: bool = False) -> None:
        """The threads of this process."""
        self.scheduler.resume()
        if ticks:
            self.scheduler.add_job(bodies.stamp, "cron", second="*", args=(bodies.UNKNOWN,))

    def enqueue(self, count: int) -> None:
        """There is no bulk call."""
        for _ in range(count):
            self.scheduler.add_job(bodies.noop)

    def schedule(self, dues: Sequence[int]) -> None:
        """The date trigger."""
        for due in dues:
            at = dt.datetime.fromtimestamp(due / SECOND, dt.UTC)
            self.scheduler.add_job(bodies.stamp, "date", run_date=at, args=(due,))

    def stored(self) -> int:
        """None."""
        raise NotOffered(NO_OUTCOMES)

    def warm_up(self, count: int) -> None:
        """Without outcomes: until the jobs are gone."""
        self.enqueue(count)
        while self.scheduler.get_jobs():
            time.sleep(0.05)

    def close(self) -> None:
        """Stop."""
        self.scheduler.shutdown(wait=False)


if __name__ == "__main__":
    main(APScheduler3Contestant())
