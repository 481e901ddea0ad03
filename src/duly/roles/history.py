"""What has ended so far, for those who watch: read once from the store's history, then heard from reports.

start ─▶ since ──── reports ─▶ memory          first look ─▶ newest history, a page at once, the rest behind it
each look, every two seconds at most ─▶ what other servicers and the schedulers ended; runs that never started
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

from duly.core.errors import DulyError
from duly.core.instants import DAY, MINUTE, SECOND, format_instant
from duly.core.model import Job, JobId, Run, RunState
from duly.core.overview import Coverage
from duly.ports import RunQuery
from duly.roles.forecast import Forecaster
from duly.roles.punctuality import Punctuality
from duly.roles.runs import RunDesk

STARTED_AND_ENDED: Final = (
    RunState.SUCCEEDED,
    RunState.FAILED,
    RunState.CANCELLED,
    RunState.LOST,
    RunState.QUARANTINED,
)
NEVER_STARTED: Final = (RunState.MISSED, RunState.SKIPPED)
LEARNT_PAGE: Final = 500
LEARNT: Final = 20_000  # runs read to fill the memory
REFRESH: Final = 2 * SECOND  # between two looks for runs that other servicers or the schedulers ended
RECENT: Final = 10 * MINUTE
NEVER_READ: Final = 500


class HistoryDesk(RunDesk):
    """Keeps the memory of what ended."""

    punctuality: Punctuality
    forecaster: Forecaster

    def _prepare_overview(self) -> None:
        """Listen to what ends, from now on."""
        self.punctuality = Punctuality()
        self.forecaster = Forecaster(self._store, self._clock)
        self._learning: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()  # two who look at once must not count the same history twice
        self._looked_at = -REFRESH
        self._never: tuple[Run, ...] = ()
        self._never_jobs: dict[JobId, Job] = {}
        self.event_log.witness = self._witness

    async def _begin_overview(self) -> None:
        try:
            now = await self._store.now()
        except DulyError:
            now = self._clock.wall()  # no shard answers yet; that is no reason not to start
        self.punctuality.since = self.punctuality.known_from = now

    async def _end_overview(self) -> None:
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.gather(self._learning, return_exceptions=True)
        await self.forecaster.stop()

    def _witness(self, pairs: Sequence[tuple[Run, Job]]) -> None:
        if pairs:
            self.punctuality.ended(pairs, self._store.shard_of(pairs[0][1].id))

    async def _look(self) -> int:
        """Bring the memory up to date; the shards' now."""
        async with self._looking:
            return await self._bring_up_to_date()

    async def _bring_up_to_date(self) -> int:
        now = await self._store.now()
        if self._learning is None:
            cursor = await self._learn_page(now, None)
            self._learning = asyncio.create_task(self._learn(now, cursor), name="history for the dashboard")
        monotonic = self._clock.monotonic()
        if monotonic - self._looked_at >= REFRESH:
            self._looked_at = monotonic
            recent = await self._store.page_runs(
                RunQuery(states=STARTED_AND_ENDED, since=now - RECENT, limit=LEARNT_PAGE)
            )
            await self._take([run for run in recent.items if (run.finished_at or 0) >= self.punctuality.since])
            never = await self._store.page_runs(RunQuery(states=NEVER_STARTED, since=now - DAY, limit=NEVER_READ))
            self._never = never.items
            self._never_jobs = await self._jobs(run.job_id for run in never.items)
        return now

    async def _learn(self, now: int, cursor: str | None) -> None:
        for _ in range(LEARNT // LEARNT_PAGE - 1):
            if cursor is None:
                break
            await self._clock.sleep(5_000)  # a page of history is read between other work, not instead of it
            cursor = await self._learn_page(now, cursor)
        self.punctuality.whole = cursor is None

    async def _learn_page(self, now: int, cursor: str | None) -> str | None:
        page = await self._store.page_runs(
            RunQuery(states=STARTED_AND_ENDED, since=now - DAY, cursor=cursor, limit=LEARNT_PAGE)
        )
        await self._take([run for run in page.items if (run.finished_at or 0) < self.punctuality.since])
        if page.next is None:
            self.punctuality.known_from, self.punctuality.whole = now - DAY, True
        elif page.items:
            self.punctuality.known_from = min(self.punctuality.known_from, page.items[-1].scheduled_at)
        return page.next

    async def _take(self, runs: Sequence[Run]) -> None:
        jobs = await self._jobs(run.job_id for run in runs)
        pairs = [(run, jobs[run.job_id]) for run in runs if run.job_id in jobs]
        self.punctuality.learn(pairs, {job_id: self._store.shard_of(job_id) for job_id in jobs})

    async def _jobs(self, ids: Iterable[JobId]) -> dict[JobId, Job]:
        wanted = list(dict.fromkeys(ids))
        rows = await self._store.get(wanted) if wanted else []
        return {row.job.id: row.job for row in rows if row is not None}

    def _coverage(self, now: int, wanted: int) -> Coverage:
        memory = self.punctuality
        whole = memory.whole or memory.known_from <= now - wanted
        return Coverage(since=format_instant(max(now - wanted, 0) if whole else memory.known_from), whole=whole)
