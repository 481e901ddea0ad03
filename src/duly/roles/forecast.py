"""The next 24 hours from the schedules: runs a minute, peaks, quiet minutes, and what a clock change moves.

Made in the background, a page of jobs at a time with pauses between, kept for five minutes and then made anew when
somebody looks. Bounded: at most 50,000 jobs are read and 2,000,000 occurrences counted; steady
schedules are counted by arithmetic. What was left out is told.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec

from duly.core import policy
from duly.core.errors import DulyError
from duly.core.instants import DAY, MINUTE, SECOND, format_instant
from duly.core.model import Job
from duly.core.overview import Forecast, Moved
from duly.core.schedule import Schedule
from duly.core.schedule.zones import zone
from duly.ports import Clock, JobQuery, Store

log = logging.getLogger("duly.servicer")

KEPT_FOR: Final = 5 * MINUTE
JOBS_READ: Final = 50_000
OCCURRENCES: Final = 2_000_000
PAGE: Final = 200
MINUTES: Final = DAY // MINUTE
NAMESPACES: Final = 16  # forecasts kept side by side
MOVED: Final = 50
PEAKS: Final = 5


class _Sketch(msgspec.Struct):
    """A forecast in the making."""

    start: int
    minutes: list[int]
    jobs: int = 0
    left_out: int = 0
    counted: int = 0
    ready: bool = False
    made_at: int = 0
    moved: list[Moved] = []
    changes: dict[str, int] = {}
    known: dict[tuple[object, ...], list[tuple[int, int]]] = {}


class Forecaster:
    """Forecasts by namespace."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._sketches: dict[str | None, _Sketch] = {}
        self._tasks: dict[str | None, asyncio.Task[None]] = {}

    async def stop(self) -> None:
        """End the work in hand."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    async def forecast(self, namespace: str | None, *, slots: int, mean_duration: int | None) -> Forecast:
        """What is known so far; a new or old one is begun to be made. `mean_duration` in µs, of runs in `slots`."""
        now = await self._store.now()
        sketch = self._sketches.get(namespace)
        running = namespace in self._tasks and not self._tasks[namespace].done()
        if not running and (sketch is None or now - sketch.made_at > KEPT_FOR):
            fresh = _Sketch(start=now // MINUTE * MINUTE, minutes=[0] * MINUTES, moved=[], changes={}, known={})
            while len(self._sketches) >= NAMESPACES:
                self._sketches.pop(next(iter(self._sketches)))
            self._tasks[namespace] = asyncio.create_task(self._make(namespace, fresh), name="forecast")
            if sketch is None:
                sketch = self._sketches[namespace] = fresh
                await asyncio.wait({self._tasks[namespace]}, timeout=0.08)
        assert sketch is not None
        return _view(sketch, now, slots, mean_duration)

    async def _make(self, namespace: str | None, sketch: _Sketch) -> None:
        cursor: str | None = None
        try:
            while sketch.jobs < JOBS_READ:
                query = JobQuery(namespace=namespace, state="active", cursor=cursor, limit=PAGE)
                page = await self._store.page_jobs(query)
                for row in page.items:
                    self._count(row.job, row.next_run_at, sketch)
                    if sketch.jobs % 20 == 0:
                        await self._clock.sleep(0)
                cursor = page.next
                if cursor is None:
                    break
                await self._clock.sleep(2_000)
            sketch.ready = True
            sketch.made_at = await self._store.now()
            sketch.known = {}
            self._sketches[namespace] = sketch
        except DulyError as error:
            log.warning("the forecast was not made: %s", error)

    def _count(self, job: Job, next_run_at: int | None, sketch: _Sketch) -> None:
        sketch.jobs += 1
        start, end = sketch.start, sketch.start + DAY
        schedule = policy.schedule_of(job)
        if schedule.kind in ("once", "delay"):
            if next_run_at is not None and start <= next_run_at < end:
                sketch.minutes[(next_run_at - start) // MINUTE] += 1
            return
        seed = job.id if "H" in job.schedule else ""
        anchor = 0 if schedule.kind == "cron" else schedule.anchor
        key = (job.schedule, job.timezone, job.dst, job.start, job.end, job.calendar, seed, anchor)
        counts = sketch.known.get(key)
        if counts is None:
            if sketch.counted >= OCCURRENCES:
                sketch.left_out += 1
                return
            counts = _minutes(schedule, start, end)
            sketch.counted += len(counts)
            if len(sketch.known) < 1_000:
                sketch.known[key] = counts
        for minute, count in counts:
            sketch.minutes[minute] += count
        if job.timezone != "UTC":
            self._note_changes(job, schedule, sketch)

    def _note_changes(self, job: Job, schedule: Schedule, sketch: _Sketch) -> None:
        """What the clock changes of the job's zone move within the day."""
        if job.timezone not in sketch.changes:
            stretch = zone(job.timezone).stretch((sketch.start + DAY) // SECOND)
            changes = stretch.before != stretch.offset and stretch.start * SECOND > sketch.start
            sketch.changes[job.timezone] = stretch.start * SECOND if changes else 0
        change = sketch.changes[job.timezone]
        if not change or len(sketch.moved) >= MOVED:
            return
        at = schedule.next_after(change - 2 * 60 * MINUTE)
        for _ in range(200):
            if at is None or at > change + 3 * 60 * MINUTE or len(sketch.moved) >= MOVED:
                return
            found = schedule.occurrence(at)
            if found.moved_by_dst or found.note:
                name = job.name or job.id
                instant = format_instant(at)
                sketch.moved.append(Moved(job_id=job.id, job_name=name, at=instant, local=found.local, note=found.note))
            at = schedule.next_after(at)


def _minutes(schedule: Schedule, start: int, end: int) -> list[tuple[int, int]]:
    """(minute of the day ahead, occurrences in it). Rates are told by arithmetic; the seconds of a cron expression
    are the same in each of its minutes, so that one minute is counted and the others are only found."""
    if schedule.kind == "rate" and not schedule.calendar:
        told = [schedule.count_between(start + at * MINUTE - 1, start + (at + 1) * MINUTE - 1) for at in range(MINUTES)]
        return [(minute, count) for minute, count in enumerate(told) if count]
    counts: dict[int, int] = {}
    if schedule.kind == "cron":
        each, at = 0, schedule.next_after(start - 1)
        while at is not None and at < end:
            minute = (at - start) // MINUTE
            begin = start + minute * MINUTE
            each = each or len(schedule.between(begin - 1, begin + MINUTE - 1, 60))
            counts[minute] = each
            at = schedule.next_after(begin + MINUTE - 1)
        return list(counts.items())
    for at in schedule.between(start - 1, end - 1, MINUTES * 2):
        counts[(at - start) // MINUTE] = counts.get((at - start) // MINUTE, 0) + 1
    return list(counts.items())


def _view(sketch: _Sketch, now: int, slots: int, mean_duration: int | None) -> Forecast:
    minutes = sketch.minutes
    order = sorted(range(MINUTES), key=lambda minute: (-minutes[minute], minute))
    changes = sorted({at for at in sketch.changes.values() if at})
    capacity = None if not mean_duration else slots * MINUTE / mean_duration
    return Forecast(
        start=format_instant(sketch.start),
        made_at=format_instant(sketch.made_at or now),
        ready=sketch.ready,
        jobs_read=sketch.jobs,
        left_out=sketch.left_out,
        per_minute=minutes,
        total=sum(minutes),
        capacity=capacity,
        mean_duration_ms=None if mean_duration is None else mean_duration / 1000,
        peaks=[(minute, minutes[minute]) for minute in order[:PEAKS] if minutes[minute]],
        quiet=sorted(order[-PEAKS:]),
        clock_changes=[format_instant(at) for at in changes],
        moved=sketch.moved,
    )
