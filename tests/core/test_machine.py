"""The run's transition table: every pair of state and event is answered, and the promises hold in all of them."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from duly.core.instants import HOUR, MINUTE, SECOND
from duly.core.machine import (
    DUPLICATE,
    HELD,
    STALE,
    TERMINAL,
    CancelAsked,
    Dispatch,
    Event,
    Overlapped,
    Refusal,
    Transition,
    WorkerLost,
    step,
)
from duly.core.messages import Failed, Released, Started, Stopped, Succeeded
from duly.core.model import (
    SKIPPED_RECORDS,
    Failure,
    FunctionTask,
    Job,
    JobId,
    Retry,
    Run,
    RunState,
    WorkerId,
)

NOW = 1_800_000_000 * SECOND  # 2027-01-15T08:00:00Z, a whole minute
W1, W2 = WorkerId("w1"), WorkerId("w2")
BOOM = Failure(kind="exception", message="ValueError: no")


def job(schedule: str = "* * * * *", **fields: object) -> Job:
    """A job of a no-op function."""
    plain = Job(
        id=JobId("0197a000-0000-7000-8000-000000000001"),
        task=FunctionTask(name="m:f"),
        schedule=schedule,
        created_at=NOW - HOUR,
        updated_at=NOW - HOUR,
        anchored_at=NOW - HOUR,
    )
    return msgspec.structs.replace(plain, **fields)


def run(state: RunState = RunState.WAITING, **fields: object) -> Run:
    """A run due now; active ones are attempt 1 at w1."""
    plain = Run(job_id=job().id, scheduled_at=NOW, due_at=NOW, state=state)
    if state != RunState.WAITING:
        plain = replace(plain, attempt=1, worker=W1, dispatched_at=NOW - SECOND)
    return msgspec.structs.replace(plain, **fields)


def ok(attempt: int = 1, worker: WorkerId = W1, **fields: object) -> Succeeded:
    plain = Succeeded(attempt=attempt, worker=worker, started_at=NOW + 400, finished_at=NOW + 900)
    return msgspec.structs.replace(plain, **fields)


def bad(attempt: int = 1, worker: WorkerId = W1, **fields: object) -> Failed:
    plain = Failed(attempt=attempt, worker=worker, error=BOOM, started_at=NOW + 400, finished_at=NOW + 900)
    return msgspec.structs.replace(plain, **fields)


def became(outcome: Transition | Refusal) -> Run:
    """The run after a transition."""
    assert isinstance(outcome, Transition), outcome
    return outcome.run


# -- all pairs ----------------------------------------------------------------------------------------------

attempts = st.integers(0, 5)
workers = st.sampled_from([W1, W2])
instants = st.integers(NOW - 10 * HOUR, NOW + 10 * HOUR)

events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Dispatch, workers, st.sampled_from([None, "no_capacity", "overlap"])),
    st.just(Overlapped()),
    st.builds(CancelAsked),
    st.builds(WorkerLost, attempts, workers, instants, st.booleans()),
    st.builds(Started, attempt=attempts, worker=workers, started_at=instants),
    st.builds(Succeeded, attempt=attempts, worker=workers, started_at=instants, finished_at=instants),
    st.builds(
        Failed,
        attempt=attempts,
        worker=workers,
        error=st.just(BOOM),
        started_at=st.none() | instants,
        finished_at=instants,
        retryable=st.booleans(),
        crashed=st.booleans(),
    ),
    st.builds(
        Released,
        attempt=attempts,
        worker=workers,
        reason=st.sampled_from(["drain", "no_capacity"]),
        started=st.booleans(),
    ),
    st.builds(Stopped, attempt=attempts, worker=workers, finished_at=instants),
)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """A run in any state that a run can be in."""
    state = draw(st.sampled_from(list(RunState)))
    attempt = draw(st.integers(1, 4)) if state != RunState.WAITING else draw(st.integers(0, 4))
    scheduled_at = draw(instants) // MINUTE * MINUTE
    return Run(
        job_id=job().id,
        scheduled_at=scheduled_at,
        due_at=scheduled_at + draw(st.integers(0, MINUTE)),
        state=state,
        attempt=attempt,
        worker=draw(workers) if state not in (RunState.WAITING, RunState.MISSED) else WorkerId(""),
        manual=draw(st.booleans()),
        failures=draw(st.integers(0, 4)),
        crashes=draw(st.integers(0, 2)),
        cancel=draw(st.sampled_from([None, "asked"])) if state.active else None,
        lateness=draw(st.none() | st.integers(0, HOUR)) if attempt else None,
    )


jobs = st.builds(
    lambda schedule, state, delivery, misfire, overlap, retries, max_runs: job(
        schedule,
        state=state,
        delivery=delivery,
        misfire=misfire,
        overlap=overlap,
        retry=Retry(max_attempts=retries),
        max_runs=max_runs,
    ),
    st.sampled_from(["* * * * *", "now", "every 10s", "after 5m", "at 2027-01-15T08:00", "H H * * *"]),
    st.sampled_from(["active", "paused", "deleted"]),
    st.sampled_from(["at_least_once", "at_most_once"]),
    st.sampled_from(["run_latest", "run_all", "skip"]),
    st.sampled_from(["skip", "queue", "allow", "cancel_running"]),
    st.integers(1, 5),
    st.none() | st.integers(1, 3),
)


@settings(max_examples=1500, deadline=None)
@given(runs(), jobs, events, instants, st.floats(0, 1, exclude_max=True))
def test_every_pair_is_answered_and_keeps_the_promises(
    before: Run, its_job: Job, event: Event, now: int, dice: float
) -> None:
    """Terminal is final; what is compared is what was; attempts rise by dispatch alone; opened runs are later."""
    outcome = step(before, its_job, event, now, dice)
    assert outcome == step(before, its_job, event, now, dice), "the same question has the same answer"
    if isinstance(outcome, Refusal):
        assert outcome.code
        return
    after = outcome.run
    assert not before.state.terminal, "terminal is final"
    assert (outcome.was_state, outcome.was_attempt, outcome.was_worker) == (
        before.state,
        before.attempt,
        before.worker,
    )
    assert after.key == before.key
    if after.state == RunState.DISPATCHED and before.state == RunState.WAITING:
        assert after.attempt == before.attempt + 1
    else:
        assert after.attempt == before.attempt
    if after.state.terminal:
        assert after.finished_at is not None
    if after.state == RunState.WAITING:
        assert after.worker == ""
        assert not (its_job.state == "deleted" and not before.cancel and isinstance(event, Failed))
    if before.cancel and after.state.terminal:
        assert after.state == RunState.CANCELLED, "no success after an acknowledged cancel"
    keys = [opened.key for opened in outcome.opened]
    assert len(keys) == len(set(keys))
    for opened in outcome.opened:
        assert opened.scheduled_at > before.scheduled_at
        assert opened.attempt == 0
    assert sum(opened.state == RunState.WAITING for opened in outcome.opened) <= 1
    if its_job.state != "active":
        assert not [opened for opened in outcome.opened if opened.state == RunState.WAITING]


@settings(max_examples=600, deadline=None)
@given(runs(), jobs, events, instants)
def test_an_attempt_is_heard_only_while_it_is_the_current_one(
    before: Run, its_job: Job, event: Event, now: int
) -> None:
    """An event with another attempt number or worker than the run's changes nothing."""
    if isinstance(event, Dispatch | Overlapped | CancelAsked) or not before.state.active:
        return
    if (event.attempt, event.worker) != (before.attempt, before.worker):
        assert step(before, its_job, event, now) == STALE


@settings(max_examples=600, deadline=None)
@given(runs(), jobs, events, instants)
def test_at_most_once_is_never_tried_again_once_it_may_have_started(
    before: Run, its_job: Job, event: Event, now: int
) -> None:
    """Back to waiting only if the attempt certainly did not begin."""
    its_job = replace(its_job, delivery="at_most_once")
    outcome = step(before, its_job, event, now)
    if not isinstance(outcome, Transition) or outcome.run.state != RunState.WAITING:
        return
    match event:
        case Released():
            assert not event.started
        case WorkerLost():
            assert before.state == RunState.DISPATCHED
            assert not event.delivered or event.lease_until <= before.due_at
        case _:
            pytest.fail(f"{event} sent an at-most-once run back")


# -- examples -----------------------------------------------------------------------------------------------


def test_dispatch_raises_the_attempt_and_opens_the_next_occurrence() -> None:
    """A fixed-rate job's next run is in the transition that dispatches the last one."""
    outcome = step(run(), job(), Dispatch(W1), NOW - SECOND // 2)
    assert isinstance(outcome, Transition)
    assert (outcome.run.state, outcome.run.attempt, outcome.run.worker) == (RunState.DISPATCHED, 1, W1)
    assert [opened.scheduled_at for opened in outcome.opened] == [NOW + MINUTE]
    assert outcome.columns_only


def test_a_second_dispatch_opens_nothing() -> None:
    """What an attempt opened is not opened again by the next attempt."""
    outcome = step(run(attempt=1), job(), Dispatch(W2), NOW)
    assert isinstance(outcome, Transition)
    assert outcome.opened == ()
    assert outcome.run.attempt == 2


def test_max_runs_ends_the_schedule() -> None:
    """The run with ordinal max_runs opens no other."""
    outcome = step(run(ordinal=3), job(max_runs=3), Dispatch(W1), NOW)
    assert isinstance(outcome, Transition)
    assert outcome.opened == ()


def test_fixed_delay_opens_its_next_run_when_it_ends() -> None:
    """`after 5m` counts from completion."""
    delayed = job("after 5m")
    given_out = step(run(), delayed, Dispatch(W1), NOW)
    assert isinstance(given_out, Transition)
    assert given_out.opened == ()
    outcome = step(given_out.run, delayed, ok(finished_at=NOW + SECOND), NOW + SECOND)
    assert isinstance(outcome, Transition)
    assert [opened.scheduled_at for opened in outcome.opened] == [NOW + SECOND + 5 * MINUTE]


def test_success_records_lateness_and_result() -> None:
    """Lateness is the first instruction minus the due time, in µs."""
    after = became(step(run(RunState.DISPATCHED), job(), ok(result=msgspec.Raw(b"42")), NOW + 1000))
    assert (after.state, after.lateness, after.late, after.result) == (
        RunState.SUCCEEDED,
        400,
        False,
        msgspec.Raw(b"42"),
    )


def test_a_late_start_names_its_cause() -> None:
    """The cause that the scheduler saw goes before what the worker tells."""
    held = run(RunState.DISPATCHED, held_by="no_capacity")
    event = ok(started_at=NOW + 2 * SECOND, finished_at=NOW + 3 * SECOND, cause="code_fetch")
    after = became(step(held, job(), event, NOW + 3 * SECOND))
    assert (after.late, after.late_cause) == (True, "no_capacity")


def test_a_failure_waits_its_backoff_and_keeps_the_attempt() -> None:
    """Back to waiting, due after the backoff, with the attempt in the list and its files out of the run."""
    after = became(step(run(RunState.RUNNING), job(), bad(logs={"stderr": "sha256:x"}), NOW + SECOND, 0.5))
    assert after.state == RunState.WAITING
    assert NOW + 2 * SECOND <= after.due_at <= NOW + 3 * SECOND
    assert [(a.number, a.state, a.error) for a in after.attempts] == [(1, "failed", BOOM)]
    assert after.logs == {}
    assert after.failures == 1


def test_the_last_failure_is_final() -> None:
    """With max_attempts used up the run has failed."""
    after = became(step(run(RunState.RUNNING, failures=2), job(), bad(), NOW))
    assert (after.state, after.error) == (RunState.FAILED, BOOM)


def test_what_cannot_help_is_not_tried_again() -> None:
    """Not retryable: failed at once."""
    assert became(step(run(RunState.RUNNING), job(), bad(retryable=False), NOW)).state == RunState.FAILED


def test_three_crashes_quarantine() -> None:
    """Crashes count apart from failures; the third one sets the run aside."""
    current = run(RunState.RUNNING)
    for crash in (1, 2):
        lost = WorkerLost(attempt=current.attempt, worker=current.worker, lease_until=NOW + SECOND)
        current = became(step(current, job(), lost, NOW))
        assert (current.state, current.crashes, current.failures) == (RunState.WAITING, crash, 0)
        current = replace(became(step(current, job(), Dispatch(W1), NOW)), state=RunState.RUNNING)
    lost = WorkerLost(attempt=current.attempt, worker=current.worker, lease_until=NOW + SECOND)
    assert became(step(current, job(), lost, NOW)).state == RunState.QUARANTINED


def test_a_run_that_was_only_handed_out_is_doubted_for_long() -> None:
    """It may be innocent of what took its worker down: the tenth lost worker sets it aside, not the third."""
    current = run(RunState.DISPATCHED)
    for _ in range(9):
        lost = WorkerLost(attempt=current.attempt, worker=current.worker, lease_until=NOW + SECOND)
        current = became(step(current, job(), lost, NOW))
        assert current.state == RunState.WAITING
        assert current.crashes <= 2
        current = became(step(current, job(), Dispatch(W1), NOW))
    lost = WorkerLost(attempt=current.attempt, worker=current.worker, lease_until=NOW + SECOND)
    assert became(step(current, job(), lost, NOW)).state == RunState.QUARANTINED
    proven = replace(current, state=RunState.RUNNING)
    assert became(step(proven, job(), lost, NOW)).state == RunState.QUARANTINED


def test_a_run_whose_whole_process_went_is_doubted_for_long() -> None:
    """Its scheduler died with its worker: kill -9 of all is no proof against the run, ten times is too often."""
    current = run(RunState.RUNNING)
    for _ in range(9):
        lost = WorkerLost(attempt=current.attempt, worker=current.worker, lease_until=NOW + SECOND, alone=False)
        current = became(step(current, job(), lost, NOW))
        assert (current.state, current.crashes <= 2) == (RunState.WAITING, True)
        current = replace(became(step(current, job(), Dispatch(W1), NOW)), state=RunState.RUNNING)
    lost = WorkerLost(attempt=current.attempt, worker=current.worker, lease_until=NOW + SECOND, alone=False)
    assert became(step(current, job(), lost, NOW)).state == RunState.QUARANTINED


def test_a_lost_worker_that_never_began_costs_nothing() -> None:
    """Its lease ended before the run was due: no crash is counted."""
    staged = run(RunState.DISPATCHED, due_at=NOW + SECOND)
    lost = WorkerLost(attempt=1, worker=W1, lease_until=NOW)
    after = became(step(staged, job(), lost, NOW + SECOND))
    assert (after.state, after.crashes) == (RunState.WAITING, 0)


def test_at_most_once_believes_no_lease() -> None:
    """A lease moves with the shard's clock and the due time does not: after a step back it may only seem so."""
    staged = run(RunState.DISPATCHED, due_at=NOW + SECOND)
    lost = WorkerLost(attempt=1, worker=W1, lease_until=NOW)
    assert became(step(staged, job(delivery="at_most_once"), lost, NOW + SECOND)).state == RunState.LOST


def test_at_most_once_is_lost_with_its_worker() -> None:
    """It may have started: lost, and said so."""
    lost = WorkerLost(attempt=1, worker=W1, lease_until=NOW + SECOND)
    after = became(step(run(RunState.DISPATCHED), job(delivery="at_most_once"), lost, NOW + 2 * SECOND))
    assert (after.state, after.error.kind if after.error else "") == (RunState.LOST, "worker_lost")


def test_a_release_consumes_no_attempt() -> None:
    """Drained: waiting again, nothing counted; the number is used up, so the attempt stays on record."""
    after = became(
        step(run(RunState.RUNNING), job(), Released(attempt=1, worker=W1, reason="drain", started=True), NOW)
    )
    assert (after.state, after.failures, after.crashes) == (RunState.WAITING, 0, 0)
    assert [(attempt.number, attempt.state) for attempt in after.attempts] == [(1, "released")]


def test_a_change_inside_the_lead_runs_by_the_new_definition() -> None:
    """Handed back unstarted: waits again with the job's present version, if its schedule still has the instant."""
    changed = job("*/2 * * * *", version=2, priority=9)
    back = Released(attempt=1, worker=W1, reason="changed")
    after = became(step(run(RunState.DISPATCHED), changed, back, NOW))
    assert (after.state, after.job_version, after.priority) == (RunState.WAITING, 2, 9)
    elsewhere = job("30 * * * *", version=2)
    assert became(step(run(RunState.DISPATCHED), elsewhere, back, NOW)).state == RunState.CANCELLED


def test_cancelling_one_occurrence_goes_on_with_the_next() -> None:
    """A waiting run ends; the schedule does not."""
    outcome = step(run(), job(), CancelAsked("no"), NOW - SECOND)
    assert isinstance(outcome, Transition)
    assert outcome.run.state == RunState.CANCELLED
    assert [opened.scheduled_at for opened in outcome.opened] == [NOW + MINUTE]


def test_after_a_cancel_every_end_is_cancelled() -> None:
    """Success, failure and loss after an acknowledged cancel are all recorded as cancelled."""
    asked = became(step(run(RunState.RUNNING), job(), CancelAsked("stop"), NOW))
    assert asked.state == RunState.RUNNING
    assert step(asked, job(), CancelAsked("stop"), NOW) == DUPLICATE
    lost = WorkerLost(attempt=1, worker=W1, lease_until=NOW)
    for event in (ok(), bad(), Stopped(attempt=1, worker=W1, finished_at=NOW), lost):
        assert became(step(asked, job(), event, NOW)).state == RunState.CANCELLED


def test_a_repeated_report_is_told_from_a_stale_one() -> None:
    """The same attempt again is a duplicate; another attempt or worker is stale; other events are too late."""
    done = became(step(run(RunState.RUNNING), job(), ok(), NOW))
    assert step(done, job(), ok(), NOW) == DUPLICATE
    assert step(done, job(), ok(worker=W2), NOW) == STALE
    assert step(done, job(), Dispatch(W1), NOW) == TERMINAL


@pytest.mark.parametrize("policy", ["queue", "allow", "cancel_running"])
def test_only_skip_ends_an_overlapping_run(policy: str) -> None:
    """Under the other policies it stays waiting."""
    assert step(run(), job(overlap=policy), Overlapped(), NOW) == HELD


def test_skip_records_the_overlapped_run_and_opens_the_next() -> None:
    """Skipped is a record with its reason."""
    outcome = step(run(), job(), Overlapped(), NOW)
    assert isinstance(outcome, Transition)
    assert outcome.run.state == RunState.SKIPPED
    assert outcome.run.reason
    assert [opened.scheduled_at for opened in outcome.opened] == [NOW + MINUTE]


# -- misfire ------------------------------------------------------------------------------------------------


def test_run_latest_runs_the_newest_and_records_the_others() -> None:
    """Ten minutes late: ten missed records, the newest occurrence waits, held by catch-up."""
    now = NOW + 10 * MINUTE + 5 * SECOND
    outcome = step(run(), job(), Dispatch(W1), now)
    assert isinstance(outcome, Transition)
    assert outcome.run.state == RunState.MISSED
    records = [r for r in outcome.opened if r.state == RunState.MISSED]
    (waiting,) = [r for r in outcome.opened if r.state == RunState.WAITING]
    assert 1 + len(records) == 10
    assert (waiting.scheduled_at, waiting.held_by) == (NOW + 10 * MINUTE, "catch_up")
    again = step(waiting, job(), Dispatch(W1), now)
    assert became(again).state == RunState.DISPATCHED
    assert isinstance(again, Transition)
    assert [opened.scheduled_at for opened in again.opened] == [NOW + 11 * MINUTE]


def test_run_all_runs_every_one_in_the_window() -> None:
    """Each dispatch opens the next; none is recorded as missed within catchup_window."""
    now = NOW + 10 * MINUTE
    current, ran = run(), 0
    while current.scheduled_at <= now:
        outcome = step(current, job(misfire="run_all"), Dispatch(W1), now)
        assert became(outcome).state == RunState.DISPATCHED
        assert isinstance(outcome, Transition)
        (current,) = outcome.opened
        ran += 1
    assert ran == 11


def test_run_all_drops_what_is_older_than_the_window() -> None:
    """Three hours late with a window of one: two hours are missed, the rest waits to be run."""
    now = NOW + 3 * HOUR
    outcome = step(run(), job(misfire="run_all"), Dispatch(W1), now)
    assert isinstance(outcome, Transition)
    (waiting,) = [r for r in outcome.opened if r.state == RunState.WAITING]
    assert waiting.scheduled_at == NOW + 2 * HOUR


def test_a_misfire_of_a_paused_job_opens_nothing() -> None:
    """Dispatched in the moment of the pause: what was missed is on record, and nothing waits."""
    for misfire in ("run_latest", "run_all"):
        paused = job(state="paused", misfire=misfire, catchup_window=10 * MINUTE)
        outcome = step(run(), paused, Dispatch(W1), NOW + HOUR)
        assert isinstance(outcome, Transition)
        assert outcome.run.state == RunState.MISSED
        assert not [opened for opened in outcome.opened if opened.state == RunState.WAITING]


def test_misfire_skip_misses_all_that_is_due() -> None:
    """Nothing runs late; the next future occurrence waits."""
    now = NOW + 10 * MINUTE + SECOND
    outcome = step(run(), job(misfire="skip"), Dispatch(W1), now)
    assert isinstance(outcome, Transition)
    (waiting,) = [r for r in outcome.opened if r.state == RunState.WAITING]
    assert waiting.scheduled_at == NOW + 11 * MINUTE


def test_three_days_of_seconds_are_a_thousand_records_and_a_summary() -> None:
    """Bounded: past 1,000 records one run stands for the rest, and says until when."""
    now = NOW + 72 * HOUR
    outcome = step(run(), job("every 1s"), Dispatch(W1), now)
    assert isinstance(outcome, Transition)
    records = [outcome.run, *(r for r in outcome.opened if r.state == RunState.MISSED)]
    assert len(records) == SKIPPED_RECORDS + 1
    summary = records[-1]
    assert summary.scheduled_at == NOW + SKIPPED_RECORDS * SECOND
    assert summary.covers_until == now - 1
    (waiting,) = [r for r in outcome.opened if r.state == RunState.WAITING]
    assert waiting.scheduled_at == now


def test_a_one_time_job_is_not_dropped_for_its_age() -> None:
    """Accepted is accepted: a day late it still runs, unless misfire = skip."""
    late = NOW + 24 * HOUR
    once = job("at 2027-01-15T08:00")
    assert became(step(run(), once, Dispatch(W1), late)).state == RunState.DISPATCHED
    assert became(step(run(), replace(once, misfire="skip"), Dispatch(W1), late)).state == RunState.MISSED


def test_a_retry_is_never_a_misfire() -> None:
    """Once an occurrence has started, its further attempts are owed."""
    waiting = run(attempt=1, failures=1)
    assert became(step(waiting, job(misfire="skip"), Dispatch(W1), NOW + HOUR)).state == RunState.DISPATCHED
