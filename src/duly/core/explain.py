"""Why a run is where it is, in sentences for people: from the run, its job and the fleet, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from duly.core.contract import ExplainView
from duly.core.instants import SECOND, format_duration, format_instant
from duly.core.model import FunctionTask, Job, LateCause, Run, RunState, Worker
from duly.core.views import state_name

CAUSES: dict[LateCause, str] = {
    "no_capacity": "no worker had a free slot at the time",
    "overlap": "the previous run of the job was still going",
    "catch_up": "duly was not running, or not able to dispatch, at the time and caught up later",
    "failover": "a worker was lost and the run had to be given to another",
    "code_fetch": "fetching the code or the inputs took longer than the lead",
    "throttled": "a limit held it back",
    "clock": "a clock was stepped",
    "unknown": "the cause was not recorded",
}


def explain(run: Run, job: Job, now: int, *, workers: Sequence[Worker] = (), active: Sequence[Run] = ()) -> ExplainView:
    """The answer first, then the facts behind it. `workers` and `active` (runs of the job that are out) as of `now`."""
    facts = [f"It was scheduled for {format_instant(run.scheduled_at)}."]
    if run.due_at != run.scheduled_at:
        facts.append(f"It is due at {format_instant(run.due_at)} (jitter or a retry moved it).")
    if run.manual:
        facts.append("A client asked for it; it is not part of the schedule.")
    for attempt in run.attempts:
        why = "" if attempt.error is None else f": {attempt.error.kind}: {attempt.error.message}"
        facts.append(f"Attempt {attempt.number} on {attempt.worker} ended as {attempt.state}{why}.")
    if run.lateness is not None:
        facts.append(_lateness(run, job))
    if run.cancel:
        facts.append(f"A cancel was asked for: {run.cancel}.")
    summary = _summary(run, job, now, workers, active)
    return ExplainView(run_id=run.id, state=state_name(run.state), summary=summary, facts=facts)


def _lateness(run: Run, job: Job) -> str:
    assert run.lateness is not None
    text = f"It started {format_duration(max(0, run.lateness))} after it was due"
    if not run.late:
        return f"{text}, within its margin of {format_duration(job.max_lateness)}."
    cause = CAUSES[run.late_cause or "unknown"]
    return f"{text}, past its margin of {format_duration(job.max_lateness)}, because {cause}."


def _summary(run: Run, job: Job, now: int, workers: Sequence[Worker], active: Sequence[Run]) -> str:
    match run.state:
        case RunState.WAITING:
            return _waiting(run, job, now, workers, active)
        case RunState.DISPATCHED:
            if now < run.due_at:
                return f"It is staged at worker {run.worker} and starts at {format_instant(run.due_at)}."
            return f"It was given to worker {run.worker}, which has not said yet that it started."
        case RunState.RUNNING:
            since = "" if run.started_at is None else f" since {format_instant(run.started_at)}"
            return f"It is running on worker {run.worker}{since}, attempt {run.attempt}."
        case RunState.SUCCEEDED:
            return f"It succeeded on attempt {run.attempt}."
        case _:
            told = run.reason or ("" if run.error is None else f"{run.error.kind}: {run.error.message}")
            return f"It ended as {run.state.word}" + (f": {told}." if told else ".")


def _waiting(run: Run, job: Job, now: int, workers: Sequence[Worker], active: Sequence[Run]) -> str:
    if now < run.due_at:
        wait = format_duration((run.due_at - now) // 1000 * 1000)
        kind = "its next attempt is" if run.attempts else "it is"
        return f"It has not started because {kind} not due yet: {wait} to go."
    others = [other for other in active if other.key != run.key]
    if others and job.overlap != "allow":
        return f"It has not started because the run {others[0].id} is still going (overlap = {job.overlap})."
    alive = [worker for worker in workers if worker.lease_until > now and worker.state == "ready"]
    if not alive:
        return "It has not started because no worker is connected."
    fitting = [w for w in alive if all(w.labels.get(key) == value for key, value in job.requires.items())]
    if not fitting:
        needs = ", ".join(f"{key}={value}" for key, value in sorted(job.requires.items()))
        return f"It has not started because no connected worker has the labels it requires ({needs})."
    if isinstance(job.task, FunctionTask):
        name = job.task.name
        if not any(worker.functions is None or name in worker.functions for worker in fitting):
            return f"It is due, but no connected worker registers the function {name}; it will fail as input."
    if run.held_by == "no_capacity" or now > run.due_at + SECOND:
        return "It has not started because every slot that fits is taken."
    return "It is due and about to be dispatched."
