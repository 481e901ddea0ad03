"""Runs that a transaction of the SQLite store opens: those that wait (or run), and records of those that have ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from duly.adapters.rows import (
    HistoryRow,
    ReferenceRow,
    RunRow,
    has_files,
    history_row,
    reference_rows,
    run_files,
    run_row,
)
from duly.adapters.sqlite_bulk import SQL, in_bulk
from duly.adapters.sqlite_writer import Transaction
from duly.core.model import Run, RunState

WORDS: Final = tuple(state.word for state in RunState)  # names of tallies
SUCCEEDED: Final = int(RunState.SUCCEEDED)


class Opening:
    """The rows of runs to be opened."""

    __slots__ = ("hot", "records", "references")

    def __init__(self) -> None:
        self.hot: dict[int, list[RunRow]] = {}  # by state, as the next
        self.records: dict[int, list[HistoryRow]] = {}
        self.references: list[ReferenceRow] = []

    def add(self, runs: Iterable[Run], now: int) -> None:
        """Prepare more of them."""
        for run in runs:
            if run.state >= SUCCEEDED:
                self.records.setdefault(run.state, []).append(history_row(run, now))
            else:
                self.hot.setdefault(run.state, []).append(run_row(run))
            self.refer(run)

    def refer(self, run: Run) -> None:
        """Prepare the references of a run to blobs, if it has any."""
        if has_files(run):
            self.references += reference_rows(run.job_id, run.scheduled_at, run_files(run))

    def carry_out(self, tx: Transaction, insert: str = "insert_runs") -> None:
        """Insert those that do not exist yet."""
        for state, rows in self.hot.items():
            tx.tally[WORDS[state]] += in_bulk(tx.db, insert, rows)
        for state, records in self.records.items():
            tx.tally[WORDS[state]] += in_bulk(tx.db, "insert_records", records)
        if self.references:
            tx.db.executemany(SQL["refer"], self.references)
