"""What every desk of a servicer stands on: the ports, and the few reads and hints that all of them need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from duly.core.errors import NotFound
from duly.core.instants import SECOND
from duly.core.messages import Hint, hints
from duly.core.model import Job, JobId, Run, RunState
from duly.ports import Blobs, Broker, Clock, JobRow, RunQuery, Store
from duly.roles.events import EventLog
from duly.roles.news import NewsDesk
from duly.telemetry import Telemetry

HINT_HORIZON: Final = 30 * SECOND  # runs due later are left to the scheduler's refill
TRIES: Final = 8  # a change that lost to another change or to a dispatch is decided anew


class Desk:
    """The ports of a servicer and what its desks share."""

    hint_horizon: int = HINT_HORIZON  # more than a scheduler's window and the time between two of its refills

    def __init__(
        self,
        *,
        store: Store,
        broker: Broker,
        blobs: Blobs,
        clock: Clock,
        entropy: Callable[[int], bytes],
        telemetry: Telemetry,
    ) -> None:
        self.telemetry = telemetry
        self._store = store
        self._broker = broker
        self._blobs = blobs
        self._clock = clock
        self._entropy = entropy
        epoch = entropy(4).hex()
        self.event_log = EventLog(epoch)
        self.news = NewsDesk(store=store, broker=broker, clock=clock, events=self.event_log, origin=epoch)

    async def _row(self, job_id: str, namespace: str | None) -> JobRow:
        row = (await self._store.get([JobId(job_id)]))[0]
        if row is None or (namespace is not None and row.job.namespace != namespace):
            raise NotFound(f"there is no job {job_id[:80]!r}")
        return row

    async def _active_runs(self, job_id: JobId) -> Sequence[Run]:
        page = await self._store.page_runs(
            RunQuery(job_id=job_id, states=(RunState.DISPATCHED, RunState.RUNNING), limit=1000)
        )
        return page.items

    async def _hint(self, pairs: Sequence[tuple[Run, Job]], now: int, changed: Sequence[JobId] = ()) -> None:
        """Tell the schedulers of the shards what was opened or changed."""
        by_shard: dict[str, list[tuple[Run, Job]]] = {}
        if len(self._store.shards) == 1:
            by_shard[self._store.shards[0]] = [pair for pair in pairs if pair[0].due_at <= now + self.hint_horizon]
        else:
            for run, job in pairs:
                if run.due_at <= now + self.hint_horizon:
                    by_shard.setdefault(self._store.shard_of(job.id), []).append((run, job))
            for job_id in changed:
                by_shard.setdefault(self._store.shard_of(job_id), [])
        for shard, runs in by_shard.items():
            if runs or changed:
                hint = Hint(shard=shard, runs=tuple(runs), changed=tuple(changed))
                await self._broker.publish(hints(shard), hint)
