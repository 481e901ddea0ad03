"""The machine's clock is set under load: nothing fires twice, nothing is skipped in silence, what is late says why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from duly.core.contract import JobView
from duly.core.instants import DAY, HOUR, MINUTE, SECOND
from duly.core.model import Failure, JobId, Run, RunState
from duly.core.policy import schedule_of
from duly.ports import RunQuery
from duly.tasks.attempt import Held
from roles.stage import START, Stage

STEPS = [HOUR, -HOUR, DAY, -DAY]


async def every_run(stage: Stage, job: JobView) -> list[Run]:
    """All runs of a job, of as many pages as it takes."""
    runs: list[Run] = []
    query = RunQuery(job_id=JobId(job.id), oldest_first=True, limit=1000)
    while True:
        page = await stage.store.page_runs(query)
        runs += page.items
        if page.next is None:
            return runs
        query = RunQuery(job_id=JobId(job.id), oldest_first=True, limit=1000, cursor=page.next)


async def check(stage: Stage, jobs: list[JobView], until: int, started: list[tuple[str, int, int]]) -> int:
    """Each occurrence from the start to `until` has a run or lies in a record; no other has one; none began twice."""
    assert len(started) == len(set(started)), "an attempt began twice"
    owed_in_all = 0
    for view in jobs:
        row = (await stage.store.get([JobId(view.id)]))[0]
        assert row is not None
        schedule = schedule_of(row.job)
        owed = schedule.between(row.job.created_at - 1, until, 200_000)
        runs = await every_run(stage, view)
        named = {run.scheduled_at for run in runs}
        assert len(named) == len(runs)
        covered = [(run.scheduled_at, run.covers_until) for run in runs if run.covers_until is not None]
        missing = [at for at in owed if at not in named and not any(a <= at <= b for a, b in covered)]
        assert not missing, (view.name, len(missing), [at - START for at in missing[:5]])
        past = {run.scheduled_at for run in runs if run.state.terminal and run.scheduled_at <= until}
        assert past <= set(owed), view.name
        assert not any(attempt.state == "lost" for run in runs for attempt in run.attempts), "a lease was cut short"
        owed_in_all += len(owed)
    return owed_in_all


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_under_load(stage: Stage, step: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The clock is set while every kind of schedule, retries and long tasks are under way."""
    started: list[tuple[str, int, int]] = []

    def lasts(held: Held) -> int:
        started.append((held.run.id, held.run.scheduled_at, held.attempt))
        return {"long": 20 * SECOND, "second": 10_000}.get(held.job.name, 0)

    def fails(held: Held) -> Failure | None:
        flaky = held.job.name == "flaky" and held.attempt == 1
        return Failure(kind="exit", message="once") if flaky else None

    stage.script.lasts, stage.script.fails = lasts, fails
    recurring = [
        await stage.create("second", "every 5s", misfire="run_latest"),
        await stage.create("all", "every 10m", misfire="run_all"),
        await stage.create("none", "every 1m", misfire="skip"),
        await stage.create("cron", "*/2 * * * *", max_lateness="1s"),
        await stage.create("flaky", "every 7s", retry={"max_attempts": 3, "backoff": "constant", "base": "3s"}),
        await stage.create("long", "every 30s", overlap="allow"),
    ]
    once = await stage.create("once", "in 30m", max_lateness="1s")
    await stage.advance(62 * SECOND)
    term = stage.node.schedulers[0].term
    before = stage.clock.wall()
    stage.clock.skew += step
    await stage.advance(65 * SECOND)
    soon = await stage.create("soon", "in 5s")
    await stage.advance(65 * SECOND)

    assert await stage.words(soon) == ["succeeded"], "time stands still"
    held = stage.node.schedulers[0].term
    assert (held and held.fence) == (term and term.fence), "the term was lost"
    horizon = max(before, stage.clock.wall()) - 30 * SECOND
    owed = await check(stage, recurring, horizon, started)
    [only] = await stage.runs(once)
    if step > 0:
        assert only.state == RunState.SUCCEEDED
        assert (only.late, only.late_cause) == (True, "clock")
        causes = {run.late_cause for view in recurring for run in await every_run(stage, view) if run.late}
        assert causes <= {"clock"}, causes
    else:
        assert only.state == RunState.WAITING
        # The occurrences that ran are not run again; the next comes when the clock has caught up.
        fired = len(started)
        stage.clock.skew -= step
        await stage.advance(65 * SECOND)
        assert len(started) > fired
        owed = await check(stage, recurring, stage.clock.wall() - 30 * SECOND, started)
    with capsys.disabled():
        sys.stdout.write(
            f"\nclock set by {step / HOUR:+.0f} h: {owed} owed, 0 missing, 0 twice, {len(started)} attempts"
        )


async def test_steps_back_and_forth(stage: Stage) -> None:
    """NTP that cannot make up its mind, every ten seconds: still one run an instant, none without one."""
    started: list[tuple[str, int, int]] = []
    stage.script.lasts = lambda held: started.append((held.run.id, held.run.scheduled_at, held.attempt)) or 0
    jobs = [await stage.create("second", "every 1s", misfire="run_all"), await stage.create("slow", "every 1m")]
    highest = 0
    for step in [HOUR, -HOUR, 2 * SECOND, -2 * SECOND, DAY, -DAY, 90 * SECOND, -MINUTE, -HOUR, HOUR]:
        await stage.advance(10 * SECOND)
        highest = max(highest, stage.clock.wall())
        stage.clock.skew += step
    await stage.advance(30 * SECOND)
    highest = max(highest, stage.clock.wall())
    stage.clock.skew += highest - stage.clock.wall()
    await stage.advance(60 * SECOND)
    for view in jobs:
        runs = await every_run(stage, view)
        assert len({run.scheduled_at for run in runs}) == len(runs)
    assert len(started) == len(set(started))
    await check(stage, jobs[1:], highest, started)


async def test_what_was_dispatched_right_after_a_step_forward_starts_at_once(stage: Stage) -> None:
    """The worker, whose estimate of the shard's clock is of before, does not sit on it for an hour."""
    job = await stage.create("once", "in 30m")
    await stage.advance(2 * SECOND)
    stage.clock.skew += HOUR
    await stage.advance(2 * SECOND)
    [run] = await stage.runs(job)
    assert run.state == RunState.SUCCEEDED
    assert run.started_at is not None
    assert HOUR <= run.started_at - START <= HOUR + 4 * SECOND


async def test_what_is_dispatched_right_after_a_step_back_is_not_early(stage: Stage) -> None:
    """By the estimate of before it would be overdue; the message says what time it is."""
    await stage.advance(2 * SECOND)
    stage.clock.skew -= HOUR
    job = await stage.create("once", "in 200ms")
    await stage.advance(5 * SECOND)
    [run] = await stage.runs(job)
    assert run.state == RunState.SUCCEEDED
    [at] = stage.started("once")
    assert at >= (run.scheduled_at - START) / SECOND
    assert at <= (run.scheduled_at - START) / SECOND + 1


async def test_a_retry_after_a_step_back_waits_for_its_backoff_only(stage: Stage) -> None:
    """The attempt ended by the clock as it was; the backoff counts from now."""
    stage.script.lasts = lambda held: 5 * SECOND
    stage.script.fails = lambda held: Failure(kind="exit", message="once") if held.attempt == 1 else None
    job = await stage.create("flaky", "now", retry={"max_attempts": 2, "backoff": "constant", "base": "2s"})
    await stage.advance(2 * SECOND)
    stage.clock.skew -= DAY
    await stage.advance(15 * SECOND)
    [run] = await stage.runs(job)
    assert (run.state, run.attempt) == (RunState.SUCCEEDED, 2)


async def test_a_new_blob_does_not_look_old_after_a_step_forward(stage: Stage) -> None:
    """An upload that no job names yet survives the step; it goes once it has really been unused for so long."""
    keeper, blobs = stage.node.keeper, stage.node.blobs
    await keeper.tidy()
    digest, _ = await blobs.put(b"code to come", limit=100)
    stage.clock.skew += DAY
    for _ in range(3):
        assert await keeper.tidy(unused_for=MINUTE) == (0, 0)
        await stage.advance(MINUTE // 4)
    assert await blobs.size(digest) == 12
    await stage.advance(MINUTE // 2)
    assert await keeper.tidy(unused_for=MINUTE) == (0, 1)
    assert await blobs.size(digest) is None


async def test_an_at_most_once_run_is_not_repeated_by_a_step_back(tmp_path: Path) -> None:
    """By the new clock its worker's lease ended long before it was due; by the old one it may have begun."""
    async with Stage(tmp_path) as stage:
        stage.script.lasts = lambda held: HOUR
        job = await stage.create("careful", "in 2s", delivery="at_most_once")
        await stage.advance(1_600_000)
        [run] = await stage.runs(job)
        assert run.state == RunState.DISPATCHED
        worker = stage.node.worker
        for subscription in worker._subscriptions:
            await subscription.stop()
        worker.attempts.close()  # it is gone, without a word
        for task in list(worker._tasks):
            task.cancel()
        stage.clock.skew -= DAY
        await stage.advance(10 * SECOND)
        [run] = await stage.runs(job)
        assert (run.state, run.attempt) == (RunState.LOST, 1)


async def test_a_fixed_delay_resumed_before_its_beginning_goes_on_past_what_has_been(stage: Stage) -> None:
    """The clock went back to before the job was created; the run after the first was cancelled on that clock."""
    job = await stage.create("a", "after 8s")
    await stage.advance(SECOND)
    stage.clock.skew -= 180 * SECOND
    for _ in range(3):
        await stage.servicer.pause_job(job.id)
        await stage.servicer.resume_job(job.id)
        [waiting] = [run for run in await stage.runs(job) if run.state == RunState.WAITING]
        await stage.servicer.cancel_run(waiting.id)
        await stage.advance(SECOND)
    assert len([run for run in await stage.runs(job) if run.state == RunState.WAITING]) == 1
