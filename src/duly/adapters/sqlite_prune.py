"""Pruning a SQLite shard in bounded steps: a walk around all jobs that goes on where the last step ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import apsw

from duly.adapters.rows import OF_JOB
from duly.adapters.sqlite_bulk import SQL, in_bulk, looked_up
from duly.adapters.sqlite_changes import JOBS, forget_versions, release
from duly.adapters.sqlite_writer import Transaction
from duly.core.instants import DAY
from duly.core.model import JobId
from duly.ports import Pruned

STEP: Final = 20_000  # jobs looked at in one step: a few tens of milliseconds
FORGET_WORKERS_AFTER: Final = DAY


class Victims(NamedTuple):
    """What one step found: finished runs to remove, and the job after which to go on (None: the walk is round)."""

    runs: list[tuple[int, str]]  # (scheduled, job)
    position: str | None
    more: bool


def find(db: apsw.Connection, after: str, now: int, limit: int) -> Victims:
    """Look at the next jobs after `after` for at most `limit` finished runs beyond what their jobs keep."""
    found: list[tuple[int, str]] = []
    looked_at = 0
    for job, keep_runs, keep_age, suspect, goes_on in db.execute(SQL["history_by_job"], (now, after, STEP)):
        looked_at += 1
        if suspect or keep_runs is None:
            # History without its job cannot be asked for: it goes.
            oldest = now - keep_age if keep_runs is not None else 2**62
            room = limit - len(found)
            until = now if goes_on else 2**62
            row = (job, oldest, keep_runs or 0, room + 1, until)
            rows: list[Any] = db.execute(SQL["beyond_keep"], row).fetchall()
            found += [(scheduled, job) for (scheduled,) in rows[:room]]
            if len(rows) > room:
                return Victims(found, after, more=True)
        after = job
    whole = looked_at < STEP
    return Victims(found, None if whole else after, more=not whole)


def removal(
    victims: Victims, handed: set[str], emptied: list[JobId], now: int, limit: int
) -> Callable[[Transaction], Pruned]:
    """The call that removes them, the jobs that are over and empty then, and workers long silent.

    `handed` are the orphans that the last prune returned: their time in the table is over. (Were they forgotten
    when they are returned, a crash before their blobs are deleted would leave those for ever.)
    `emptied` is filled with the jobs that went.
    """

    def work(tx: Transaction) -> Pruned:
        runs = in_bulk(tx.db, "delete_finished", victims.runs)
        for scheduled, job in dict.fromkeys(looked_up(tx.db, "referring", victims.runs)):
            release(tx, job, scheduled)
        emptied[:] = [job for (job,) in tx.db.execute(SQL["empty_deleted_jobs"], (limit,))]
        deleted = len(emptied)
        for job in dict.fromkeys(job for _, job in victims.runs):
            emptied.extend(each for (each,) in tx.db.execute(SQL["completed_and_empty"], (job,)))
        tx.tally[JOBS] -= len(emptied) - deleted
        for job in emptied:
            tx.db.execute(SQL["delete_job"], (job,))
            tx.db.execute(SQL["delete_labels"], (job,))
            release(tx, job, OF_JOB)
            forget_versions(tx, job)
        tx.db.execute(SQL["forget_workers"], (now - FORGET_WORKERS_AFTER,))
        tx.db.executemany(SQL["forget_orphan"], [(digest,) for digest in handed])
        return Pruned(runs, len(emptied), _orphans(tx), victims.more or deleted == limit)

    return work


def _orphans(tx: Transaction) -> tuple[str, ...]:
    """Digests that nothing refers to; those referred to again are forgotten."""
    candidates: list[Any] = tx.db.execute(SQL["orphans"]).fetchall()
    orphans: list[str] = []
    for (digest,) in candidates:
        if any(True for _ in tx.db.execute(SQL["referred"], (digest,))):
            tx.db.execute(SQL["forget_orphan"], (digest,))
        else:
            orphans.append(digest)
    return tuple(orphans)
