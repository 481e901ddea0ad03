"""Model → wire: jobs, runs, terms, workers and errors as clients read them (`contract.py` has the shapes)."""

from __future__ import annotations

import msgspec

from duly.core.contract import (
    AttemptView,
    CommandSpec,
    ErrorView,
    FieldErrorView,
    FunctionSpec,
    HttpSpec,
    JobDefinition,
    JobSpec,
    JobStateName,
    JobView,
    KeepSpec,
    LastRun,
    LimitsSpec,
    OutputView,
    Problem,
    RetrySpec,
    RunStateName,
    RunView,
    TaskSpec,
    TermView,
    WorkerView,
)
from duly.core.errors import DulyError
from duly.core.instants import format_duration, format_instant
from duly.core.model import (
    Attempt,
    CommandTask,
    Failure,
    FunctionTask,
    HttpTask,
    Job,
    Output,
    Run,
    RunState,
    Task,
    Term,
    Worker,
    run_id,
)


def _instant(value: int | None) -> str | None:
    return None if value is None else format_instant(value)


def _milliseconds(value: int | None) -> float | None:
    return None if value is None else value / 1000


def task_spec(task: Task) -> TaskSpec:
    """A stored task as clients write it."""
    match task:
        case FunctionTask():
            return FunctionSpec(
                name=task.name,
                args=msgspec.json.decode(task.args),
                kwargs=msgspec.json.decode(task.kwargs),
                mode=task.mode,
            )
        case CommandTask():
            limits = task.limits
            return CommandSpec(
                code=task.code,
                argv=list(task.argv),
                env=task.env,
                inputs=task.inputs,
                stdin=task.stdin,
                limits=None
                if limits is None
                else LimitsSpec(
                    cpu=None if limits.cpu is None else format_duration(limits.cpu),
                    memory=limits.memory,
                    file_size=limits.file_size,
                    open_files=limits.open_files,
                ),
                isolation=task.isolation,
            )
        case HttpTask():
            return HttpSpec(
                url=task.url,
                method=task.method,
                headers=task.headers,
                body=msgspec.json.decode(task.body),
                expect=task.expect,
            )


def job_spec(job: Job) -> JobSpec:
    """The part of a job that its client wrote: what a merge patch is applied to."""
    return JobSpec(
        task=task_spec(job.task),
        schedule=job.schedule,
        name=job.name,
        labels=job.labels,
        timezone=job.timezone,
        dst=job.dst,
        start=_instant(job.start),
        end=_instant(job.end),
        max_runs=job.max_runs,
        jitter=format_duration(job.jitter),
        calendar=list(job.calendar),
        priority=job.priority,
        max_lateness=format_duration(job.max_lateness),
        timeout=format_duration(job.timeout),
        retry=RetrySpec(
            max_attempts=job.retry.max_attempts,
            backoff=job.retry.backoff,
            base=format_duration(job.retry.base),
            cap=format_duration(job.retry.cap),
        ),
        misfire=job.misfire,
        catchup_window=format_duration(job.catchup_window),
        overlap=job.overlap,
        delivery=job.delivery,
        requires=job.requires,
        keep=KeepSpec(runs=job.keep.runs, age=format_duration(job.keep.age)),
        paused=job.state == "paused",
    )


def job_definition(job: Job) -> JobDefinition:
    """A job's definition, as clients write it."""
    spec = job_spec(job)
    return JobDefinition(**{name: getattr(spec, name) for name in JobDefinition.__struct_fields__})


def job_view(job: Job, *, next_run_at: int | None, last_run: Run | None, finished: bool) -> JobView:
    """A job as clients read it. An active job with no run left to come is `completed`."""
    spec = job_spec(job)
    state: JobStateName = "completed" if job.state == "active" and finished else job.state
    last = (
        None
        if last_run is None
        else LastRun(
            id=last_run.id,
            state=state_name(last_run.state),
            lateness_ms=_milliseconds(last_run.lateness),
        )
    )
    fields = {name: getattr(spec, name) for name in spec.__struct_fields__}
    return JobView(
        id=job.id,
        namespace=job.namespace,
        state=state,
        version=job.version,
        next_run_at=_instant(next_run_at),
        last_run=last,
        created_at=format_instant(job.created_at),
        updated_at=format_instant(job.updated_at),
        **fields,
    )


def state_name(state: RunState) -> RunStateName:
    """The word that clients see."""
    return state.word  # type: ignore[return-value]  # the enum's names are the literal's


def _error(failure: Failure | None) -> ErrorView | None:
    if failure is None:
        return None
    return ErrorView(kind=failure.kind, message=failure.message, detail=failure.detail)


def _attempt(attempt: Attempt) -> AttemptView:
    return AttemptView(
        number=attempt.number,
        worker=attempt.worker,
        state=attempt.state,
        dispatched_at=_instant(attempt.dispatched_at),
        started_at=_instant(attempt.started_at),
        finished_at=_instant(attempt.finished_at),
        error=_error(attempt.error),
        isolation=attempt.isolation or None,
    )


def _output(output: Output) -> OutputView:
    return OutputView(path=output.path, size=output.size, digest=output.digest)


def run_view(run: Run, *, progress: float | None = None) -> RunView:
    """A run as clients read it; the current attempt stands last in `attempts`."""
    attempts = [_attempt(attempt) for attempt in run.attempts]
    error = _error(run.error)
    if run.worker and run.attempt:
        attempts.append(
            AttemptView(
                number=run.attempt,
                worker=run.worker,
                state=run.state.word,
                dispatched_at=_instant(run.dispatched_at),
                started_at=_instant(run.started_at),
                finished_at=_instant(run.finished_at),
                error=error,
                isolation=run.isolation or None,
            )
        )
    return RunView(
        id=run.id,
        job_id=run.job_id,
        scheduled_at=format_instant(run.scheduled_at),
        due_at=format_instant(run.due_at),
        state=state_name(run.state),
        priority=run.priority,
        attempt=run.attempt,
        worker=run.worker or None,
        dispatched_at=_instant(run.dispatched_at),
        started_at=_instant(run.started_at),
        finished_at=_instant(run.finished_at),
        lateness_ms=_milliseconds(run.lateness),
        late=run.late,
        late_cause=run.late_cause,
        reason=run.reason,
        result=msgspec.json.decode(run.result),
        exit_code=run.exit_code,
        error=error,
        outputs=[_output(output) for output in run.outputs],
        attempts=attempts,
        manual=run.manual,
        cancel_requested=run.cancel is not None,
        retry_of=None if run.retry_of is None else run_id(run.job_id, run.retry_of),
        covers_until=_instant(run.covers_until),
        progress=progress,
    )


def term_view(term: Term | None) -> TermView | None:
    """A term as clients read it."""
    if term is None:
        return None
    return TermView(owner=term.owner, fence=term.fence, expires_at=format_instant(term.expires_at))


def worker_view(worker: Worker) -> WorkerView:
    """A worker as clients read it."""
    return WorkerView(
        id=worker.id,
        state=worker.state,
        slots=worker.slots,
        free=worker.free,
        labels=worker.labels,
        beat_at=format_instant(worker.beat_at),
        clock_offset_ms=worker.clock_offset / 1000,
    )


def problem(error: DulyError, *, prefix: str = "", request_id: str = "") -> Problem:
    """An error as RFC 9457 problem details; `prefix` goes before the pointers of its fields."""
    return Problem(
        type=f"https://duly.dev/problems/{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        code=error.code,
        errors=[
            FieldErrorView(
                pointer=field.pointer if field.pointer.startswith(prefix) else prefix + field.pointer,
                detail=field.detail,
            )
            for field in error.errors
        ],
        request_id=request_id,
    )
