"""Huey on Valkey: RedisHuey, a consumer with worker processes."""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections.abc import Sequence

from huey import RedisHuey

from contestants import bodies
from contestants.common import SECOND, WORKERS, Contestant, NotOffered, main

huey = RedisHuey("versus", url=os.environ["VERSUS_VALKEY"], results=True, store_none=True)


@huey.task()
def noop() -> None:
    """The common body."""
    bodies.noop()


@huey.task()
def stamp(due: int) -> None:
    """The common body."""
    bodies.stamp(due)


class HueyContestant(Contestant):
    """Outcomes are fields of its result hash, kept for None too (store_none)."""

    packages = ("huey", "redis")

    def open(self) -> None:
        """Nothing to make."""

    def start_workers(self, *, ticks: bool = False) -> None:
        """`huey_consumer -k process`, the scheduler at its finest, 1 s."""
        if ticks:
            raise NotOffered("crontab() ends at minutes, and the scheduler wakes once a second at most")
        options = ("-w", str(WORKERS), "-k", "process", "-s", "1", "-d", "0.01", "--no-periodic")
        self.worker(sys.executable, "-m", "huey.bin.huey_consumer", "contestants.huey.huey", *options)

    def enqueue(self, count: int) -> None:
        """There is no bulk call."""
        for _ in range(count):
            noop()

    def schedule(self, dues: Sequence[int]) -> None:
        """`schedule(eta=…)`."""
        for due in dues:
            at = dt.datetime.fromtimestamp(due / SECOND, dt.UTC)
            stamp.schedule((due,), eta=at)

    def stored(self) -> int:
        """The size of the result store."""
        return int(huey.result_count())

    def close(self) -> None:
        """Disconnect."""
        huey.storage.conn.close()


if __name__ == "__main__":
    from contestants import huey as module  # noqa: PLW0406 - tasks go by the name of their module, here and in the consumer

    main(module.HueyContestant())
