"""What the SQLite store writes besides transitions: new jobs with their runs, and changes of a job.

Each is a call for the writer. What can be prepared before the transaction (encoding, above all) is prepared on the
caller's thread, so that the writer's transaction is SQL and little else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import apsw

from duly.adapters.rows import OF_JOB, JobRow, encode, job_files, job_row, of_version, reference_rows, to_job
from duly.adapters.sqlite_bulk import SQL, in_bulk
from duly.adapters.sqlite_opening import WORDS, Opening
from duly.adapters.sqlite_writer import Transaction
from duly.core.model import Job, JobId, Run, RunState
from duly.core.versions import KEPT_BYTES, KEPT_VERSIONS, number
from duly.ports import Collision

JOBS: Final = "jobs"  # the tally of jobs that are not deleted; those of runs are named by their state

_WAITING: Final = RunState.WAITING.value


# -- create -------------------------------------------------------------------------------------------------


def creation(
    items: Sequence[tuple[Job, Sequence[Run]]], now: int
) -> tuple[list[JobRow], Callable[[Transaction], list[Job | None]]]:
    """The rows of jobs, and the call that writes them with their first runs.

    It returns, for each job, None or the job that was there already.
    """
    jobs = [job_row(job) for job, _ in items]
    opening = Opening()
    for _, runs in items:
        opening.add(runs, now)

    def work(tx: Transaction) -> list[Job | None]:
        tx.db.execute("savepoint creation")
        whole = in_bulk(tx.db, "insert_jobs", jobs) == len(jobs)
        if not whole:
            tx.db.execute("rollback to creation")
        tx.db.execute("release creation")
        if not whole:
            return [_create_one(tx, job, runs, row, now) for (job, runs), row in zip(items, jobs, strict=True)]
        for job, _ in items:
            _attach(tx, job)
        tx.tally[JOBS] += sum(job.state != "deleted" for job, _ in items)
        opening.carry_out(tx, "insert_first_runs")
        return [None] * len(items)

    return jobs, work


def _create_one(tx: Transaction, job: Job, runs: Sequence[Run], row: JobRow, now: int) -> Job | None:
    if not in_bulk(tx.db, "insert_jobs", [row]):
        return stored_job(tx.db, job.id)
    _attach(tx, job)
    tx.tally[JOBS] += job.state != "deleted"
    opening = Opening()
    opening.add(runs, now)
    opening.carry_out(tx, "insert_first_runs")
    return None


def _attach(tx: Transaction, job: Job) -> None:
    """Write the labels of a job and its references to blobs; most have neither."""
    if job.labels:
        tx.db.executemany(SQL["insert_label"], [(key, value, job.id) for key, value in job.labels.items()])
    files = job_files(job)
    if files:
        tx.db.executemany(SQL["refer"], reference_rows(job.id, OF_JOB, files))


def stored_job(db: apsw.Connection, job_id: JobId) -> Job | None:
    """The job as it is stored."""
    for (doc,) in db.execute(SQL["job_doc"], (job_id,)):
        return to_job(doc)
    return None


# -- change -------------------------------------------------------------------------------------------------


def change(
    job: Job,
    was_version: int,
    opened: Sequence[Run],
    now: int,
    *,
    keep_waiting: bool,
    begun: frozenset[int] | None,
    unbegun: frozenset[int] | None,
    replaced: Job | None,
) -> Callable[[Transaction], Job | Collision | None]:
    """The call that replaces a job's document and its waiting runs."""
    row = job_row(job)
    opening = Opening()
    opening.add(opened, now)
    ended = None if replaced is None else (job.id, number(replaced), encode(replaced))

    def work(tx: Transaction) -> Job | Collision | None:
        was = stored_job(tx.db, job.id)
        if was is None or was.version != was_version:
            return None
        for run in sorted(opened, key=lambda each: each.scheduled_at):
            if _past_waiting(tx.db, run):
                return Collision(run.scheduled_at)
        for seen, name in ((begun, "begun_of_job"), (unbegun, "unbegun_of_job")):
            if seen is None:
                continue
            others = seen ^ {scheduled for (scheduled,) in tx.db.execute(SQL[name], (job.id,))}
            if others:
                return Collision(min(others))
        tx.db.execute(SQL["update_job"], row)
        if was.labels != job.labels or job_files(was) != job_files(job):
            tx.db.execute(SQL["delete_labels"], (job.id,))
            release(tx, job.id, OF_JOB)
            _attach(tx, job)
        if replaced is not None:
            tx.db.execute(SQL["keep_version"], ended)
            _keep(tx, replaced)
        tx.tally[JOBS] += (job.state != "deleted") - (was.state != "deleted")
        if job.state == "deleted" or not keep_waiting:
            _remove_waiting(tx, job)
        opening.carry_out(tx)
        return job

    return work


def _keep(tx: Transaction, replaced: Job) -> None:
    """The definition that was just written keeps its files; those that are too many or too large go."""
    files = job_files(replaced)
    if files:
        tx.db.executemany(SQL["refer"], reference_rows(replaced.id, of_version(number(replaced)), files))
    bounds = (replaced.id, KEPT_VERSIONS, KEPT_BYTES)
    beyond: list[Any] = tx.db.execute(SQL["versions_beyond_keep"], bounds).fetchall()
    forget_versions(tx, replaced.id, [each for (each,) in beyond])


def forget_versions(tx: Transaction, job_id: str, numbers: Sequence[int] | None = None) -> None:
    """Forget replaced definitions of a job, all of them unless some are named, and what they refer to."""
    if numbers is None:
        numbers = [each for (each,) in tx.db.execute(SQL["version_numbers"], (job_id,))]
    for each in numbers:
        tx.db.execute(SQL["delete_version"], (job_id, each))
        release(tx, job_id, of_version(each))


def _past_waiting(db: apsw.Connection, run: Run) -> bool:
    """True if this run exists and no longer waits."""
    for (state,) in db.execute(SQL["run_state"], (run.job_id, run.scheduled_at)):
        return bool(state != _WAITING)
    return any(True for _ in db.execute(SQL["in_history"], (run.job_id, run.scheduled_at)))


def _remove_waiting(tx: Transaction, job: Job) -> None:
    """Remove the waiting runs that never started; those of a deleted job all go, retries and manual ones too."""
    waiting: list[Any] = tx.db.execute(SQL["waiting_of_job"], (job.id,)).fetchall()
    for scheduled, attempt, manual in waiting:
        if job.state == "deleted" or not (attempt or manual):
            tx.db.execute(SQL["delete_waiting"], (job.id, scheduled))
            tx.tally[WORDS[_WAITING]] -= 1
            release(tx, job.id, scheduled)


def release(tx: Transaction, job_id: str, scheduled_at: int) -> None:
    """Forget what a run (or a job, at OF_JOB) refers to; digests that nothing else refers to become orphans."""
    owner = (job_id, scheduled_at)
    digests = [digest for (digest,) in tx.db.execute(SQL["references_of"], owner)]
    if digests:
        tx.db.execute(SQL["forget_references"], owner)
        tx.db.executemany(SQL["orphan"], [(digest,) for digest in digests])
