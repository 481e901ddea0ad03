"""Workers that live and are not heard: their beats reach the store by a servicer, because no broker carries them here.

The scheduler seats them by their rows, which say so (a row that a scheduler wrote may be older than what its worker
was sent since, and tells of no silence), and asks the store what has become of the attempts that count as out at them,
since nobody tells it of their ends. Nothing is read while every seat is heard, but for a look now and then.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Final

from duly.core.agenda import Agenda
from duly.core.instants import SECOND
from duly.core.model import RunKey, Worker, WorkerId
from duly.ports import Clock, Store
from duly.roles.deliveries import is_at

SILENT: Final = 2 * SECOND  # two beats
RECENT: Final = 3 * SECOND  # a row that was written since then is that of a worker that lives
EVERY: Final = 5 * SECOND  # a look at the rows, even if every seat is heard: there may be workers without one
LOADED: Final = 1_000  # runs read at once


class QuietFleet:
    """What one shard's scheduler does for them, once a refill."""

    def __init__(self, *, shard: str, store: Store, clock: Clock, agenda: Agenda) -> None:
        self._shard = shard
        self._store = store
        self._clock = clock
        self._agenda = agenda
        self._seated: set[WorkerId] = set()
        self._next_look = 0

    async def look(self, now: int, heard: Mapping[WorkerId, int], committing: Container[tuple[RunKey, int]]) -> None:
        """Seat those that live and are silent, unseat those that were seated so and live no longer.

        `heard` says when workers were last heard, by the monotonic clock. What is in `committing` may not be out yet.
        """
        monotonic = self._clock.monotonic()

        def silent(worker: WorkerId) -> bool:
            return monotonic - heard.get(worker, monotonic - 2 * SILENT) > SILENT

        seats = self._agenda.seats
        if seats and monotonic < self._next_look and not any(silent(worker) for worker in seats):
            self._seated.clear()
            return
        self._next_look = monotonic + EVERY
        rows = [row for row in await self._store.fleet(self._shard) if silent(row.id) and _lives(row, now)]
        quiet = {row.id for row in rows}
        for row in rows:
            self._agenda.seat(row, row.capacity)
        for worker in self._seated - quiet:
            if silent(worker):
                self._agenda.unseat(worker)
        self._seated = quiet
        out = [
            (key, attempt, worker)
            for worker in quiet
            for key, attempt in self._agenda.out_at(worker)
            if (key, attempt) not in committing
        ]
        await self.free_ended(out)

    async def free_ended(self, out: Sequence[tuple[RunKey, int, WorkerId]]) -> bool:
        """Free those of the attempts that the store has ended or given to another; True if any is out still.

        Word of an end may be lost, and what an attempt holds up must not wait for it.
        """
        still = False
        for start in range(0, len(out), LOADED):
            part = out[start : start + LOADED]
            found = await self._store.load([key for key, _, _ in part], shard=self._shard)
            for (key, attempt, worker), pair in zip(part, found, strict=True):
                if pair is not None and is_at(pair[0], attempt, worker):
                    still = True
                else:
                    self._agenda.ended(key, attempt)
        return still

    def forget(self) -> None:
        """The term is over."""
        self._seated.clear()
        self._next_look = 0


def _lives(row: Worker, now: int) -> bool:
    return row.unheard and row.state != "lost" and row.lease_until > now and now - row.beat_at <= RECENT
