"""Celery with Valkey (the redis transport) as broker and result backend: a prefork worker, and beat for ticks."""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import redis
from celery import Celery

from contestants import bodies
from contestants.common import SECOND, WORKERS, Contestant, main

SERVER = os.environ["VERSUS_VALKEY"]

app = Celery("contestants.celery", broker=f"{SERVER}/0", backend=f"{SERVER}/1")
app.conf.update(
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    worker_prefetch_multiplier=128,  # Optimizing: "lots of short tasks … 64, or 128"
    worker_timer_precision=0.1,  # the value its page names for "near millisecond precision"
    task_create_missing_queues=True,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": 43_200},  # Redis: ETA tasks must not outlast it
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
)
if "VERSUS_TICKS" in os.environ:
    app.conf.beat_schedule = {"tick": {"task": "tick", "schedule": 1.0}}


@app.task(name="noop")
def noop() -> None:
    """The common body."""
    bodies.noop()


@app.task(name="stamp")
def stamp(due: int) -> None:
    """The common body."""
    bodies.stamp(due)


@app.task(name="tick")
def tick() -> None:
    """Beat does not tell a task its time."""
    bodies.stamp(bodies.UNKNOWN)


class CeleryContestant(Contestant):
    """Outcomes are keys of the result database."""

    packages = ("celery", "kombu", "redis")
    grid: ClassVar[str] = "interval"  # crontab() ends at minutes; a schedule of 1.0 begins when beat does

    def open(self) -> None:
        """Connect to where results go."""
        self.results = redis.Redis.from_url(f"{SERVER}/1")

    def start_workers(self, *, ticks: bool = False) -> None:
        """`celery worker`, and `celery beat` in a process of its own."""
        celery = (sys.executable, "-m", "celery", "-A", "contestants.celery")
        self.worker(
            *(*celery, "worker", "--pool", "prefork", "--concurrency", str(WORKERS)),
            *("--without-gossip", "--without-mingle", "--loglevel", "WARNING"),
        )
        if ticks:
            schedule = str(Path(os.environ["VERSUS_DIR"]) / "beat")
            self.worker(*celery, "beat", "--schedule", schedule, "--loglevel", "WARNING", VERSUS_TICKS="1")

    def enqueue(self, count: int) -> None:
        """There is no bulk call: one message each, over one producer."""
        with app.producer_or_acquire() as producer:
            for _ in range(count):
                noop.apply_async(producer=producer)

    def schedule(self, dues: Sequence[int]) -> None:
        """`eta`."""
        with app.producer_or_acquire() as producer:
            for due in dues:
                at = dt.datetime.fromtimestamp(due / SECOND, dt.UTC)
                stamp.apply_async((due,), eta=at, producer=producer)

    def stored(self) -> int:
        """A key for each outcome."""
        return int(self.results.dbsize())

    def close(self) -> None:
        """Disconnect."""
        self.results.close()
        app.close()


if __name__ == "__main__":
    main(CeleryContestant())
