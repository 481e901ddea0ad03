"""What people watch: figures from memory and history, each run counted once, all of it bounded."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from duly.adapters.local_broker import LocalBroker
from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.adapters.sqlite_store import SqliteStore
from duly.adapters.system_clock import SystemClock
from duly.core import policy
from duly.core.contract import CommandSpec, JobSpec
from duly.core.definition import define_job
from duly.core.errors import NotFound
from duly.core.instants import DAY, HOUR, MINUTE, SECOND, parse_instant
from duly.core.job_ids import mint_job_id
from duly.core.model import Failure, Job, Run, RunState, WorkerId
from duly.roles.forecast import Forecaster
from duly.roles.punctuality import LOOKED_AT, TRACKS, Punctuality
from duly.roles.servicer import Servicer
from duly.telemetry import Telemetry

W = WorkerId("w-1")


class Watch:
    """A servicer over a store that nobody schedules or works."""

    def __init__(self, servicer: Servicer, store: SqliteStore, clock: SystemClock) -> None:
        self.servicer = servicer
        self.store = store
        self.clock = clock

    async def add(self, job: Job, runs: Sequence[Run] = ()) -> None:
        await self.store.create([(job, runs)])


@pytest.fixture
async def watch(tmp_path: Path) -> AsyncIterator[Watch]:
    clock = SystemClock()
    store = SqliteStore(tmp_path / "shard.db", shard="s0", clock=clock)
    await store.migrate()
    broker = LocalBroker(clock)
    servicer = Servicer(
        name="v1",
        store=store,
        broker=broker,
        blobs=ObstoreBlobs(tmp_path / "blobs", clock=clock),
        clock=clock,
        entropy=os.urandom,
        dice=lambda: 0.5,
        telemetry=Telemetry(),
    )
    yield Watch(servicer, store, clock)
    await servicer.stop()
    await broker.close()
    await store.close()


def job(now: int, schedule: str = "* * * * *", **fields: object) -> Job:
    made = define_job(
        JobSpec(task=CommandSpec(argv=["true"]), schedule=schedule, name="j"),
        job_id=mint_job_id(now, os.urandom(10)),
        now=now - DAY,
    )
    return replace(made, **fields)


def ended(of: Job, at: int, lateness: int = 1000, state: RunState = RunState.SUCCEEDED, **fields: object) -> Run:
    run = Run(
        job_id=of.id,
        scheduled_at=at,
        due_at=at,
        state=state,
        attempt=1,
        worker=W,
        started_at=at + lateness,
        finished_at=at + lateness + SECOND,
        lateness=lateness,
        late=lateness > of.max_lateness,
        late_cause="overlap" if lateness > of.max_lateness else None,
    )
    return replace(run, **fields)


async def test_each_run_is_counted_once_from_history_reports_and_other_servicers(watch: Watch) -> None:
    """What ended before this servicer began comes from the store, what it ends itself from its reports, and what
    another ends from the store again."""
    now = await watch.store.now()
    old = job(now)
    past = [ended(old, now - (place + 2) * MINUTE, 2 * SECOND if place == 3 else 1000) for place in range(700)]
    await watch.add(old, past)
    await watch.servicer.start()
    mine, others = (replace(ended(old, now - 30 * SECOND + each), finished_at=now + HOUR) for each in (0, 1))
    await watch.store.create([(replace(old, id=mint_job_id(now, os.urandom(10))), [])])
    watch.servicer.event_log.runs("run.finished", [(mine, old)], now)
    first = await watch.servicer.headline()
    assert first.runs > 400  # the first look reads a page; the rest follows in the background
    while not watch.servicer.punctuality.whole:
        await watch.clock.sleep(1000)
    second = job(now)
    await watch.add(second, [replace(others, job_id=second.id), replace(mine, job_id=second.id)])
    watch.servicer._looked_at = -(10**12)
    headline = await watch.servicer.headline()
    assert (headline.runs, headline.late, headline.failed) == (703, 1, 0)
    watch.servicer._looked_at = -(10**12)
    assert (await watch.servicer.headline()).runs == 703
    assert headline.coverage.whole
    assert headline.max_ms == 2000
    assert headline.p50_ms is not None
    assert 0.9 < headline.p50_ms < 1.1


async def test_two_who_look_first_at_once_count_once(watch: Watch) -> None:
    """The history is read by one of them."""
    now = await watch.store.now()
    one = job(now)
    await watch.add(one, [ended(one, now - (2 + place) * MINUTE) for place in range(5)])
    await watch.servicer.start()
    looked = await asyncio.gather(*(watch.servicer.headline() for _ in range(5)))
    assert [headline.runs for headline in looked] == [5] * 5


async def test_the_strip_shows_the_worst_rows_first(watch: Watch) -> None:
    """By missed, failed, late; a cell is as bad as its worst run; runs that never started are there, too."""
    now = await watch.store.now()
    good, late, failed, missed = (job(now, namespace="blue") for _ in range(4))
    await watch.add(good, [ended(good, now - 3 * MINUTE), ended(good, now - 5 * MINUTE, 900_000)])
    await watch.add(late, [ended(late, now - 3 * MINUTE, 3 * SECOND), ended(late, now - 4 * MINUTE, 30 * SECOND)])
    await watch.add(failed, [ended(failed, now - 3 * MINUTE, state=RunState.FAILED)])
    never = Run(job_id=missed.id, scheduled_at=now - 9 * MINUTE, due_at=now - 9 * MINUTE, state=RunState.MISSED,
                finished_at=now)  # fmt: skip
    await watch.add(missed, [never])
    await watch.servicer.start()
    strip = await watch.servicer.strip(namespace="blue", minutes=30)
    assert [row.id for row in strip.rows] == [missed.id, failed.id, late.id, good.id]
    assert [[cell.level for cell in row.cells] for row in strip.rows] == [[6], [5], [4, 3], [2, 1]]
    assert (await watch.servicer.strip(namespace="red")).rows == []
    assert (await watch.servicer.strip(kind="shard", rows=1)).rows[0].id == "s0"
    assert (await watch.servicer.headline(namespace="blue")).missed == 1


async def test_lateness_is_split_by_cause_job_worker_and_shard(watch: Watch) -> None:
    """The bars hold every run, once."""
    now = await watch.store.now()
    one = job(now)
    await watch.add(one, [ended(one, now - (2 + place) * MINUTE, 10**place) for place in range(8)])
    await watch.servicer.start()
    report = await watch.servicer.lateness(hours=6)
    assert report.runs == 8
    assert sum(sum(bar.causes.values()) for bar in report.bars) == 8
    assert report.causes == {"overlap": 1}
    assert [group.id for group in (*report.jobs, *report.workers, *report.shards)] == [one.id, W, "s0"]


async def test_failures_are_grouped_and_run_again(watch: Watch) -> None:
    """One newest run a job; deleted jobs are left out."""
    now = await watch.store.now()
    first, second, gone = (job(now, "@yearly") for _ in range(3))

    def failure(of: Job, at: int, number: int) -> Run:
        error = Failure(kind="exception", message=f"ValueError: {number} is no number")
        return ended(of, at, state=RunState.FAILED, error=error)

    for each in (first, second, gone):
        await watch.add(each, [failure(each, now - (5 + place) * MINUTE, place) for place in range(3)])
    other = ended(first, now - HOUR, state=RunState.FAILED, error=Failure(kind="exit", message="exit status 3"))
    third = job(now)
    await watch.add(third, [replace(other, job_id=third.id)])
    await watch.servicer.start()
    report = await watch.servicer.failures()
    assert sorted((group.runs, group.jobs) for group in report.groups) == [(1, 1), (9, 3)]
    await watch.servicer.delete_job(gone.id)
    group = max(report.groups, key=lambda each: each.runs)
    retried = await watch.servicer.retry_failures(group.fingerprint)
    assert {run.job_id for run in retried} == {first.id, second.id}
    assert all(run.retry_of is not None for run in retried)
    with pytest.raises(NotFound):
        await watch.servicer.retry_failures("0" * 12)


async def test_the_timeline_packs_lanes_and_links_attempts(watch: Watch) -> None:
    """Runs that overlap lie on lanes of their own."""
    now = await watch.store.now()
    one = job(now)
    at = now - 5 * MINUTE
    runs = [ended(one, at), ended(one, at + 1), ended(one, at + 5 * SECOND)]
    await watch.add(one, runs)
    await watch.servicer.start()
    timeline = await watch.servicer.timeline(span=15 * MINUTE)
    assert [(row.worker, row.lanes) for row in timeline.rows] == [(W, 2)]
    assert [span.lane for span in timeline.rows[0].spans] == [0, 1, 0]
    assert (await watch.servicer.timeline(end=now - 2 * HOUR, span=MINUTE)).rows == []


def test_memory_is_bounded_and_large_batches_are_sampled() -> None:
    """Every run counts, though not every one is looked at; late ones are never dropped for punctual ones."""
    now = parse_instant("2026-11-24T12:00:00Z")
    memory = Punctuality()
    one = job(now)
    batch = [(ended(one, now - each), one) for each in range(1000)]
    batch[500] = (ended(one, now - 500, 5 * SECOND), one)
    memory.ended(batch, "s0")
    total = memory.total(None, 0, 2**40)
    assert (total.runs, total.late) == (1000, 1)
    assert total.worst == 5 * SECOND
    assert len(memory.jobs) == 1
    for _ in range(TRACKS + 20):
        other = job(now)
        memory.ended([(ended(other, now), other)] * (LOOKED_AT // 16), "s0")
    assert len(memory.jobs) == TRACKS


async def test_the_forecast_counts_what_the_schedules_say(watch: Watch) -> None:
    """Cron with seconds, rates, one-time and paused jobs; against the schedules themselves."""
    now = await watch.store.now()
    made = [job(now, text) for text in ("*/10 0-5 * * * *", "every 7m", "30 2 * * *", "every 10s")]
    for each in made:
        run = policy.first_run(each, now, 1)
        await watch.add(each, [] if run is None else [run])
    paused = job(now, "* * * * *", state="paused")
    await watch.add(paused)
    await watch.servicer.start()
    forecaster = Forecaster(watch.store, watch.clock)
    forecast = await forecaster.forecast(None, slots=4, mean_duration=2 * SECOND)
    while not forecast.ready:
        await watch.clock.sleep(1000)
        forecast = await forecaster.forecast(None, slots=4, mean_duration=2 * SECOND)
    await forecaster.stop()
    start = parse_instant(forecast.start)
    wanted = [0] * 1440
    for each in made:
        for at in policy.schedule_of(each).between(start - 1, start + DAY - 1, 100_000):
            wanted[(at - start) // MINUTE] += 1
    assert forecast.per_minute == wanted
    assert forecast.jobs_read == 4
    assert forecast.capacity == 120
    assert forecast.peaks[0][1] == max(wanted)
