"""duly in a program: store, scheduler and worker in this process, functions in processes of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from contestants import bodies
from contestants.common import SECOND, WORKERS, Contestant, main
from duly import Duly, current_run


def tick() -> None:
    """The every-second job."""
    began = time.time_ns() // 1000
    bodies.note(round(current_run.scheduled_at.timestamp() * SECOND), began)


class DulyContestant(Contestant):
    """`Duly(path, functions_in="processes")`, jobs made by `submit_many`."""

    packages = ("duly", "apsw", "uvloop")
    duly: ClassVar[Duly]

    def open(self) -> None:
        """A new file."""
        type(self).duly = Duly(Path(os.environ["VERSUS_DIR"]) / "duly.db", functions_in="processes", slots=WORKERS)
        self.duly.job()(bodies.noop)
        self.duly.job()(bodies.stamp)

    def start_workers(self, *, ticks: bool = False) -> None:
        """They are in the same program."""
        if ticks:
            from contestants import duly as module  # noqa: PLW0406 - by the name that its processes import it by

            self.duly.job("* * * * * *")(module.tick)
        self.duly.start()

    def enqueue(self, count: int) -> None:
        """One batch call."""
        self.duly.submit_many(bodies.noop, [()] * count)

    def enqueue_only(self, count: int) -> None:
        """Due in a day, for a Duly works on what is due."""
        self.duly.submit_many(bodies.noop, [()] * count, at="in 1d")

    def schedule(self, dues: Sequence[int]) -> None:
        """One batch call with a time each."""
        at = [f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(due // SECOND))}.{due % SECOND:06}Z" for due in dues]
        self.duly.submit_many(bodies.stamp, [(due,) for due in dues], at=at)

    def stored(self) -> int:
        """The store's tally of ended runs."""
        return self.duly.stats().ended.get("succeeded", 0)

    def close(self) -> None:
        """Drain and close."""
        self.duly.close()


if __name__ == "__main__":
    main(DulyContestant())
