"""What is not about one job or run: previews, counts, workers, shards, events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final

from duly.core import contract, views
from duly.core.contract import (
    EventView,
    LatenessView,
    OccurrenceView,
    PreviewSpec,
    PreviewView,
    ShardList,
    ShardView,
    StatsView,
    WorkerList,
)
from duly.core.instants import SECOND, format_instant, parse_instant
from duly.core.schedule import parse_schedule, preview
from duly.core.schedule.changes import ChangeDay, change_days
from duly.roles.desk import Desk

REST: Final = 2_500  # µs between two pieces of a stream, times the number of streams
LONGEST_REST: Final = SECOND


class FleetDesk(Desk):
    """The use-cases of the whole."""

    def preview(self, spec: PreviewSpec) -> PreviewView:
        """The next times of a schedule. Raises InvalidInput that explains a bad one."""
        after = self._clock.wall() if spec.from_ is None else parse_instant(spec.from_, pointer="/from") - 1
        schedule = parse_schedule(
            spec.schedule,
            timezone=spec.timezone,
            dst=spec.dst,
            anchor=after,
            seed=spec.job_id,
            start=None if spec.start is None else parse_instant(spec.start, pointer="/start"),
            end=None if spec.end is None else parse_instant(spec.end, pointer="/end"),
            calendar=tuple(spec.calendar),
        )
        items = [
            OccurrenceView(at=format_instant(item.at), local=item.local, moved_by_dst=item.moved_by_dst, note=item.note)
            for item in preview(schedule, after, spec.count)
        ]
        return PreviewView(
            schedule=spec.schedule,
            timezone=spec.timezone,
            kind=schedule.kind,
            description=schedule.describe(),
            items=items,
        )

    def clock_changes(self, spec: PreviewSpec) -> list[ChangeDay]:
        """What the schedule does in each mode on the next two days on which its clock changes. Raises InvalidInput."""
        return change_days(
            spec.schedule,
            timezone=spec.timezone,
            after=self._clock.wall(),
            seed=spec.job_id,
            calendar=tuple(spec.calendar),
        )

    async def stats(self) -> StatsView:
        """Counts over all shards, and the lateness that this servicer has seen."""
        shards = await self._store.stats()
        sketch = self.telemetry.sketch
        ended: dict[str, int] = {}
        for shard in shards:
            for state, count in shard.ended.items():
                ended[state] = ended.get(state, 0) + count
        missing = [shard.shard for shard in shards if shard.state != "up"]
        p50, p99 = sketch.quantile(0.5), sketch.quantile(0.99)
        return StatsView(
            jobs=sum(shard.jobs for shard in shards),
            waiting=sum(shard.waiting for shard in shards),
            dispatched=sum(shard.dispatched for shard in shards),
            running=sum(shard.running for shard in shards),
            ended=ended,
            lateness=LatenessView(
                count=sketch.count,
                p50_ms=None if p50 is None else p50 / 1000,
                p99_ms=None if p99 is None else p99 / 1000,
                max_ms=sketch.largest / 1000 if sketch.count else None,
                late=sketch.late,
            ),
            workers=len({worker.id for shard in shards for worker in shard.workers if worker.state == "ready"}),
            partial=bool(missing),
            missing_shards=missing,
        )

    async def workers(self) -> WorkerList:
        """All workers, as the freshest beat on any shard told them."""
        shards = await self._store.stats()
        newest: dict[str, contract.WorkerView] = {}
        for shard in shards:
            for worker in shard.workers:
                view = views.worker_view(worker)
                if worker.id not in newest or newest[worker.id].beat_at < view.beat_at:
                    newest[worker.id] = view
        missing = [shard.shard for shard in shards if shard.state != "up"]
        return WorkerList(
            items=[newest[name] for name in sorted(newest)], partial=bool(missing), missing_shards=missing
        )

    async def shards(self) -> ShardList:
        """All shards with their counts and terms."""
        shards = await self._store.stats()
        missing = [shard.shard for shard in shards if shard.state != "up"]
        items = [
            ShardView(
                name=shard.shard,
                state=shard.state,
                slots=shard.slots,
                jobs=shard.jobs,
                waiting=shard.waiting,
                running=shard.running,
                term=views.term_view(shard.term),
            )
            for shard in shards
        ]
        return ShardList(items=items, partial=bool(missing), missing_shards=missing)

    def events(self, after: str | None = None, *, namespace: str | None = None) -> AsyncIterator[EventView]:
        """What happens, as it happens; from the event after `after`, if it is still kept."""
        return self.event_log.follow(after, namespace)

    async def encoded_events(
        self, after: str | None, encode: Callable[[EventView], bytes], *, namespace: str | None
    ) -> AsyncGenerator[bytes, None]:
        """The same, encoded once for all who follow. The more they are, the longer each rests between two pieces: all
        together are sent 100,000 events a second at most. Who falls behind is told of a gap."""
        pieces = self.event_log.follow_encoded(after, namespace, encode)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece
                await self._clock.sleep(min(REST * self.event_log.followers, LONGEST_REST))
