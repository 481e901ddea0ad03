"""Pruning a PostgreSQL shard in bounded steps: weeks of history that are over are dropped, the rest is deleted by rows.

A week goes when every run in it is older than its job keeps runs. Until then, what is beyond a job's keep is deleted
row by row by a walk around all jobs, which leaves runs that are merely too old, of jobs that keep long, to their
week: they outlast their time by a week at most (decision 0013).
"""

from __future__ import annotations

import logging
from typing import Final

from duly.adapters.postgres_pool import Pool
from duly.adapters.postgres_schema import make_weeks
from duly.adapters.sql import statements
from duly.core.errors import Unavailable
from duly.core.instants import DAY, HOUR, WEEK
from duly.ports import Pruned

log = logging.getLogger("duly.store")

SQL: Final = statements("postgres")
STRETCH: Final = 2_000  # jobs looked at in one step
LONG_AGE: Final = 4 * WEEK  # jobs that keep for so long or longer leave what is too old to the weeks
MAX_ORPHANS: Final = 10_000  # told by one call
FORGET_WORKERS_AFTER: Final = DAY
LOOK_AT_WEEKS_EVERY: Final = HOUR
SCAN_WITHIN: Final = 120.0  # seconds, to read one week


class Pruner:
    """The walk of one node around the jobs of one shard, and what it remembers of the weeks."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._after = ""
        self._handed: list[str] = []
        self._weeks_looked_at: int | None = None
        self._kept_until: dict[int, int] = {}  # week → an instant before which it need not be looked at

    async def prune(self, limit: int, now: int) -> Pruned:
        """One step."""
        runs, more = 0, False
        if self._weeks_looked_at is None or abs(now - self._weeks_looked_at) >= LOOK_AT_WEEKS_EVERY:
            runs += await self._weeks(now)
            self._weeks_looked_at = now
        after = self._after
        removed, more = await self._walk(limit)
        runs += removed
        [(jobs,)] = await self._pool.write(SQL["remove_empty_jobs"], after, STRETCH, limit)
        await self._pool.write(SQL["forget_workers"], FORGET_WORKERS_AFTER)
        [(orphans,)] = await self._pool.write(SQL["orphans"], self._handed, MAX_ORPHANS)
        self._handed = orphans
        more = more or len(jobs) >= limit or len(orphans) == MAX_ORPHANS
        return Pruned(runs, len(jobs), tuple(orphans), more)

    async def _weeks(self, now: int) -> int:
        """Make the weeks to come, drop those that are over; returns how many runs went."""
        runs = 0
        try:
            await make_weeks(self._pool)
            for (week,) in await self._pool.read(SQL["weeks"]):
                if week * WEEK > now - LONG_AGE:
                    break
                if now < self._kept_until.get(week, now):
                    continue
                [(until,)] = await self._pool.read(SQL["week_kept_until"], week, within=SCAN_WITHIN)
                if until is not None:
                    self._kept_until[week] = until
                    continue
                [(dropped,)] = await self._pool.write(SQL["drop_week"], week, within=SCAN_WITHIN)
                runs += dropped or 0
        except Unavailable as problem:
            # Someone reads history for a long time (a backup): a lock was not to be had. Next time, then.
            log.info("the weeks of history are left as they are for now: %s", problem)
        return runs

    async def _walk(self, limit: int) -> tuple[int, bool]:
        """Remove what the next jobs do not keep; returns how many runs went, and whether there is more to look at."""
        end = await self._pool.read(SQL["end_of_stretch"], self._after, STRETCH - 1)
        found = await self._pool.read(SQL["beyond_keep"], self._after, STRETCH, LONG_AGE, WEEK, limit + 1)
        rows = found[:limit]
        removed = 0
        if rows:
            jobs, scheduled = [row[0] for row in rows], [row[1] for row in rows]
            [(removed,)] = await self._pool.write(SQL["remove_finished"], jobs, scheduled)
        if len(found) > limit:
            return removed, True  # from the same job on: what was found is gone
        self._after = end[0][0] if end else ""
        return removed, bool(end)
