"""Rows of the SQL stores: jobs and runs to tuples of columns, and back. The order of columns is that of the schemas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from msgspec.structs import replace

from duly.core.model import CommandTask, FunctionTask, HttpTask, Job, JobId, Run, RunState, Worker, WorkerId

OF_JOB: Final = -1  # `blob_ref.scheduled` of a reference that the job itself holds; no run is that old

JobRow = tuple[str, str, str, str, str, str, int, int, int, bytes]
RunRow = tuple[int, str, int, int, int, str, int | None, bool, int, bool, bytes]
HistoryRow = tuple[int, str, int, bool, bool, str, int, bytes]
ReferenceRow = tuple[str, str, int]

_KINDS: Final = {FunctionTask: "function", CommandTask: "command", HttpTask: "http"}
_STATES: Final = tuple(RunState)


class DueRow(msgspec.Struct, array_like=True, gc=False):
    """A waiting run, whose document is whole, and its job; the job's document is decoded only if it has to be."""

    run: Run
    version: int
    job: msgspec.Raw


encode = msgspec.json.Encoder().encode
_decode_due = msgspec.json.Decoder(list[DueRow]).decode
_decode_job = msgspec.json.Decoder(Job).decode
_decode_run = msgspec.json.Decoder(Run).decode
_decode_worker = msgspec.json.Decoder(Worker).decode


def job_row(job: Job) -> JobRow:
    """The row of `job`."""
    return (
        job.id,
        job.namespace,
        job.name,
        job.state,
        _KINDS[type(job.task)],
        job.schedule,
        job.version,
        job.keep.runs,
        job.keep.age,
        encode(job),
    )


def of_version(number: int) -> int:
    """`blob_ref.scheduled` of a reference that a replaced definition holds, by its number: -2 and below."""
    return OF_JOB - number


def run_row(run: Run) -> RunRow:
    """The row of `run`, while the run is waiting or active."""
    return (
        run.due_at,
        run.job_id,
        run.scheduled_at,
        run.state.value,
        run.attempt,
        run.worker,
        run.dispatched_at,
        run.manual,
        run.job_version,
        run.late,
        encode(run),
    )


def history_row(run: Run, finished_at: int) -> HistoryRow:
    """The row of `history`. `finished_at` stands in for a run that does not say when it ended."""
    return (
        run.scheduled_at,
        run.job_id,
        run.state.value,
        run.started_at is not None or run.lateness is not None,
        run.late,
        run.worker,
        finished_at if run.finished_at is None else run.finished_at,
        encode(run),
    )


def worker_row(worker: Worker) -> tuple[str, int, int, str, bytes]:
    """The row of `worker`."""
    return (worker.id, worker.lease_until, worker.beat_at, worker.state, encode(worker))


def to_due(page: str) -> list[DueRow]:
    """The rows of a page of `due`: one call decodes them all."""
    return _decode_due(page)


def to_job(doc: bytes | str | msgspec.Raw) -> Job:
    """A job from its document."""
    return _decode_job(doc)


def to_worker(doc: bytes | str) -> Worker:
    """A worker from its document."""
    return _decode_worker(doc)


def to_finished_run(doc: bytes | str) -> Run:
    """A run of history: its document is whole."""
    return _decode_run(doc)


def to_run(due: int, state: int, attempt: int, worker: str, dispatched: int | None, doc: bytes | str) -> Run:
    """A hot run: the columns override its document, which a dispatch does not write again."""
    run = _decode_run(doc)
    if run.state == state and run.attempt == attempt and run.worker == worker and run.dispatched_at == dispatched:
        return run if run.due_at == due else replace(run, due_at=due)
    return replace(
        run,
        due_at=due,
        state=_STATES[state],
        attempt=attempt,
        worker=WorkerId(worker),
        dispatched_at=dispatched,
    )


def job_files(job: Job) -> set[str]:
    """The digests that a job's task names."""
    task = job.task
    if not isinstance(task, CommandTask):
        return set()
    return {*task.inputs.values(), *([task.code] if task.code else [])}


def run_files(run: Run) -> Iterator[str]:
    """The digests that a run refers to: outputs, logs, and the logs of its earlier attempts."""
    for output in run.outputs:
        yield output.digest
    yield from run.logs.values()
    for attempt in run.attempts:
        yield from attempt.logs.values()


def has_files(run: Run) -> bool:
    """False for the usual run, which leaves nothing in the blob store."""
    return bool(run.outputs or run.logs or (run.attempts and any(attempt.logs for attempt in run.attempts)))


def reference_rows(job_id: JobId, scheduled_at: int, digests: Iterable[str]) -> list[ReferenceRow]:
    """Rows of `blob_ref`."""
    return [(digest, job_id, scheduled_at) for digest in sorted(set(digests))]
