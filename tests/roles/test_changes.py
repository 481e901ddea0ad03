"""Jobs that are changed while their runs begin, end and are forgotten: nothing runs that should not, nor twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from duly.core.instants import DAY, SECOND
from duly.core.machine import Transition
from duly.core.model import Failure, Job, JobId, RunState
from duly.roles.keeper import Keeper
from roles.stage import START, Stage


async def forget(stage: Stage) -> None:
    """Prune, as the keeper does."""
    keeper = Keeper(store=stage.store, blobs=stage.node.blobs, clock=stage.clock)
    await asyncio.gather(keeper.tidy(), stage.advance(SECOND))


@pytest.mark.parametrize("between", ["pause", "jitter", "schedule and back"])
async def test_a_one_time_job_whose_run_was_pruned_does_not_run_again(stage: Stage, between: str) -> None:
    """No history says any more that it ran; the job does. (It is still there because a run by hand came after.)"""
    job = await stage.create("once", "in 1s", keep={"runs": 1, "for": "1d"})
    await stage.until(3 * SECOND)
    await stage.servicer.trigger_job(job.id)
    await stage.advance(SECOND)
    await forget(stage)
    assert [run.manual for run in await stage.runs(job)] == [True]
    starts = stage.started("once")
    match between:
        case "pause":
            await stage.servicer.pause_job(job.id)
            await forget(stage)
            await stage.servicer.resume_job(job.id)
        case "jitter":
            await stage.servicer.update_job(job.id, {"jitter": "1s"})
        case _:
            await stage.servicer.update_job(job.id, {"schedule": "every 1d"})
            await stage.servicer.update_job(job.id, {"schedule": "2027-01-15T08:00:01.001Z"})
    await stage.advance(20 * SECOND)
    assert stage.started("once") == starts


@pytest.mark.parametrize("paused_at", [0.0, 3.0])
async def test_a_one_time_job_that_was_paused_before_its_time_runs_when_resumed(stage: Stage, paused_at: float) -> None:
    """It never ran, whether it was made paused or put off later; and then once only."""
    job = await stage.create("once", "in 10s", keep={"runs": 0, "for": "1d"}, paused=not paused_at)
    await stage.until(int(paused_at * SECOND) + 2000)
    await stage.servicer.pause_job(job.id)
    await stage.until(20 * SECOND)
    for _ in range(2):
        await stage.servicer.resume_job(job.id)
        await stage.advance(5 * SECOND)
        await stage.servicer.pause_job(job.id)
        await forget(stage)
        assert await stage.runs(job) == []
    await stage.servicer.resume_job(job.id)
    await stage.advance(5 * SECOND)
    assert [int(at) for at in stage.started("once")] == [20]


async def test_a_one_time_run_that_ends_while_its_job_is_paused_is_not_opened_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cancelled between the decision to pause and its commit, and its history is gone when the job goes on."""
    job = await stage.create("once", "in 10s", keep={"runs": 0, "for": "1d"})
    [run] = await stage.runs(job)
    real = stage.store.change
    calls = 0

    async def change(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            await stage.servicer.cancel_run(run.id)
        return await real(*args, **kwargs)

    monkeypatch.setattr(stage.store, "change", change)
    await stage.servicer.pause_job(job.id)
    await forget(stage)
    await stage.servicer.resume_job(job.id)
    await stage.advance(DAY // 24)
    assert stage.started("once") == []


@pytest.mark.parametrize("how", ["pause", "reschedule"])
@pytest.mark.parametrize("when", ["before the change", "after the pause"])
async def test_occurrences_that_were_pruned_do_not_run_again_when_the_clock_is_set_back(
    stage: Stage, when: str, how: str
) -> None:
    """What has been is known by what waits next, and noted in the job before that goes."""
    job = await stage.create("tick", "every 10s", keep={"runs": 0, "for": "1d"})
    await stage.until(65 * SECOND)
    await forget(stage)
    back = 40 * SECOND
    if when == "before the change":
        stage.clock.skew -= back
        await stage.advance(SECOND)
    if how == "pause":
        await stage.servicer.pause_job(job.id)
    if when != "before the change":
        stage.clock.skew -= back
        await stage.advance(SECOND)
    if how == "pause":
        await stage.servicer.resume_job(job.id)
    else:
        await stage.servicer.update_job(job.id, {"schedule": "every 5s"})
    await stage.advance(60 * SECOND)
    runs = await stage.runs(job)
    assert runs[0].scheduled_at > 1_800_000_060_000_000


async def test_occurrences_that_were_missed_are_behind_a_job_too(stage: Stage) -> None:
    """The last of them is on record when the clock is set back, and never began: but it ended in its time."""
    job = await stage.create("late", "every 10s", keep={"runs": 1, "for": "1d"}, misfire="skip")
    stage.clock.skew += 65 * SECOND
    await stage.advance(3 * SECOND)
    await forget(stage)
    assert [run.state.word for run in await stage.runs(job)] == ["missed", "waiting"]
    reached = (await stage.runs(job))[0].scheduled_at
    stage.clock.skew -= 50 * SECOND
    await stage.servicer.pause_job(job.id)
    await stage.servicer.resume_job(job.id)
    assert min(run.scheduled_at for run in await stage.runs(job) if not run.state.terminal) > reached


async def test_a_clock_that_is_set_back_does_not_hold_up_a_job_that_has_nothing_behind_it(stage: Stage) -> None:
    """The instant before its first occurrence is of a time before it was made."""
    job = await stage.create("new", "every 10s")
    stage.clock.skew -= 3600 * SECOND
    await stage.servicer.update_job(job.id, {"schedule": "every 5s"})
    await stage.advance(30 * SECOND)
    assert len(stage.started("new")) >= 5


async def test_a_clock_that_is_set_back_is_not_waited_for_by_a_job_that_was_changed_meanwhile(stage: Stage) -> None:
    """After the step its labels are changed, which leaves its times alone; so nothing has been when it is resumed."""
    await stage.until(3 * SECOND)
    job = await stage.create("new", "every 10s")
    stage.clock.skew -= 3600 * SECOND
    await stage.servicer.update_job(job.id, {"labels": {"team": "a"}})
    await stage.servicer.pause_job(job.id)
    await stage.servicer.resume_job(job.id)
    await stage.advance(60 * SECOND)
    assert len(stage.started("new")) == 6


async def test_what_is_out_when_its_job_is_changed_is_behind_it(stage: Stage) -> None:
    """The last of a schedule is handed out ahead, then there is another schedule, and then the clock is set back."""
    job = await stage.create("last", "every 10s", max_runs=1, keep={"runs": 0, "for": "1d"})
    await stage.until(9_700_000)
    await stage.servicer.update_job(job.id, {"max_runs": None})
    await stage.until(11 * SECOND)
    await forget(stage)
    stage.clock.skew -= 8 * SECOND
    await stage.servicer.pause_job(job.id)
    await stage.servicer.resume_job(job.id)
    await stage.until(25 * SECOND)
    assert [run.scheduled_at for run in await stage.runs(job)] == [START + 20 * SECOND, START + 30 * SECOND]


async def test_the_first_run_of_a_fixed_delay_does_not_run_again(stage: Stage) -> None:
    """It is named by the schedule's own instant, the others by ends; it was pruned, and then the clock was set back."""
    job = await stage.create("loop", "after 10s", keep={"runs": 0, "for": "1d"})
    first = (await stage.runs(job))[0].scheduled_at
    await stage.advance(12 * SECOND)
    await forget(stage)
    stage.clock.skew -= 600 * SECOND
    await stage.servicer.pause_job(job.id)
    await stage.servicer.resume_job(job.id)
    assert [run.scheduled_at for run in await stage.runs(job)] == [first + 20 * SECOND]


async def test_an_occurrence_cancelled_ahead_is_behind_its_job_once_it_has_come(stage: Stage) -> None:
    """While the job was paused; then its record was pruned, and the clock set back."""
    job = await stage.create("tick", "every 10s", keep={"runs": 0, "for": "1d"})
    for _ in range(2):
        await stage.servicer.cancel_run((await stage.runs(job))[-1].id)
    behind = (await stage.runs(job))[-1].scheduled_at - 10 * SECOND
    await stage.servicer.pause_job(job.id)
    await stage.until(25 * SECOND)
    await stage.servicer.resume_job(job.id)
    await forget(stage)
    stage.clock.skew -= 600 * SECOND
    await stage.servicer.pause_job(job.id)
    await stage.servicer.resume_job(job.id)
    assert (await stage.runs(job))[0].scheduled_at > behind


async def test_an_occurrence_cancelled_ahead_does_not_hold_up_a_new_schedule(stage: Stage) -> None:
    """Tomorrow's was cancelled and its record is there: that is no sign of a clock that was set back."""
    job = await stage.create("daily", "every 1d", keep={"runs": 0, "for": "1s"})
    [run] = await stage.runs(job)
    await stage.servicer.cancel_run(run.id)
    await forget(stage)
    await stage.servicer.update_job(job.id, {"schedule": "every 10s"})
    await stage.advance(30 * SECOND)
    assert len(stage.started("daily")) >= 2


@pytest.mark.parametrize("state", ["deleted", "paused"])
@pytest.mark.parametrize("end", ["failed", "handed back"])
async def test_what_goes_back_to_waiting_while_its_job_is_changed_is_decided_anew(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, end: str, state: str
) -> None:
    """A retry that was decided before the job was deleted and committed after would have been started once more."""
    if end == "failed":
        stage.script.fails = lambda held: Failure(kind="exception", message="as the test says")
    job = await stage.create("r", "in 1s" if end == "failed" else "in 3s", retry={"base": "1s", "cap": "1s"})
    real = stage.store.apply
    changed = False

    async def apply(transitions: Sequence[Transition], **kwargs: Any) -> list[int]:
        nonlocal changed
        if not changed and any(t.was_state.active and t.run.state == RunState.WAITING for t in transitions):
            changed = True
            [row] = await stage.store.get([JobId(job.id)])
            assert row is not None
            written = await stage.store.change(replace(row.job, state=state, version=row.job.version + 1), 1, [])
            assert isinstance(written, Job)  # the servicer that asked for it dies before it can do more
        return await real(transitions, **kwargs)

    monkeypatch.setattr(stage.store, "apply", apply)
    if end == "handed back":
        await stage.until(2_700_000)  # it is at its worker, and has not begun
        for held in stage.node.worker.attempts:
            stage.script.stop(held, unless_started=True)
    await stage.advance(20 * SECOND)
    assert changed
    starts = stage.started("r")
    assert len(starts) == (0 if end == "handed back" else 1 if state == "deleted" else 3)
