"""What the PostgreSQL store writes: jobs with their runs, transitions, changes of a job, as arguments of functions.

A batch is a table turned on its side: one array for each column, sorted by key, so that all who write lock in the same
order. It is encoded before a connection is asked for. A call that is longer than `MAX_ROWS`, or in which one transition
builds on another, becomes several batches of one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final

from duly.adapters.rows import (
    OF_JOB,
    encode,
    has_files,
    history_row,
    job_files,
    job_row,
    reference_rows,
    run_files,
    run_row,
)
from duly.core.machine import Transition
from duly.core.model import Job, Run, RunKey, RunState
from duly.core.versions import KEPT_BYTES, KEPT_VERSIONS, number

MAX_ROWS: Final = 1_000  # transitions in one statement
MAX_JOBS: Final = 1_000  # jobs in one statement

_SUCCEEDED: Final = RunState.SUCCEEDED.value
_WAITING: Final = RunState.WAITING.value

Args = list[object]

JOB_COLUMNS: Final = 10
LABEL_COLUMNS: Final = 3
REFERENCE_COLUMNS: Final = 3
RUN_COLUMNS: Final = 12
RECORD_COLUMNS: Final = 8
MOVE_COLUMNS: Final = 16
END_COLUMNS: Final = 13


def columns(rows: Sequence[Sequence[object]], width: int) -> list[list[object]]:
    """Rows as one list for each column."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def _job_row(job: Job) -> tuple[Any, ...]:
    *searched, doc = job_row(job)
    return (*searched, doc.decode())


def _hot_row(run: Run) -> tuple[object, ...]:
    due, job, scheduled, state, attempt, worker, dispatched, manual, version, late, doc = run_row(run)
    return (
        job,
        scheduled,
        due,
        state,
        attempt,
        worker,
        dispatched,
        manual,
        version,
        late,
        run.cancel is not None,
        doc.decode(),
    )


def _record_row(run: Run, now: int) -> tuple[object, ...]:
    scheduled, job, state, started, late, worker, finished, doc = history_row(run, now)
    return (job, scheduled, state, started, late, worker, finished, doc.decode())


def _by_key_after_i(row: Sequence[Any]) -> Any:
    return row[1:3]


class _Opening:
    """Runs to be opened, each with the transition that opens it: those that wait, and records of those that ended."""

    def __init__(self) -> None:
        self.hot: list[tuple[object, ...]] = []
        self.records: list[tuple[object, ...]] = []
        self.references: list[tuple[object, ...]] = []  # of hot runs
        self.past_references: list[tuple[object, ...]] = []  # of finished ones

    def add(self, i: int, runs: Iterable[Run], now: int) -> None:
        """More of them."""
        for run in runs:
            if run.state >= _SUCCEEDED:
                self.records.append((i, *_record_row(run, now)))
            else:
                self.hot.append((i, *_hot_row(run)))
            self.refer(i, run)

    def refer(self, i: int, run: Run) -> None:
        """The references of a run to blobs, if it has any."""
        if has_files(run):
            rows = [(i, *row) for row in reference_rows(run.job_id, run.scheduled_at, run_files(run))]
            (self.past_references if run.state >= _SUCCEEDED else self.references).extend(rows)

    def sort(self) -> None:
        """By key; of two runs of one key the first stays first."""
        for rows in (self.hot, self.records):
            rows.sort(key=_by_key_after_i)
        for rows in (self.references, self.past_references):
            rows.sort(key=lambda row: row[1:])


# -- create -------------------------------------------------------------------------------------------------


def creation(items: Sequence[tuple[Job, Sequence[Run]]], now: int) -> Args:
    """The arguments of `create_jobs` for jobs with different ids, but for the epoch."""
    jobs = sorted((_job_row(job) for job, _ in items), key=lambda row: row[0])
    labels = [(key, value, job.id) for job, _ in items for key, value in job.labels.items()]
    references: list[tuple[object, ...]] = []
    opening = _Opening()
    for job, runs in items:
        references += [(0, *row) for row in reference_rows(job.id, OF_JOB, job_files(job))]
        keys = {run.scheduled_at for run in runs if run.state < _SUCCEEDED}
        opening.add(0, (run for run in runs if run.state < _SUCCEEDED or run.scheduled_at not in keys), now)
    opening.references += references
    opening.sort()
    return [
        *columns(jobs, JOB_COLUMNS),
        *columns(sorted(labels), LABEL_COLUMNS),
        *columns(opening.references, REFERENCE_COLUMNS + 1)[1:],
        *columns(opening.past_references, REFERENCE_COLUMNS + 1)[1:],
        *columns(opening.hot, RUN_COLUMNS + 1)[1:],
        *columns(opening.records, RECORD_COLUMNS + 1)[1:],
    ]


# -- apply --------------------------------------------------------------------------------------------------


def rounds(transitions: Sequence[Transition]) -> list[list[int]]:
    """The indexes of transitions, in batches to be carried out one after the other.

    Within a batch no transition concerns a run that an earlier one moves or opens, so that order is of no account.
    """
    found: list[list[int]] = []
    batch: list[int] = []
    touched: set[RunKey] = set()
    opened: dict[RunKey, bool] = {}  # whether as a record
    for i, transition in enumerate(transitions):
        key = transition.run.key
        clash = key in touched or key in opened
        for run in transition.opened:
            clash = clash or opened.get(run.key, run.state.terminal) != run.state.terminal
        if batch and (clash or len(batch) >= MAX_ROWS):
            found.append(batch)
            batch, touched, opened = [], set(), {}
        batch.append(i)
        touched.add(key)
        for run in transition.opened:
            opened[run.key] = run.state.terminal
    if batch:
        found.append(batch)
    return found


def application(transitions: Sequence[Transition], batch: Sequence[int], now: int) -> Args:
    """The arguments of `apply_runs` for one batch of the transitions, but for the fence."""
    jobs: list[tuple[int, str, int]] = []
    moves: list[tuple[object, ...]] = []
    ends: list[tuple[object, ...]] = []
    opening = _Opening()
    for i in batch:
        t = transitions[i]
        run = t.run
        # Nothing that is decided about a waiting run changes its version: what it has is what it had.
        was = (i, run.job_id, run.scheduled_at, t.was_state.value, t.was_attempt, t.was_worker, run.job_version)
        if run.state >= _SUCCEEDED:
            _, _, *record = _record_row(run, now)
            ends.append((*was, t.was_cancelled, *record))
            opening.refer(i, run)
        elif t.columns_only:
            becomes = (run.state.value, run.attempt, run.worker, run.dispatched_at)
            moves.append((*was, None, *becomes, None, None, None, None, None))
        else:
            becomes = (run.state.value, run.attempt, run.worker, run.dispatched_at)
            # Only a run that goes back to waiting gets another `due`.
            due = run.due_at if run.state == _WAITING else None
            document = (run.job_version, run.late, run.cancel is not None, encode(run).decode())
            moves.append((*was, t.was_cancelled, *becomes, due, *document))
            opening.refer(i, run)
        if t.was_job is not None:
            jobs.append((i, run.job_id, t.was_job))
        if t.opened:
            opening.add(i, t.opened, now)
    for rows in (moves, ends):
        rows.sort(key=_by_key_after_i)
    jobs.sort(key=lambda row: row[1])
    opening.sort()
    return [
        *columns(jobs, 3),
        *columns(moves, MOVE_COLUMNS + 1),
        *columns(ends, END_COLUMNS + 1),
        *columns(opening.references, REFERENCE_COLUMNS + 1),
        *columns(opening.past_references, REFERENCE_COLUMNS + 1),
        *columns(opening.hot, RUN_COLUMNS + 1),
        *columns(opening.records, RECORD_COLUMNS + 1),
    ]


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
) -> Args:
    """The arguments of `change_job_2`."""
    id_, *searched = _job_row(job)
    opening = _Opening()
    opening.add(0, opened, now)
    opening.sort()
    labels = sorted(job.labels.items())
    return [
        None if replaced is None else number(replaced),
        None if replaced is None else encode(replaced).decode(),
        [] if replaced is None else sorted(job_files(replaced)),
        KEPT_VERSIONS,
        KEPT_BYTES,
        id_,
        was_version,
        *searched,
        *columns(labels, 2),
        sorted(job_files(job)),
        keep_waiting,
        None if begun is None else sorted(begun),
        None if unbegun is None else sorted(unbegun),
        *columns(opening.hot, RUN_COLUMNS + 1)[1:],
        *columns(opening.records, RECORD_COLUMNS + 1)[2:],
        *_digest_and_scheduled(opening.references),
        *_digest_and_scheduled(opening.past_references),
    ]


def _digest_and_scheduled(references: Sequence[tuple[object, ...]]) -> list[list[object]]:
    _, digests, _, scheduled = columns(references, REFERENCE_COLUMNS + 1)
    return [digests, scheduled]


@cache
def _call(function: str, count: int) -> str:
    return f"select duly.{function}({', '.join(f'${number + 1}' for number in range(count))})"


def call(function: str, args: Args) -> str:
    """The statement that calls a function of the database with so many arguments."""
    return _call(function, len(args))
