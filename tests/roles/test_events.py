"""The event stream of one process: whatever ends a run, there is one event of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from duly.core.contract import EventView
from duly.core.instants import HOUR, MINUTE, SECOND
from duly.roles.events import SKIPPED, EventLog
from roles.stage import Stage
from roles.test_recovery import tickless


@pytest.fixture
async def seen(stage: Stage) -> AsyncIterator[list[EventView]]:
    """All that is streamed from now on."""
    events: list[EventView] = []

    async def follow() -> None:
        async for event in stage.servicer.events():
            events.append(event)  # noqa: PERF401 - one by one, as they come

    task = asyncio.create_task(follow())
    await stage.advance(1000)
    yield events
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def ends(seen: list[EventView], job_id: str) -> Counter[str]:
    """How often which end was told of the job's runs; each run's once."""
    mine = [event for event in seen if event.type == "run.finished" and event.job_id == job_id]
    assert max(Counter(event.run_id for event in mine).values(), default=1) == 1, "told twice"
    return Counter(event.data["state"] for event in mine)


@pytest.mark.parametrize("overlap", ["skip", "queue", "cancel_running"])
async def test_what_overlap_ends_is_told(stage: Stage, seen: list[EventView], overlap: str) -> None:
    """Skipped, missed while waiting in the queue, or cancelled: as many events as runs on record."""
    stage.script.lasts = lambda held: 25 * SECOND
    job = await stage.create("o", "every 10s", overlap=overlap, max_lateness="2s")
    await stage.until(42 * SECOND)
    recorded = Counter(run.state.word for run in await stage.runs(job) if run.state.terminal)
    assert ends(seen, job.id) == recorded
    assert recorded[{"skip": "skipped", "queue": "missed", "cancel_running": "cancelled"}[overlap]]


async def test_misfires_are_told(stage: Stage, seen: list[EventView]) -> None:
    """No scheduler for a quarter of an hour: each run that was missed by then has its event."""
    job = await stage.create("often", "every 5m", misfire="run_latest")
    await tickless(stage)
    await stage.advance(16 * MINUTE)
    async with contextlib.AsyncExitStack() as stack:
        heir = stage.scheduler("heir", stage.servicer.event_log.from_schedulers)
        await heir.start()
        stack.push_async_callback(heir.stop)
        await stage.advance(20 * SECOND)
    words = Counter(run.state.word for run in await stage.runs(job) if run.state.terminal)
    assert words["missed"] == 2
    assert ends(seen, job.id) == words


async def test_lost_and_cancelled_before_their_start_are_told(stage: Stage, seen: list[EventView]) -> None:
    """An at-most-once run whose worker vanished, a retry after one, and a run that was cancelled while it waited."""
    stage.script.lasts = lambda held: HOUR
    most = await stage.create("most", "in 1s", delivery="at_most_once")
    least = await stage.create("least", "in 1s")
    never = await stage.create("never", "in 1h")
    await stage.until(2 * SECOND)
    await stage.servicer.cancel_run((await stage.runs(never))[0].id)
    await stage.node.worker.stop()
    await stage.until(20 * SECOND)
    assert ends(seen, most.id) == {"lost": 1}
    assert ends(seen, never.id) == {"cancelled": 1}
    assert [event.type for event in seen if event.job_id == least.id] == ["job.created", "run.started", "run.retrying"]


async def test_a_gap_is_told_in_every_namespace() -> None:
    """What others wrote and could not be read, whoever it concerned; and a page looks again."""
    log = EventLog("e")
    stream = log.follow(None, "mine")
    first = asyncio.ensure_future(anext(stream))
    touched = asyncio.ensure_future(log.touched(0, "mine", frozenset({"j"})))
    await asyncio.sleep(0)  # noqa: TID251 - the two begin to listen
    log.skipped(7)
    event = await first
    assert (event.type, event.data, event.id) == (SKIPPED, {"events": 7}, "e-1")
    assert await touched == 1
    await stream.aclose()
