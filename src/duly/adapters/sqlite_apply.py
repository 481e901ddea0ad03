"""How the SQLite store carries out transitions: `apply`, as a call for the writer.

Everything that can be prepared before the transaction (encoding, above all) is prepared on the caller's thread, so
that the writer's transaction is SQL and little else. A batch is written group by group and counted; only when a
count falls short is the savepoint rolled back and the batch carried out one by one, to learn who lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from duly.adapters.rows import HistoryRow, encode, history_row
from duly.adapters.sqlite_bulk import SQL, in_bulk
from duly.adapters.sqlite_opening import SUCCEEDED, WORDS, Opening
from duly.adapters.sqlite_writer import Transaction
from duly.core.errors import Fenced
from duly.core.machine import Transition

_Key = tuple[int, str, int]  # due, job, scheduled: the primary key of a hot run
_Was = tuple[int, int, str, int | None]  # what is compared: state, attempt, worker, version of a waiting run
_Row = tuple[int | str | bytes | None, ...]


class _Batch:
    """Transitions of distinct runs, prepared by what they set and compare, which most of a batch share."""

    __slots__ = ("documents", "ended", "jobs", "moved", "opening", "returned", "taken", "tally")

    def __init__(self, transitions: Sequence[Transition], now: int) -> None:
        self.moved: dict[tuple[int, int, str, int | None, _Was], list[_Key]] = {}
        self.taken: dict[tuple[_Was, bool], list[_Key]] = {}
        self.ended: list[HistoryRow] = []
        self.documents: list[_Row] = []
        self.returned: list[_Row] = []  # to waiting: `due` may change
        self.jobs: list[tuple[str, int]] = []  # of decisions that a change of the job would have made otherwise
        self.opening = Opening()
        moves: Counter[tuple[int, int]] = Counter()
        for t in transitions:
            run = t.run
            state, was_state = int(run.state), int(t.was_state)
            key = (run.due_at, run.job_id, run.scheduled_at)
            # Nothing that is decided about a waiting run changes its version: what it has is what it had.
            was = (was_state, t.was_attempt, t.was_worker, None if was_state else run.job_version)
            if state >= SUCCEEDED:
                self.taken.setdefault((was, t.was_cancelled), []).append(key)
                self.ended.append(history_row(run, now))
                self.opening.refer(run)
            elif t.columns_only:
                change = (state, run.attempt, run.worker, run.dispatched_at, was)
                self.moved.setdefault(change, []).append(key)
            else:
                (self.documents if state else self.returned).append(_document(t))
                self.opening.refer(run)
            moves[was_state, state] += 1
            if t.was_job is not None:
                self.jobs.append((run.job_id, t.was_job))
            if t.opened:
                self.opening.add(t.opened, now)
        self.tally: Counter[str] = Counter()
        for (before, after), n in moves.items():
            self.tally[WORDS[before]] -= n
            self.tally[WORDS[after]] += n

    def carry_out(self, tx: Transaction) -> bool:
        """True if every transition won. False leaves the caller to roll back."""
        for job_and_version in self.jobs:
            if not any(True for _ in tx.db.execute(SQL["job_has_version"], job_and_version)):
                return False
        for (*change, was), keys in self.moved.items():
            if in_bulk(tx.db, "move_columns", keys, *change, *was) != len(keys):
                return False
        for (was, cancelled), keys in self.taken.items():
            if in_bulk(tx.db, "take_runs", keys, *was, cancelled) != len(keys):
                return False
        for sql, rows in (("move_document", self.documents), ("move_document_exactly", self.returned)):
            if rows and tx.many(SQL[sql], rows) != len(rows):
                return False
        in_bulk(tx.db, "insert_history", self.ended)
        tx.tally.update(self.tally)
        self.opening.carry_out(tx)
        return True


def _document(t: Transition) -> _Row:
    run = t.run
    columns = (int(run.state), run.attempt, run.worker, run.dispatched_at, run.job_version, run.late, encode(run))
    return (*columns, run.cancel is not None, *_compared(t), t.was_cancelled)


def _compared(t: Transition) -> _Row:
    run = t.run
    key = (run.due_at, run.job_id, run.scheduled_at)
    return (*key, int(t.was_state), t.was_attempt, t.was_worker, run.job_version)


def _carry_out_one(t: Transition, tx: Transaction, now: int) -> bool:
    """True if it won; else it has written nothing. Finds its run by (job, scheduled), wherever `due` has got to."""
    run = t.run
    if t.was_job is not None and not any(True for _ in tx.db.execute(SQL["job_has_version"], (run.job_id, t.was_job))):
        return False
    if run.state >= SUCCEEDED:
        won = tx.one(SQL["take_run_exactly"], (*_compared(t), t.was_cancelled))
    elif t.columns_only:
        columns = (int(run.state), run.attempt, run.worker, run.dispatched_at)
        won = tx.one(SQL["move_columns_exactly"], (*columns, *_compared(t)))
    else:
        won = tx.one(SQL["move_document_exactly"], _document(t))
    if not won:
        return False
    opening = Opening()
    if run.state >= SUCCEEDED:
        in_bulk(tx.db, "insert_history", [history_row(run, now)])
    if run.state >= SUCCEEDED or not t.columns_only:
        opening.refer(run)
    opening.add(t.opened, now)
    opening.carry_out(tx)
    tx.tally[WORDS[t.was_state]] -= 1
    tx.tally[WORDS[run.state]] += 1
    return True


def _distinct(transitions: Sequence[Transition]) -> bool:
    """True if no two are of one run. Told by their jobs alone, as long as those differ."""
    count = len(transitions)
    if len({t.run.job_id for t in transitions}) == count:
        return True
    return len({(t.run.job_id, t.run.scheduled_at) for t in transitions}) == count


def application(transitions: Sequence[Transition], now: int, fence: int | None) -> Callable[[Transaction], list[int]]:
    """The call that carries out transitions; returns the indexes of the losers."""
    # Of two transitions of one run, the second is judged by what the first left: those go in order.
    batch = _Batch(transitions, now) if len(transitions) > 1 and _distinct(transitions) else None

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
        return [i for i, t in enumerate(transitions) if not _carry_out_one(t, tx, now)]

    return work
