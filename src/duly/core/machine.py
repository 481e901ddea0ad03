"""The run's transition table: `step` decides what an event makes of a run, and nothing else does.

    state       Dispatch    Started  Succeeded Failed     Released  Stopped    WorkerLost  Overlapped CancelAsked
    waiting     dispatched¹ –        –         –          –         –          –           skipped³   cancelled⁴
    dispatched  –           running  succeeded failed²    waiting   cancelled  waiting²    –          (noted)
    running     –           –        succeeded failed²    waiting   cancelled  waiting²    –          (noted)
    terminal    –           –        –         –          –         –          –           –          –

    –  refused with a code; the refusal changes nothing.
    ¹  or missed, when the misfire policy says so; opens the job's next run (fixed rate) in the same transition.
    ²  a failure goes back to waiting while attempts are left; a lost worker too, up to three times
       (quarantined; ten, where more than the worker went down) and never for an at-most-once run that may have started
       (lost).
    ³  under `overlap = skip`; the other policies leave it waiting.
    ⁴  and opens the job's next run: cancelling one occurrence does not end the schedule.

Every event of an attempt carries (attempt, worker); one that is not the run's current pair is stale.
Once a cancel was asked for, whatever ends the attempt ends the run as cancelled.
"""

from __future__ import annotations

from typing import Any, Final, assert_never

import msgspec
from msgspec.structs import replace

from duly.core import policy
from duly.core.messages import Failed, Released, Started, Stopped, Succeeded, WorkerEvent
from duly.core.model import (
    DOUBTED_AFTER,
    KEPT_ATTEMPTS,
    QUARANTINE_AFTER,
    Attempt,
    Failure,
    Job,
    LateCause,
    Run,
    RunState,
    WorkerId,
)


class Dispatch(msgspec.Struct, frozen=True):
    """Give the run to a worker. `held_by` says what kept it waiting past its time, if anything did."""

    worker: WorkerId
    held_by: LateCause | None = None


class Overlapped(msgspec.Struct, frozen=True):
    """The run is due and the job's previous run is still going."""


class CancelAsked(msgspec.Struct, frozen=True):
    """A client wants the run stopped."""

    reason: str = "cancelled by request"


class WorkerLost(msgspec.Struct, frozen=True):
    """The lease of the attempt's worker ended at `lease_until`; or it lives and does not hold it (not `delivered`).

    `alone`: its scheduler outlived it. Else a whole process or machine went, which proves little about the run.
    """

    attempt: int
    worker: WorkerId
    lease_until: int
    delivered: bool = True
    alone: bool = True


Event = Dispatch | Overlapped | CancelAsked | WorkerLost | WorkerEvent


class Transition(msgspec.Struct, frozen=True, gc=False):
    """A decision: what the store compares, the run as it will be, and the runs that this opens.

    `was_cancelled`: a cancel had been asked for; while an attempt is out that may come between decision and commit.
    `was_job`: the version of the job that decided what follows; compared where the job's own state did: what goes back
    to waiting, and what opens the next run of a fixed delay.
    `columns_only`: nothing but state, attempt, worker and dispatched_at differs, so that the document need
    not be written again.
    """

    was_state: RunState
    was_attempt: int
    was_worker: WorkerId
    run: Run
    opened: tuple[Run, ...] = ()
    columns_only: bool = False
    was_cancelled: bool = False
    was_job: int | None = None


class Refusal(msgspec.Struct, frozen=True):
    """The event changes nothing. `code` is stable.

    `duplicate`: it was carried out before, so its sender may forget it.
    """

    code: str


# Looking a member up on its class costs as much as a comparison of two runs: the usual path has them at hand.
_WAITING: Final = RunState.WAITING
_DISPATCHED: Final = RunState.DISPATCHED
_RUNNING: Final = RunState.RUNNING
_SUCCEEDED: Final = RunState.SUCCEEDED

TERMINAL = Refusal("terminal")
DUPLICATE = Refusal("duplicate")
STALE = Refusal("stale_attempt")
WRONG_STATE = Refusal("wrong_state")
HELD = Refusal("held")  # overlap policy: it stays waiting


def step(run: Run, job: Job, event: Event, now: int, dice: float = 0.0) -> Transition | Refusal:
    """What `event` makes of `run` at `now` (the shard's clock). `dice` in [0, 1) draws the jitter of a retry."""
    if run.state >= _SUCCEEDED:
        return _after_the_end(run, event)
    if run.state == _WAITING:
        return _while_waiting(run, job, event, now)
    match event:
        case Dispatch() | Overlapped():
            return WRONG_STATE
        case CancelAsked():
            return DUPLICATE if run.cancel else _changed(run, replace(run, cancel=event.reason))
    if event.attempt != run.attempt or event.worker != run.worker:
        return STALE
    match event:
        case Succeeded():
            return _succeeded(run, job, event, now)
        case Failed():
            return _failed(run, job, event, now, dice)
        case Started():
            if run.state == RunState.RUNNING:
                return DUPLICATE
            return _changed(run, replace(run, **_beginning(run, job, event.started_at, event.cause, event.isolation)))
        case Released():
            return _released(run, job, event, now)
        case Stopped():
            return _stopped(run, job, event, now)
        case WorkerLost():
            return _worker_lost(run, job, event, now)
        case _:
            assert_never(event)


def _while_waiting(run: Run, job: Job, event: Event, now: int) -> Transition | Refusal:
    match event:
        case Dispatch():
            return _dispatch(run, job, event, now)
        case Overlapped():
            return _overlapped(run, job, now)
        case CancelAsked():
            return _end_unstarted(run, job, RunState.CANCELLED, event.reason, now)
        case WorkerLost() | Started() | Succeeded() | Failed() | Released() | Stopped():
            return STALE if event.attempt <= run.attempt else WRONG_STATE
        case _:
            assert_never(event)


def _after_the_end(run: Run, event: Event) -> Refusal:
    """A report of the attempt that ended the run is a repeat; everything else is too late."""
    match event:
        case Started() | Succeeded() | Failed() | Released() | Stopped():
            same = event.attempt == run.attempt and event.worker == run.worker
            return DUPLICATE if same else STALE
        case CancelAsked() if run.state == RunState.CANCELLED:
            return DUPLICATE
    return TERMINAL


# -- from waiting -------------------------------------------------------------------------------------------


def _dispatch(run: Run, job: Job, event: Dispatch, now: int) -> Transition | Refusal:
    if job.state == "deleted":
        return _end_unstarted(run, job, RunState.CANCELLED, "job deleted", now)
    held_by = event.held_by or run.held_by
    if policy.misfired(job, run, now):
        chosen, records = policy.catch_up(job, run, now)
        if chosen is not run:
            return _missed(run, job, chosen, records, now)
    if job.state == "paused" and not run.manual and _unstarted(run):
        # It was opened by an end that was decided before the change and committed after it.
        return _end_unstarted(run, job, RunState.CANCELLED, "job paused", now)
    given = replace(
        run,
        state=_DISPATCHED,
        attempt=run.attempt + 1,
        worker=event.worker,
        dispatched_at=now,
        held_by=held_by,
    )
    following = policy.next_run(job, run) if run.attempt == 0 else None
    return Transition(
        run.state,
        run.attempt,
        run.worker,
        given,
        () if following is None else (following,),
        columns_only=held_by == run.held_by,
    )


def _missed(run: Run, job: Job, chosen: Run | None, records: tuple[Run, ...], now: int) -> Transition:
    """The waiting run ends as missed, with the records of the others, and the chosen or next one is opened."""
    opened = records[1:]
    waiting = (chosen if job.state == "active" else None) or policy.run_after_unrun(job, run, now)
    if waiting is not None:
        opened += (waiting,)
    return Transition(run.state, run.attempt, run.worker, records[0], opened)


def _overlapped(run: Run, job: Job, now: int) -> Transition | Refusal:
    catching_up = run.held_by == "catch_up" or policy.misfired(job, run, now)
    if job.overlap != "skip" or run.attempt or catching_up:
        return HELD
    return _end_unstarted(run, job, RunState.SKIPPED, "overlap: the previous run was still going", now)


def _end_unstarted(run: Run, job: Job, state: RunState, reason: str, now: int) -> Transition:
    """A waiting run ends without (another) start; the schedule goes on."""
    ended = replace(run, state=state, reason=reason, finished_at=now)
    following = policy.run_after_unrun(job, run, run.scheduled_at) if run.attempt == 0 else None
    if run.attempt > 0:
        following = policy.delayed_run(job, run, now)
    opened = () if following is None else (following,)
    # Of a retry: a change does not remove it, so the run that follows it would outlive the change.
    was_job = job.version if run.attempt and opened else None
    return Transition(run.state, run.attempt, run.worker, ended, opened, was_job=was_job)


# -- from dispatched and running ----------------------------------------------------------------------------


def _changed(run: Run, after: Run, opened: tuple[Run, ...] = ()) -> Transition:
    return Transition(run.state, run.attempt, run.worker, after, opened, was_cancelled=run.cancel is not None)


def _back(run: Run, job: Job, waiting: Run) -> Transition:
    """To waiting again, unless the job is changed meanwhile: a change removes or replaces what waits, and this does not
    wait yet."""
    return replace(_changed(run, waiting), was_job=job.version)


def _beginning(
    run: Run, job: Job, started_at: int | None, cause: LateCause | None, isolation: str = ""
) -> dict[str, Any]:
    """What is known of the run once its code has begun. Lateness is that of the first attempt that started."""
    if started_at is None or run.state == _RUNNING:
        return {}
    if run.lateness is not None:
        return {"state": _RUNNING, "started_at": started_at, "isolation": isolation or run.isolation}
    lateness = started_at - run.due_at
    late = lateness > job.max_lateness
    return {
        "state": _RUNNING,
        "started_at": started_at,
        "isolation": isolation,
        "lateness": lateness,
        "late": late,
        "late_cause": policy.late_cause(run, cause) if late else None,
    }


def _end(run: Run, job: Job, ended: Run, now: int) -> Transition:
    """A terminal transition; a fixed-delay job opens its next run with it."""
    if not policy.is_delay(job):
        return _changed(run, ended)
    following = policy.delayed_run(job, run, min(ended.finished_at or now, now))  # the clock may have been set back
    transition = _changed(run, ended, () if following is None else (following,))
    return transition if run.manual else replace(transition, was_job=job.version)


def _succeeded(run: Run, job: Job, event: Succeeded, now: int) -> Transition:
    facts = _beginning(run, job, event.started_at, event.cause, event.isolation)
    facts["state"] = RunState.CANCELLED if run.cancel else _SUCCEEDED
    ended = replace(
        run,
        **facts,
        reason=f"{run.cancel}; its code had already succeeded" if run.cancel else None,
        finished_at=event.finished_at,
        result=event.result,
        exit_code=event.exit_code,
        outputs=event.outputs,
        logs=event.logs,
        error=None,
    )
    return _end(run, job, ended, now)


def _failed(run: Run, job: Job, event: Failed, now: int, dice: float) -> Transition:
    tried = replace(
        run,
        **_beginning(run, job, event.started_at, event.cause, event.isolation),
        finished_at=event.finished_at,
        exit_code=event.exit_code,
        error=event.error,
        outputs=event.outputs,
        logs=event.logs,
        failures=run.failures + (not event.crashed),
        crashes=run.crashes + event.crashed,
    )
    if run.cancel:
        return _end(run, job, replace(tried, state=RunState.CANCELLED, reason=run.cancel), now)
    if event.crashed and tried.crashes >= QUARANTINE_AFTER:
        return _end(run, job, _quarantined(tried), now)
    again = job.state != "deleted" and event.retryable and policy.may_try_again(job, tried.failures)
    if not again:
        return _end(run, job, replace(tried, state=RunState.FAILED), now)
    wait = policy.backoff(job.retry, tried.failures + tried.crashes, dice)
    return _try_again(run, job, tried, "failed", now + wait)


def _try_again(run: Run, job: Job, tried: Run, word: str, due_at: int) -> Transition:
    """Back to waiting; the attempt that ended is kept in the run's list, its files are not the run's."""
    attempt = Attempt(
        number=run.attempt,
        worker=run.worker,
        state=word,
        dispatched_at=tried.dispatched_at,
        started_at=tried.started_at,
        finished_at=tried.finished_at,
        error=tried.error,
        logs=tried.logs,
        isolation=tried.isolation,
    )
    waiting = replace(
        tried,
        state=RunState.WAITING,
        due_at=due_at,
        worker=WorkerId(""),
        attempts=(*run.attempts, attempt)[-KEPT_ATTEMPTS:],
        dispatched_at=None,
        started_at=None,
        finished_at=None,
        exit_code=None,
        outputs=(),
        logs={},
        held_by=None,
    )
    return _back(run, job, waiting)


def _released(run: Run, job: Job, event: Released, now: int) -> Transition:
    if run.cancel or job.state == "deleted" or (job.state == "paused" and not run.manual and _unstarted(run)):
        why = run.cancel or f"job {job.state}"
        return _end(run, job, replace(run, state=RunState.CANCELLED, reason=why, finished_at=now), now)
    if event.started and job.delivery == "at_most_once":
        return _end(run, job, _lost(run, now, event.reason), now)
    if not event.started and job.version != run.job_version and not run.manual and _unstarted(run):
        return _superseded(run, job, now)
    held_by: LateCause | None = "no_capacity" if event.reason == "no_capacity" else run.held_by
    waiting = replace(
        run,
        state=RunState.WAITING,
        worker=WorkerId(""),
        dispatched_at=None,
        started_at=None,
        held_by=held_by,
        attempts=_with_released(run, now),
    )
    return _back(run, job, waiting)


def _unstarted(run: Run) -> bool:
    """True while no attempt of the run has begun."""
    return run.lateness is None and not run.failures and not run.crashes


def _with_released(run: Run, now: int) -> tuple[Attempt, ...]:
    """The attempts with the one that is handed back: it counts for nothing, but its number is used up."""
    released = Attempt(
        number=run.attempt,
        worker=run.worker,
        state="released",
        dispatched_at=run.dispatched_at,
        started_at=run.started_at,
        finished_at=now,
    )
    return (*run.attempts, released)[-KEPT_ATTEMPTS:]


def _superseded(run: Run, job: Job, now: int) -> Transition:
    """The job was changed after this run was handed out and before it started: run it by the new definition,
    or end it if the new schedule does not have its instant."""
    schedule = policy.schedule_of(job)
    if schedule.next_after(run.scheduled_at - 1) == run.scheduled_at:
        waiting = replace(
            run,
            state=RunState.WAITING,
            worker=WorkerId(""),
            dispatched_at=None,
            attempts=_with_released(run, now),
            priority=job.priority,
            job_version=job.version,
            due_at=run.scheduled_at + policy.jitter_of(job, run.scheduled_at),
        )
        return _back(run, job, waiting)
    ended = replace(run, state=RunState.CANCELLED, reason="job changed: not in the new schedule", finished_at=now)
    following = policy.run_after_unrun(job, run, now) if schedule.kind == "delay" else None  # others have theirs
    return _changed(run, ended, () if following is None else (following,))


def _stopped(run: Run, job: Job, event: Stopped, now: int) -> Transition:
    facts = _beginning(run, job, event.started_at, None)
    facts["state"] = RunState.CANCELLED
    ended = replace(
        run,
        **facts,
        reason=run.cancel or "stopped by its worker",
        finished_at=event.finished_at,
        logs=event.logs,
        outputs=event.outputs,
    )
    return _end(run, job, ended, now)


def _lost(run: Run, now: int, message: str) -> Run:
    error = Failure(kind="worker_lost", message=message)
    return replace(run, state=RunState.LOST, finished_at=now, error=error, reason="at most once: not tried again")


def _quarantined(run: Run) -> Run:
    return replace(
        run,
        state=RunState.QUARANTINED,
        reason=f"took down its worker {run.crashes} times; look at it, then retry it by hand",
    )


def _crashes(run: Run, alone: bool) -> int:
    """The count after another lost worker. Where the run is not known to have begun it is one of many that the worker
    held, and where the worker did not go alone something larger took it down: the run may be innocent. By doubts alone
    it stays below the limit, until there are too many of them."""
    doubts = 1 + sum(attempt.state == "lost" for attempt in run.attempts)
    if (run.state == RunState.RUNNING and alone) or doubts >= DOUBTED_AFTER:
        return run.crashes + 1
    return min(run.crashes + 1, QUARANTINE_AFTER - 1)


def _worker_lost(run: Run, job: Job, event: WorkerLost, now: int) -> Transition:
    """The worker vanished. What seems never to have begun costs nothing; the rest is a crash, or lost at most once."""
    clear = run.dispatched_at is None or run.dispatched_at <= now  # else the clock was set back: nothing compares
    # A start may be untold, a message still on its way, and a lease moves with the clock while `due_at` does not: which
    # is harmless, unless it must not happen twice.
    never_began = (
        run.state == RunState.DISPATCHED
        and job.delivery == "at_least_once"
        and (not event.delivered or (clear and event.lease_until <= run.due_at))
    )
    if run.cancel or job.state == "deleted":
        why = run.cancel or "job deleted"
        return _end(run, job, replace(run, state=RunState.CANCELLED, reason=why, finished_at=now), now)
    if never_began:
        return _released(run, job, Released(attempt=event.attempt, worker=event.worker, reason="undelivered"), now)
    what = "was not heard of within its lease" if event.delivered else "no longer holds it"
    message = f"worker {event.worker} {what}"
    if job.delivery == "at_most_once":
        return _end(run, job, _lost(run, now, message), now)
    crashed = replace(
        run,
        crashes=_crashes(run, event.alone),
        finished_at=now,
        error=Failure(kind="worker_lost", message=message),
    )
    if crashed.crashes >= QUARANTINE_AFTER:
        return _end(run, job, _quarantined(crashed), now)
    return _try_again(run, job, crashed, "lost", now)
