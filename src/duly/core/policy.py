"""The policies of a job as functions: when the next run is due, what a misfire becomes, how long to back off."""

from __future__ import annotations

import hashlib

from msgspec.structs import replace

from duly.core.errors import InvalidInput
from duly.core.model import (
    SKIPPED_RECORDS,
    Job,
    LateCause,
    Retry,
    Run,
    RunState,
)
from duly.core.schedule import Schedule, parse_schedule


def schedule_of(job: Job) -> Schedule:
    """The job's schedule as a value (memoised by its parts)."""
    return parse_schedule(
        job.schedule,
        timezone=job.timezone,
        dst=job.dst,
        anchor=job.anchored_at,
        seed=job.id if "H" in job.schedule else "",  # the seed would defeat the memo for all others
        start=job.start,
        end=job.end,
        calendar=job.calendar,
    )


def jitter_of(job: Job, scheduled_at: int) -> int:
    """The delay that this occurrence gets, in [0, job.jitter): stable, so that a repeat computes the same."""
    if not job.jitter:
        return 0
    digest = hashlib.blake2b(f"{job.id}@{scheduled_at}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % job.jitter


def open_run(job: Job, scheduled_at: int, ordinal: int) -> Run:
    """The waiting run of an occurrence."""
    return Run(
        job_id=job.id,
        scheduled_at=scheduled_at,
        due_at=scheduled_at + jitter_of(job, scheduled_at),
        priority=job.priority,
        ordinal=ordinal,
        job_version=job.version,
    )


def manual_run(job: Job, now: int, *, retry_of: int | None = None) -> Run:
    """A run that a client asked for, outside the schedule."""
    return Run(
        job_id=job.id,
        scheduled_at=now,
        due_at=now,
        priority=job.priority,
        ordinal=0,
        manual=True,
        job_version=job.version,
        retry_of=retry_of,
    )


def first_run(job: Job, after: int, ordinal: int = 1) -> Run | None:
    """The first occurrence strictly after an instant, or None: for a new, changed or resumed job."""
    if job.max_runs is not None and ordinal > job.max_runs:
        return None
    schedule = schedule_of(job)
    at = schedule.next_after(after)
    if schedule.kind == "delay" and (at is None or at <= (job.spent or 0)):
        at = schedule.after_completion(
            max(after, job.spent or 0)
        )  # its only instant has passed, or has been: it goes on from here
    return None if at is None else open_run(job, at, ordinal)


def next_run(job: Job, run: Run) -> Run | None:
    """The occurrence after this one, opened when it is dispatched. None for a fixed delay, which waits for the end."""
    if run.manual or job.state != "active" or (job.max_runs is not None and run.ordinal >= job.max_runs):
        return None
    schedule = schedule_of(job)
    if schedule.kind in ("once", "delay"):
        return None
    at = schedule.next_after(run.scheduled_at)
    return None if at is None else open_run(job, at, run.ordinal + 1)


def run_after_unrun(job: Job, run: Run, after: int) -> Run | None:
    """The occurrence to wait for when this one did not run: strictly after `after`, with the same ordinal.

    Only runs count towards `max_runs`, so one that was skipped, missed or cancelled before its start does not.
    """
    if run.manual or job.state != "active":
        return None
    schedule = schedule_of(job)
    if schedule.kind == "once":
        return None
    if schedule.kind == "delay":
        at = schedule.after_completion(max(after, run.scheduled_at))
    else:
        at = schedule.next_after(max(after, run.scheduled_at))
    return None if at is None else open_run(job, at, run.ordinal)


def is_delay(job: Job) -> bool:
    """True for a fixed-delay schedule. By its first word: most ends need not look the schedule up."""
    return job.schedule.lstrip()[:5].lower() == "after"


def delayed_run(job: Job, run: Run, finished_at: int) -> Run | None:
    """The next occurrence of a fixed-delay job, counted from the end of the last."""
    if not is_delay(job):
        return None
    if run.manual or job.state != "active" or (job.max_runs is not None and run.ordinal >= job.max_runs):
        return None
    schedule = schedule_of(job)
    if schedule.kind != "delay":
        return None
    at = schedule.after_completion(max(finished_at, run.scheduled_at))
    return None if at is None else open_run(job, at, run.ordinal + 1)


def misfired(job: Job, run: Run, now: int) -> bool:
    """True when a scheduled first attempt can no longer start within its margin."""
    return run.attempt == 0 and not run.manual and now > run.due_at + job.max_lateness


def catch_up(job: Job, run: Run, now: int) -> tuple[Run | None, tuple[Run, ...]]:
    """What becomes of a misfired run: the run to start now (or None), and records of those that will not run.

    `run_latest`: the newest occurrence that is due runs, those before it are missed. `run_all`: this one runs,
    the next is opened by its dispatch. `skip`: all that are due are missed. Under the first two, an occurrence
    older than `catchup_window` is missed as well, except the single one of a one-time job: a job that was
    accepted is not dropped for its age unless it says `misfire = skip`.
    Records are runs in state missed: the first 1,000 one by one, the rest as one that covers them.
    """
    schedule = schedule_of(job)
    if schedule.kind in ("once", "delay"):
        if job.misfire == "skip":
            return None, (missed(run, now, "misfire: skip"),)
        return run, ()
    latest = _latest_due(job, run, schedule, now)
    oldest_to_run = now - job.catchup_window
    if job.misfire == "skip" or latest < oldest_to_run:
        reason = "misfire: skip" if job.misfire == "skip" else "misfire: older than catchup_window"
        return None, _records(job, run, schedule, latest, now, reason)
    if job.misfire == "run_all":
        if run.scheduled_at >= oldest_to_run:
            return run, ()
        at = schedule.next_after(oldest_to_run - 1)
        resume = latest if at is None else at
        reason = "misfire: older than catchup_window"
    else:
        resume = latest
        reason = "misfire: run_latest"
    if resume <= run.scheduled_at:
        return run, ()
    records = _records(job, run, schedule, resume - 1, now, reason)
    return replace(open_run(job, resume, run.ordinal), held_by="catch_up"), records


def _latest_due(job: Job, run: Run, schedule: Schedule, now: int) -> int:
    latest = schedule.latest_until(now)
    if latest is None or latest < run.scheduled_at:
        return run.scheduled_at
    return latest


def _records(job: Job, run: Run, schedule: Schedule, until: int, now: int, reason: str) -> tuple[Run, ...]:
    """Missed runs for the occurrences from `run` up to and including `until`."""
    records = [missed(run, now, reason)]
    instants = schedule.between(run.scheduled_at, until, SKIPPED_RECORDS)
    records.extend(missed(open_run(job, at, run.ordinal), now, reason) for at in instants[: SKIPPED_RECORDS - 1])
    if len(instants) == SKIPPED_RECORDS:
        rest_from = instants[-1]
        count = schedule.count_between(rest_from - 1, until)
        how_many = "more than can be counted at once" if count is None else str(count)
        summary = missed(open_run(job, rest_from, run.ordinal), now, f"{reason}; stands for {how_many}")
        records.append(replace(summary, covers_until=until))
    return tuple(records)


def missed(run: Run, now: int, reason: str) -> Run:
    """The run as one that did not start in time."""
    return replace(run, state=RunState.MISSED, finished_at=now, reason=reason)


def backoff(retry: Retry, failures: int, dice: float) -> int:
    """µs to wait before the attempt that follows the n-th failure: drawn by `dice` in [0, 1) from [base, top].

    `top` is base·2ⁿ, base·(n+1) or base, and never above the cap. Full jitter, but never sooner than the base
    (or the cap, where that is lower): after
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/ with a floor.
    """
    n = max(1, failures)
    if retry.backoff == "exponential":
        top = retry.base * (1 << min(n, 40))
    elif retry.backoff == "linear":
        top = retry.base * (n + 1)
    else:
        top = retry.base
    top = min(top, retry.cap)
    floor = min(retry.base, top)
    return floor + int(dice * (top - floor))


def may_try_again(job: Job, failures: int) -> bool:
    """True while attempts are left after `failures` of them failed."""
    return job.delivery == "at_least_once" and failures < job.retry.max_attempts


def late_cause(run: Run, told: LateCause | None) -> LateCause:
    """Why a run started late: what held it before its dispatch, else what its worker knows."""
    if run.crashes:
        return "failover"
    return run.held_by or told or "unknown"


def opening_run(job: Job, now: int) -> Run:
    """The first run of a new job. Raises InvalidInput when its schedule has nothing (left) to run.

    A one-time instant that has just passed is run at once, late; one further back than `catchup_window` is
    taken for a mistake.
    """
    schedule = schedule_of(job)
    if schedule.kind == "once":
        run = once_run(job)
        if run is None or run.scheduled_at < now - job.catchup_window:
            raise InvalidInput.at("/schedule", "lies in the past, further back than catchup_window")
        return run
    first = first_run(job, now - 1)
    if first is None:
        raise InvalidInput.at("/schedule", "has no occurrence from now on (see start, end and calendar)")
    return first


def once_run(job: Job) -> Run | None:
    """The single run of a one-time job, whether its instant has passed or not."""
    at = schedule_of(job).next_after(-1)
    return None if at is None else open_run(job, at, 1)
