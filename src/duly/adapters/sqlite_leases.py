"""Leases and terms when the machine's clock is set: they move with it, so that each keeps what is left of it.

A lease ends at an instant of the shard's clock. While the store is open the clock is compared with CLOCK_MONOTONIC;
a difference that changes is a step, and every lease in the file is moved by it in one transaction, before any of
them is judged by the new time (decision 0011). While it is closed nothing can be compared, but a heartbeat from
the future says that the clock went back, by so much at least.
"""

from __future__ import annotations

from typing import Any, Final

import apsw
from msgspec.structs import replace

from duly.adapters.rows import to_worker, worker_row
from duly.adapters.sql import statements

SQL: Final = statements("sqlite")
STEP: Final = 100_000  # µs by which the two clocks part before it counts: reading both can be interrupted


def move(db: apsw.Connection, step: int) -> None:
    """Move every worker's lease and heartbeat, and the term, by `step` µs. Inside a transaction."""
    rows: list[Any] = db.execute(SQL["workers"]).fetchall()
    for (doc,) in rows:
        worker = to_worker(doc)
        moved = replace(worker, beat_at=worker.beat_at + step, lease_until=worker.lease_until + step)
        db.execute(SQL["put_worker"], worker_row(moved))
    db.execute(SQL["move_term"], (step,))


def bring_back(db: apsw.Connection, now: int) -> None:
    """On opening: if heartbeats lie in the future, the clock went back meanwhile. No hold gets shorter by that."""
    rows: list[Any] = db.execute(SQL["workers"]).fetchall()
    ahead = max((to_worker(doc).beat_at - now for (doc,) in rows), default=0)
    if ahead > 0:
        db.execute("begin immediate")
        move(db, -ahead)
        db.execute("commit")
