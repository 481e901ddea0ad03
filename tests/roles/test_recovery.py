"""Overlap, misfires, lost workers and messages, terms: what happens when things do not go as planned."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import pytest

from duly.core import machine
from duly.core.errors import Fenced, OutcomeUnknown
from duly.core.instants import HOUR, MILLISECOND, MINUTE, SECOND
from duly.core.machine import Transition
from duly.core.messages import AnyMessage, Assign
from duly.core.model import RunState, Worker, WorkerId
from duly.roles import recovery
from duly.roles.scheduler import Scheduler
from roles.stage import Stage


async def tickless(stage: Stage) -> None:
    """Take the scheduler away, as if its process were stopped without a word."""
    for scheduler in stage.node.schedulers:
        scheduler.state = "stopped"
        for task in list(scheduler._tasks):
            task.cancel()


@pytest.mark.parametrize(
    ("overlap", "starts", "states"),
    [
        ("skip", [10, 40], {"succeeded": 1, "skipped": 2}),
        ("queue", [10, 35], {"succeeded": 1, "missed": 1}),
        ("allow", [10, 20, 30, 40], {"succeeded": 1, "running": 3}),
        ("cancel_running", [10, 20, 30, 40], {"cancelled": 3}),
    ],
)
async def test_overlap(stage: Stage, overlap: str, starts: list[int], states: dict[str, int]) -> None:
    """Every ten seconds, 25 seconds of work: each policy has its way, and a record of what did not run."""
    stage.script.lasts = lambda held: 25 * SECOND
    job = await stage.create("o", "every 10s", overlap=overlap, max_lateness="2s")
    await stage.until(42 * SECOND)
    assert [round(at) for at in stage.started("o")] == starts
    found = Counter(await stage.words(job))
    assert {state: found[state] for state in states} == states
    assert found["failed"] == found["lost"] == 0


async def test_a_run_is_not_blamed_for_what_took_down_more_than_its_worker(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was not heard of since the term began went with the scheduler before this one."""
    lost: list[bool] = []

    def step(run: Any, job: Any, event: Any, now: int, dice: float = 0.0) -> Any:
        lost.append(event.alone)
        return machine.step(run, job, event, now, dice)

    monkeypatch.setattr(recovery, "step", step)
    for together in (False, True):
        await stage.create(f"together {together}", "now")
        [scheduler] = stage.node.schedulers
        now = await stage.store.now("s0")
        fence = (await stage.store.hold("s0", scheduler.owner, 3 * SECOND)).fence
        row = Worker(id=WorkerId(f"gone {together}"), slots=1)
        await stage.store.beat("s0", row, SECOND)
        if together:
            await tickless(stage)
        [(run, job)] = await stage.store.due("s0", now, None, 10)
        given = machine.step(run, job, machine.Dispatch(row.id), now)
        assert isinstance(given, Transition)
        assert await stage.store.apply([given], shard="s0", fence=fence) == []
        if together:
            await stage.advance(MILLISECOND)
            back = stage.scheduler("back")
            await back.start()
        await stage.advance(8 * SECOND)
    await back.stop()
    assert lost == [True, False]


async def test_a_run_that_ends_within_the_lead_does_not_overlap(stage: Stage) -> None:
    """An every-second job that takes 0.9 s runs every second, on time."""
    stage.script.lasts = lambda held: 900 * MILLISECOND
    job = await stage.create("tight", "every 1s")
    await stage.until(10 * SECOND + 500 * MILLISECOND)
    assert [round(at, 3) for at in stage.started("tight")] == list(range(1, 11))
    assert "skipped" not in await stage.words(job)


async def test_downtime_is_caught_up_as_the_policy_says(stage: Stage) -> None:
    """No scheduler for three hours: the newest runs late, for catching up; the others are on record as missed."""
    latest = await stage.create("latest", "0 * * * *")
    every = await stage.create("all", "*/30 * * * *", misfire="run_all", catchup_window="1h")
    none = await stage.create("none", "0 * * * *", misfire="skip")
    once = await stage.create("once", "in 10m", max_lateness="1s")
    await tickless(stage)
    await stage.until(3 * HOUR + 5 * MINUTE)
    back = stage.scheduler("back")
    await back.start()
    await stage.until(3 * HOUR + 6 * MINUTE)
    await back.stop()
    assert await stage.words(latest) == ["missed", "missed", "succeeded", "waiting"]
    newest = (await stage.runs(latest))[2]
    assert (newest.late, newest.late_cause) == (True, "catch_up")
    assert await stage.words(none) == ["missed", "missed", "missed", "waiting"]
    assert Counter(await stage.words(every)) == {"missed": 4, "succeeded": 2, "waiting": 1}
    assert await stage.words(once) == ["succeeded"]


async def test_a_lost_workers_runs_start_again_within_a_lease(stage: Stage) -> None:
    """It stops beating: after five seconds its run is a second attempt at another worker."""
    stage.script.lasts = lambda held: HOUR if held.attempt == 1 else 0
    again = await stage.create("again", "in 1s")
    most = await stage.create("most", "in 1s", delivery="at_most_once")
    await stage.until(2 * SECOND)
    await fall_silent(stage)
    await stage.until(9 * SECOND)
    assert await stage.words(most) == ["lost"]
    (run,) = await stage.runs(again)
    assert (run.state, run.crashes, run.attempts[0].state) == (RunState.WAITING, 1, "lost")


async def fall_silent(stage: Stage) -> None:
    """The worker's process is frozen: nothing of it runs any more."""
    worker = stage.node.worker
    for task in list(worker._tasks):
        task.cancel()
    for subscription in worker._subscriptions:
        await subscription.stop()


async def test_an_assign_that_was_lost_is_sent_again(stage: Stage) -> None:
    """The broker loses the first one; the beat tells that it never came; the second attempt runs."""
    broker = stage.node.broker
    publish = broker.publish
    lost: list[AnyMessage] = []

    async def lossy(subject: str, message: AnyMessage) -> None:
        if isinstance(message, Assign) and not lost:
            lost.append(message)
            return
        await publish(subject, message)

    broker.publish = lossy  # type: ignore[method-assign]  # this one object only
    job = await stage.create("l", "in 1s")
    await stage.until(10 * SECOND)
    assert len(lost) == 1
    (run,) = await stage.runs(job)
    assert (run.state, run.attempt, run.crashes) == (RunState.SUCCEEDED, 2, 0)


async def test_a_lost_hint_costs_at_most_a_refill(stage: Stage) -> None:
    """Nobody told the scheduler: the run is found within a second."""

    async def deaf(subject: str, message: AnyMessage) -> None:
        if not subject.startswith("hint"):
            await publish(subject, message)

    publish = stage.node.broker.publish
    stage.node.broker.publish = deaf  # type: ignore[method-assign]  # this one object only
    await stage.create("h", "now")
    await stage.advance(1500 * MILLISECOND)
    (at,) = stage.started("h")
    assert at < 1.2


async def test_one_leads_and_another_stands_by(stage: Stage) -> None:
    """The standby takes over a fence higher when the term runs out, and the former one's writes are refused."""
    first: Scheduler = stage.node.schedulers[0]
    standby = stage.scheduler("standby")
    await standby.start()
    await stage.advance(2 * SECOND)
    assert (first.leading, standby.leading) == (True, False)
    assert first.term is not None
    fence = first.term.fence
    await tickless(stage)
    await stage.advance(5 * SECOND)
    assert standby.leading
    assert standby.term is not None
    assert standby.term.fence == fence + 1
    job = await stage.create("s", "in 1s")
    await stage.advance(2 * SECOND)
    assert await stage.words(job) == ["succeeded"]
    await standby.stop()


async def test_a_dispatch_that_is_committed_after_it_was_given_up_is_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who leads on has read what is out before it came: under the same fence nobody would ever have known of it."""
    real = stage.store.apply
    late: list[Callable[[], Coroutine[Any, Any, list[int]]]] = []

    async def apply(transitions: Sequence[Transition], **kwargs: Any) -> list[int]:
        if not late and any(t.run.state == RunState.DISPATCHED for t in transitions):
            late.append(partial(real, transitions, **kwargs))
            raise OutcomeUnknown("it is on its way")
        return await real(transitions, **kwargs)

    monkeypatch.setattr(stage.store, "apply", apply)
    await stage.advance(SECOND)
    job = await stage.create("s", "in 1s")
    await stage.advance(510 * MILLISECOND)
    assert len(late) == 1
    await stage.advance(100 * MILLISECOND)
    assert stage.node.schedulers[0].leading  # again
    with pytest.raises(Fenced):
        await late[0]()
    await stage.advance(10 * SECOND)
    assert await stage.words(job) == ["succeeded"]


async def test_a_clean_stop_hands_over_at_once(stage: Stage) -> None:
    """Drained, the term is free: the standby leads within its next look."""
    standby = stage.scheduler("standby")
    await standby.start()
    await stage.advance(SECOND)
    await stage.node.schedulers[0].drain()
    await stage.advance(600 * MILLISECOND)
    assert standby.leading
    await standby.stop()


async def test_a_worker_that_drains_gives_back(stage: Stage) -> None:
    """What runs past the grace goes back as released, with no attempt counted."""
    stage.script.lasts = lambda held: HOUR
    job = await stage.create("d", "in 1s")
    await stage.until(2 * SECOND)

    async def drain() -> None:
        await stage.node.worker.drain()

    draining = asyncio.create_task(drain())
    await stage.advance(30 * SECOND)
    await draining
    (run,) = await stage.runs(job)
    assert (run.state, run.failures, run.crashes) == (RunState.WAITING, 0, 0)
    assert [attempt.state for attempt in run.attempts] == ["released"]


async def test_a_cancel_wins_over_a_success(stage: Stage) -> None:
    """Acknowledged, a cancel is what is recorded, whatever the task does."""
    stage.script.lasts = lambda held: 5 * SECOND
    job = await stage.create("c", "in 1s")
    await stage.until(3 * SECOND)
    (run,) = await stage.runs(job)
    view = await stage.servicer.cancel_run(run.id)
    assert view.cancel_requested
    await stage.until(10 * SECOND)
    assert await stage.words(job) == ["cancelled"]
