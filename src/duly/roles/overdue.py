"""Runs that still wait past their margin: told while it lasts, for no start will tell of them (no worker, say).

One look a second at the oldest runs that are due, by whoever leads the shard, and only if somebody wants to know.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from duly.core.errors import DulyError
from duly.core.instants import SECOND
from duly.core.model import Run, RunKey
from duly.ports import Clock, Store
from duly.roles.events import Committed
from duly.roles.loop import Loop

log = logging.getLogger("duly.webhooks")

EVERY: Final = SECOND
LOOKED_AT: Final = 500  # runs; further ones are told once these have gone


class OverdueWatch(Loop):
    """Tells of each overdue run of a shard once, as "run.overdue"; a new leader tells again of those that wait."""

    def __init__(
        self, *, shard: str, store: Store, clock: Clock, leading: Callable[[], bool], committed: Committed
    ) -> None:
        super().__init__(f"overdue {shard}")
        self._shard = shard
        self._store = store
        self._clock = clock
        self._leading = leading
        self._committed = committed
        self._told: set[tuple[RunKey, int]] = set()

    async def _up(self) -> None:
        self.spawn(self._watch(), "watch")

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(EVERY)
            if not self._leading():
                self._told.clear()
                continue
            try:
                await self._look()
            except DulyError as error:
                log.info("shard %s: what is overdue could not be read: %s", self._shard, error)

    async def _look(self) -> None:
        now = await self._store.now(self._shard)
        page = await self._store.due(self._shard, now, None, LOOKED_AT)
        overdue = [(run, job) for run, job in page if job.state == "active" and run.due_at + job.max_lateness < now]
        self._committed("run.overdue", [pair for pair in overdue if _name(pair[0]) not in self._told], now)
        self._told = {_name(run) for run, _ in overdue}


def _name(run: Run) -> tuple[RunKey, int]:
    return run.key, run.attempt
