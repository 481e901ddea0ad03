"""Staged dispatch: at the worker before the instant, started at the instant, stopped in time by a change."""

from __future__ import annotations

import itertools

import msgspec

from duly.core.instants import MILLISECOND, SECOND
from duly.core.messages import Assign, Report, Succeeded, inbox
from duly.core.model import Failure, RunState, WorkerId
from roles.stage import START, Stage

BOOM = Failure(kind="exception", message="ValueError")


async def test_a_run_is_staged_by_the_lead_and_starts_at_its_instant(stage: Stage) -> None:
    """At the worker half a second before, started exactly when due, lateness zero."""
    job = await stage.create("a", "in 10s")
    await stage.until(9 * SECOND)
    assert stage.script.staged == []
    await stage.until(9 * SECOND + 600 * MILLISECOND)
    assert [name for name, _ in stage.script.staged] == ["a"]
    assert stage.script.starts == []
    await stage.until(11 * SECOND)
    (run,) = await stage.runs(job)
    assert (run.state, run.lateness, run.late) == (RunState.SUCCEEDED, 0, False)
    assert run.result == msgspec.Raw(b'"done"')


async def test_a_rate_goes_on_by_itself(stage: Stage) -> None:
    """Every ten seconds for a minute: six runs, each on its instant, and the next one waits."""
    job = await stage.create("tick", "every 10s")
    await stage.until(61 * SECOND)
    assert stage.started("tick") == [10, 20, 30, 40, 50, 60]
    assert (await stage.words(job))[-1] == "waiting"
    assert set((await stage.words(job))[:-1]) == {"succeeded"}


async def test_a_fixed_delay_counts_from_the_end(stage: Stage) -> None:
    """Three seconds of work, ten of rest."""
    stage.script.lasts = lambda held: 3 * SECOND
    await stage.create("rest", "after 10s")
    await stage.until(30 * SECOND)
    starts = stage.started("rest")
    assert [round(b - a, 2) for a, b in itertools.pairwise(starts)] == [13, 13]


async def test_max_runs_completes_the_job(stage: Stage) -> None:
    """After its third run an active job is completed."""
    job = await stage.create("three", "every 1s", max_runs=3)
    await stage.until(10 * SECOND)
    assert await stage.words(job) == ["succeeded"] * 3
    assert (await stage.servicer.get_job(job.id)).state == "completed"


async def test_the_most_urgent_goes_first_when_slots_are_short(stage: Stage) -> None:
    """With every slot taken, priority decides who follows."""
    stage.script.lasts = lambda held: 5 * SECOND
    await stage.create("low", "in 5s", priority=0, max_lateness="1h")
    await stage.create("high", "in 5s", priority=9, max_lateness="1h")
    await stage.until(4 * SECOND + 700 * MILLISECOND)
    assert [name for name, _ in stage.script.staged] == ["high", "low"]


async def test_a_change_inside_the_lead_stops_the_old_run_in_time(stage: Stage) -> None:
    """Moved by an hour while staged: what was staged does not start, and ends as cancelled."""
    job = await stage.create("moved", "at 2027-01-15T08:00:10Z")
    await stage.until(9 * SECOND + 700 * MILLISECOND)
    assert [name for name, _ in stage.script.staged] == ["moved"]
    await stage.servicer.update_job(job.id, {"schedule": "at 2027-01-15T09:00:00Z"})
    await stage.until(20 * SECOND)
    assert stage.started("moved") == []
    assert await stage.words(job) == ["cancelled", "waiting"]
    assert (await stage.servicer.get_job(job.id)).next_run_at == "2027-01-15T09:00:00.000000Z"


async def test_a_change_that_keeps_the_instant_runs_the_new_definition(stage: Stage) -> None:
    """New arguments while staged: one run, at its instant, by the second version."""
    job = await stage.create("args", "every 10s")
    await stage.until(9 * SECOND + 700 * MILLISECOND)
    await stage.servicer.update_job(job.id, {"task": {"args": [2]}, "max_runs": 1})
    await stage.until(12 * SECOND)
    assert stage.started("args") == [10]
    first = (await stage.runs(job))[0]
    assert (first.state, first.job_version) == (RunState.SUCCEEDED, 2)


async def test_a_delete_inside_the_lead_stops_it_in_time(stage: Stage) -> None:
    """Staged, deleted, never started."""
    job = await stage.create("gone", "in 10s")
    await stage.until(9 * SECOND + 700 * MILLISECOND)
    await stage.servicer.delete_job(job.id)
    await stage.until(20 * SECOND)
    assert stage.started("gone") == []
    assert await stage.words(job) == ["cancelled"]


async def test_deleting_ends_what_runs_and_keeps_the_history(stage: Stage) -> None:
    """The running one is cancelled, the waiting one goes, the finished ones stay."""
    stage.script.lasts = lambda held: 4 * SECOND
    job = await stage.create("busy", "every 10s")
    await stage.until(21 * SECOND)
    await stage.servicer.delete_job(job.id)
    await stage.until(23 * SECOND)
    assert await stage.words(job) == ["succeeded", "cancelled"]


async def test_pause_holds_and_resume_goes_on_from_now(stage: Stage) -> None:
    """What fell due while paused is not made up for."""
    job = await stage.create("p", "every 10s")
    await stage.until(15 * SECOND)
    await stage.servicer.pause_job(job.id)
    await stage.until(45 * SECOND)
    assert (await stage.servicer.get_job(job.id)).next_run_at is None
    await stage.servicer.resume_job(job.id)
    await stage.until(61 * SECOND)
    assert stage.started("p") == [10, 50, 60]


async def test_a_paused_one_time_job_runs_when_resumed(stage: Stage) -> None:
    """Accepted is accepted: it waits out the pause, and does not run a second time after another one."""
    job = await stage.create("once", "in 5s")
    await stage.servicer.pause_job(job.id)
    await stage.until(20 * SECOND)
    await stage.servicer.resume_job(job.id)
    await stage.until(21 * SECOND)
    assert await stage.words(job) == ["succeeded"]
    await stage.servicer.pause_job(job.id)
    await stage.servicer.resume_job(job.id)
    await stage.until(30 * SECOND)
    assert await stage.words(job) == ["succeeded"]


async def test_retries_follow_their_backoff(stage: Stage) -> None:
    """Constant ten seconds, three attempts, then failed."""
    stage.script.fails = lambda held: BOOM
    retry = {"max_attempts": 3, "backoff": "constant", "base": "10s", "cap": "10s"}
    job = await stage.create("f", "in 1s", retry=retry)
    await stage.until(40 * SECOND)
    assert [round(at) for at in stage.started("f")] == [1, 11, 21]
    (run,) = await stage.runs(job)
    assert (run.state, run.attempt, len(run.attempts)) == (RunState.FAILED, 3, 2)


async def test_a_stale_report_changes_nothing(stage: Stage) -> None:
    """An older attempt, another worker, an unknown run: refused with a word, the outcome stays."""
    job = await stage.create("r", "in 1s")
    await stage.until(2 * SECOND)
    (run,) = await stage.runs(job)

    def event(attempt: int, worker: str) -> Succeeded:
        return Succeeded(attempt=attempt, worker=WorkerId(worker), started_at=START, finished_at=START)

    events = (
        (run.key, event(run.attempt, run.worker)),
        (run.key, event(0, run.worker)),
        (run.key, event(run.attempt, "w-other")),
        ((run.job_id, run.scheduled_at + 1), event(1, run.worker)),
    )
    answer = await stage.servicer.reports.take(Report(worker=run.worker, shard="s0", events=events))
    assert answer.words == ("duplicate", "stale_attempt", "stale_attempt", "unknown_run")
    assert await stage.runs(job) == [run]


async def test_a_doubled_assign_starts_once(stage: Stage) -> None:
    """The broker may deliver twice; the worker runs it once."""
    doubled: list[Assign] = []

    async def again(message: object) -> None:
        if isinstance(message, Assign) and message not in doubled:
            doubled.append(message)
            await stage.node.broker.publish(inbox(stage.node.worker.id), message)

    await stage.node.broker.subscribe(inbox(stage.node.worker.id), again)
    await stage.create("d", "in 1s")
    await stage.until(3 * SECOND)
    assert doubled
    assert len(stage.started("d")) == 1
