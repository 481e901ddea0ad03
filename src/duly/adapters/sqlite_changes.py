"""What the SQLite store writes: jobs with their runs, transitions, changes of a job. Each is a call for the writer.

Everything that can be prepared before the transaction (encoding, above all) is prepared on the caller's thread, so
that the writer's transaction is SQL and little else. Whole batches go through `executemany` and are counted; only
when a count falls short is the savepoint rolled back and the batch carried out one by one, to learn who lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import apsw

from duly.adapters.rows import (
    OF_JOB,
    HistoryRow,
    JobRow,
    ReferenceRow,
    RunRow,
    encode,
    has_files,
    history_row,
    job_files,
    job_row,
    reference_rows,
    run_files,
    run_row,
    to_job,
)
from duly.adapters.sql import statements
from duly.adapters.sqlite_writer import Transaction
from duly.core.errors import Fenced
from duly.core.machine import Transition
from duly.core.model import Job, JobId, Run, RunState
from duly.ports import Collision

SQL: Final = statements("sqlite")
JOBS: Final = "jobs"  # the tally of jobs that are not deleted; those of runs are named by their state

_WORDS: Final = tuple(state.word for state in RunState)
_WAITING: Final = RunState.WAITING.value
_SUCCEEDED: Final = RunState.SUCCEEDED.value


class _Opening:
    """Runs to be opened: those that wait (or run), and records of those that have ended."""

    __slots__ = ("hot", "records", "references")

    def __init__(self) -> None:
        self.hot: list[RunRow] = []
        self.records: list[HistoryRow] = []
        self.references: list[ReferenceRow] = []

    def add(self, runs: Iterable[Run], now: int) -> None:
        """Prepare more of them."""
        for run in runs:
            if run.state >= _SUCCEEDED:
                self.records.append(history_row(run, now))
            else:
                self.hot.append(run_row(run))
            self.refer(run)

    def refer(self, run: Run) -> None:
        """Prepare the references of a run to blobs, if it has any."""
        if has_files(run):
            self.references += reference_rows(run.job_id, run.scheduled_at, run_files(run))

    def carry_out(self, tx: Transaction, insert: str = "insert_run") -> None:
        """Insert those that do not exist yet."""
        if self.hot:
            states = {row[3] for row in self.hot}
            if len(states) == 1:
                tx.tally[_WORDS[states.pop()]] += tx.many(SQL[insert], self.hot)
            else:
                for row in self.hot:
                    tx.tally[_WORDS[row[3]]] += tx.one(SQL[insert], row)
        for record in self.records:
            tx.tally[_WORDS[record[2]]] += tx.one(SQL["insert_record"], record)
        if self.references:
            tx.db.executemany(SQL["refer"], self.references)


# -- create -------------------------------------------------------------------------------------------------


def creation(
    items: Sequence[tuple[Job, Sequence[Run]]], now: int
) -> tuple[list[JobRow], Callable[[Transaction], list[Job | None]]]:
    """The rows of jobs, and the call that writes them with their first runs.

    It returns, for each job, None or the job that was there already.
    """
    jobs = [job_row(job) for job, _ in items]
    opening = _Opening()
    for _, runs in items:
        opening.add(runs, now)

    def work(tx: Transaction) -> list[Job | None]:
        tx.db.execute("savepoint creation")
        whole = tx.many(SQL["insert_job"], jobs) == len(jobs)
        if not whole:
            tx.db.execute("rollback to creation")
        tx.db.execute("release creation")
        if not whole:
            return [_create_one(tx, job, runs, row, now) for (job, runs), row in zip(items, jobs, strict=True)]
        for job, _ in items:
            _attach(tx, job)
        tx.tally[JOBS] += sum(job.state != "deleted" for job, _ in items)
        opening.carry_out(tx, "insert_first_run")
        return [None] * len(items)

    return jobs, work


def _create_one(tx: Transaction, job: Job, runs: Sequence[Run], row: JobRow, now: int) -> Job | None:
    if not tx.one(SQL["insert_job"], row):
        return stored_job(tx.db, job.id)
    _attach(tx, job)
    tx.tally[JOBS] += job.state != "deleted"
    opening = _Opening()
    opening.add(runs, now)
    opening.carry_out(tx, "insert_first_run")
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


# -- apply --------------------------------------------------------------------------------------------------


class _Batch:
    """Transitions of distinct runs, prepared for `executemany`. One alone can be carried out exactly."""

    __slots__ = ("columns", "documents", "ended", "jobs", "opening", "returned", "taken", "tally")

    def __init__(self, transitions: Sequence[Transition], now: int) -> None:
        self.columns: list[tuple[int | str | None, ...]] = []
        self.documents: list[tuple[int | str | bytes | None, ...]] = []
        self.returned: list[tuple[int | str | bytes | None, ...]] = []  # to waiting: `due` may change
        self.taken: list[tuple[int | str, ...]] = []
        self.ended: list[HistoryRow] = []
        self.jobs: list[tuple[str, int]] = []  # of decisions that a change of the job would have made otherwise
        self.opening = _Opening()
        moves: Counter[tuple[int, int]] = Counter()
        for t in transitions:
            run = t.run
            state = run.state.value
            # Nothing that is decided about a waiting run changes its version: what it has is what it had.
            key = (
                run.due_at,
                run.job_id,
                run.scheduled_at,
                t.was_state.value,
                t.was_attempt,
                t.was_worker,
                run.job_version,
            )
            if state >= _SUCCEEDED:
                self.taken.append((*key, t.was_cancelled))
                self.ended.append(history_row(run, now))
                self.opening.refer(run)
            elif t.columns_only:
                self.columns.append((state, run.attempt, run.worker, run.dispatched_at, *key))
            else:
                columns = (state, run.attempt, run.worker, run.dispatched_at, run.job_version, run.late, encode(run))
                row = (*columns, run.cancel is not None, *key, t.was_cancelled)
                (self.documents if state else self.returned).append(row)
                self.opening.refer(run)
            moves[t.was_state.value, state] += 1
            if t.was_job is not None:
                self.jobs.append((run.job_id, t.was_job))
            if t.opened:
                self.opening.add(t.opened, now)
        self.tally: Counter[str] = Counter()
        for (was, becomes), n in moves.items():
            self.tally[_WORDS[was]] -= n
            self.tally[_WORDS[becomes]] += n

    def carry_out(self, tx: Transaction, form: str = "") -> bool:
        """True if every transition won. False leaves the caller to roll back; one alone has then written nothing."""
        for job_and_version in self.jobs:
            if not any(True for _ in tx.db.execute(SQL["job_has_version"], job_and_version)):
                return False
        for sql, rows in (
            ("move_columns" + form, self.columns),
            ("move_document" + form, self.documents),
            ("move_document_exactly", self.returned),
            ("take_run" + form, self.taken),
        ):
            if rows and tx.many(SQL[sql], rows) != len(rows):
                return False
        if self.ended:
            tx.db.executemany(SQL["insert_history"], self.ended)
        tx.tally.update(self.tally)
        self.opening.carry_out(tx)
        return True


def application(transitions: Sequence[Transition], now: int, fence: int | None) -> Callable[[Transaction], list[int]]:
    """The call that carries out transitions; returns the indexes of the losers."""
    # Of two transitions of one run, the second is judged by what the first left: those go in order.
    in_order = len(transitions) == 1 or len({t.run.key for t in transitions}) < len(transitions)
    batch = None if in_order else _Batch(transitions, now)

    def work(tx: Transaction) -> list[int]:
        if fence is not None:
            current = next(iter(tx.db.execute(SQL["term"])), (None, None, None))[1]
            if current != fence:
                raise Fenced(f"the term has fence {current}, not {fence}")
        if batch is not None:
            tx.db.execute("savepoint application")
            whole = batch.carry_out(tx)
            if not whole:
                tx.db.execute("rollback to application")
            tx.db.execute("release application")
            if whole:
                return []
        return [i for i, t in enumerate(transitions) if not _Batch((t,), now).carry_out(tx, "_exactly")]

    return work


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
) -> Callable[[Transaction], Job | Collision | None]:
    """The call that replaces a job's document and its waiting runs."""
    row = job_row(job)
    opening = _Opening()
    opening.add(opened, now)

    def work(tx: Transaction) -> Job | Collision | None:
        was = stored_job(tx.db, job.id)
        if was is None or was.version != was_version:
            return None
        for run in opened:
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
        tx.tally[JOBS] += (job.state != "deleted") - (was.state != "deleted")
        if job.state == "deleted" or not keep_waiting:
            _remove_waiting(tx, job)
        opening.carry_out(tx)
        return job

    return work


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
            tx.tally[_WORDS[_WAITING]] -= 1
            release(tx, job.id, scheduled)


def release(tx: Transaction, job_id: str, scheduled_at: int) -> None:
    """Forget what a run (or a job, at OF_JOB) refers to; digests that nothing else refers to become orphans."""
    owner = (job_id, scheduled_at)
    digests = [digest for (digest,) in tx.db.execute(SQL["references_of"], owner)]
    if digests:
        tx.db.execute(SQL["forget_references"], owner)
        tx.db.executemany(SQL["orphan"], [(digest,) for digest in digests])
