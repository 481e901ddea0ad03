"""What counts as out at the workers, held against what their beats say they hold.

    beat lists it            it is there
    beat does not list it    for three seconds of fresh beats: overdue, the scheduler looks it up
    no beats                 the worker loses its seat; what ended there without a word is not out any more

An attempt may be missing because it never arrived (a message or the scheduler that was to send it was lost), because
the worker dropped it when it could not trust its lease, or because it has ended and nobody was told. What arrives so
late that it may count as overdue already is not begun (`Shard.is_late`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from duly.core.agenda import Agenda, Placement
from duly.core.instants import SECOND
from duly.core.messages import Beat
from duly.core.model import Run, RunKey, WorkerId
from duly.ports import Clock, Store

OVERDUE_AFTER: Final = 3 * SECOND
FRESH: Final = SECOND  # a worker waits no longer for the answer to a beat

Attempt = tuple[RunKey, int]


class _Told(msgspec.Struct):
    """What a worker's last beat, at `at`, did not hold of what counts as out there; and since when that is so."""

    at: int
    missing_since: dict[Attempt, int]


class Committing:
    """Attempts whose dispatch is under way to the store. Hardly ever asked for: a batch is looked into only then."""

    def __init__(self) -> None:
        self._batches: dict[int, Sequence[Placement]] = {}
        self._attempts: dict[int, frozenset[Attempt]] = {}

    def begin(self, batch: Sequence[Placement]) -> None:
        """These are being committed, until `end` is called with the same sequence."""
        self._batches[id(batch)] = batch

    def end(self, batch: Sequence[Placement]) -> None:
        """They were committed, or not: the store knows."""
        del self._batches[id(batch)]
        self._attempts.pop(id(batch), None)

    def __contains__(self, attempt: object) -> bool:
        for number, batch in self._batches.items():
            if number not in self._attempts:
                self._attempts[number] = frozenset((each.run.key, each.run.attempt + 1) for each in batch)
            if attempt in self._attempts[number]:
                return True
        return False


class Deliveries:
    """One shard's. `committing` are attempts that count as out and may not be yet: they are left alone."""

    def __init__(self, *, shard: str, store: Store, clock: Clock, agenda: Agenda, worker_ttl: int) -> None:
        self.committing = Committing()
        self._shard = shard
        self._store = store
        self._clock = clock
        self._agenda = agenda
        self._worker_ttl = worker_ttl
        self._told: dict[WorkerId, _Told] = {}
        self._fastest: dict[WorkerId, int] = {}  # the least that its beats took, by clocks that begin anywhere

    @property
    def heard(self) -> dict[WorkerId, int]:
        """When each worker was last heard, by the monotonic clock."""
        return {worker: told.at for worker, told in self._told.items()}

    def begin(self) -> None:
        """A term begins: the seats that there are were heard a moment ago, as far as anyone knows."""
        now = self._clock.monotonic()
        self._told = {worker: _Told(now, {}) for worker in self._agenda.seats}

    def forget(self) -> None:
        """The term is over."""
        self._told.clear()

    def is_fresh(self, beat: Beat, received: int) -> bool:
        """False for a beat that waited somewhere: what it says may be older than what its worker was sent since."""
        took = received - beat.sent
        fastest = self._fastest[beat.worker.id] = min(took, self._fastest.get(beat.worker.id, took))
        return not beat.sent or took - fastest <= FRESH

    def overdue(self, worker: WorkerId, held: Collection[Attempt]) -> list[Attempt]:
        """Take in what a fresh beat holds; returns what has been missing from this worker's beats for too long."""
        now = self._clock.monotonic()
        holds = set(held)
        before = self._told.get(worker)
        if before is None or now - before.at > OVERDUE_AFTER:
            before = _Told(now, {})  # it was silent, so what it says may be older than what it was sent
        missing = {
            attempt: before.missing_since.get(attempt, now)
            for attempt in self._agenda.out_at(worker)
            if attempt not in holds and attempt not in self.committing
        }
        self._told[worker] = _Told(now, missing)
        return [attempt for attempt, since in missing.items() if now - since >= OVERDUE_AFTER]

    async def stale(self, worker: WorkerId, held: Collection[Attempt]) -> tuple[Attempt, ...]:
        """Of the attempts that a worker holds, those that the store has ended or given to another."""
        unknown = [attempt for attempt in held if not self._agenda.is_out(*attempt)]
        if not unknown:
            return ()
        found = await self._store.load([key for key, _ in unknown], shard=self._shard)
        return tuple(
            (key, attempt)
            for (key, attempt), pair in zip(unknown, found, strict=True)
            if pair is None or not is_at(pair[0], attempt, worker)
        )

    async def forget_silent(self) -> None:
        """Workers that do not beat are given nothing more; what has ended there without a word is not out any more."""
        oldest = self._clock.monotonic() - self._worker_ttl
        for worker in [worker for worker, told in self._told.items() if told.at < oldest]:
            del self._told[worker]
            self._fastest.pop(worker, None)
            self._agenda.unseat(worker)
        orphans = [
            (key, attempt, worker)
            for key, attempt, worker in self._agenda.orphans()
            if (key, attempt) not in self.committing
        ]
        if not orphans:
            return
        found = await self._store.load([key for key, _, _ in orphans], shard=self._shard)
        for (key, attempt, worker), pair in zip(orphans, found, strict=True):
            if pair is None or not is_at(pair[0], attempt, worker):
                self._agenda.ended(key, attempt)


def is_at(run: Run, attempt: int, worker: WorkerId) -> bool:
    """True while the store has this attempt out at this worker."""
    return run.state.active and run.attempt == attempt and run.worker == worker
