"""Reads the near future of a shard into the agenda: the safety net under the hints, beside the dispatching.

once a refill         from the start, page after page, until the window is read
more is due than      on from the last page whenever half the agenda is free; once a refill only the head is looked
the agenda takes      at, where a run that no hint told of is found when its turn comes
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from duly.core.agenda import Agenda
from duly.core.errors import DulyError
from duly.core.model import Job, JobId, Run, RunKey, RunState
from duly.ports import Store

log = logging.getLogger("duly.scheduler")

PAGE: Final = 4_096
HEAD: Final = 512

Cursor = tuple[int, JobId, int]  # due, job, scheduled


class Page(NamedTuple):
    """Which runs to read: at most `limit`, after a cursor or from the start."""

    after: Cursor | None
    limit: int


class Window:
    """One shard's. Durations and instants in µs; `next_reading` is by the monotonic clock."""

    def __init__(self, *, shard: str, store: Store, agenda: Agenda, width: int, interval: int) -> None:
        self.next_reading = 0
        self._shard = shard
        self._store = store
        self._agenda = agenda
        self._width = width
        self._interval = interval
        self._cursor: Cursor | None = None
        self._reading = False
        self._picked: set[RunKey] = set()  # since the reading under way began: what it read of them is old

    def reset(self) -> None:
        """The agenda was emptied: read from the start, at once. A reading under way is for nothing."""
        self._cursor = None
        self.next_reading = 0

    def add(self, pairs: Iterable[tuple[Run, Job]], now: int) -> None:
        """Take into the agenda those that wait and are due within the window: what the store has just been given."""
        horizon = now + self._width
        near = [pair for pair in pairs if pair[0].state == RunState.WAITING and pair[0].due_at <= horizon]
        self._agenda.add(near, now)

    def begin(self, monotonic: int) -> Page | None:
        """The page to read now, if it is time to read and nothing is being read; to be given to `read`."""
        overdue = monotonic >= self.next_reading
        half_empty = len(self._agenda) < self._agenda.bound // 2
        if self._reading or not (overdue or (half_empty and self._cursor is not None)):
            return None
        page = Page(self._cursor, min(PAGE, self._agenda.room))
        if overdue:
            self.next_reading = monotonic + self._interval
            if self._cursor is not None:
                page = Page(None, min(HEAD, page.limit))
        if page.limit <= 0:
            return None
        self._picked.clear()
        self._reading = True
        return page

    def picked(self, keys: Iterable[RunKey]) -> None:
        """These were taken out of the agenda to be dispatched."""
        if self._reading:
            self._picked.update(keys)

    async def read(self, page: Page, now: int, current: Callable[[], bool]) -> None:
        """Read what `begin` gave. `current` tells, when it is there, whether the term is still the same."""
        try:
            pairs = await self._store.due(self._shard, now + self._width, page.after, page.limit)
        except DulyError as error:
            log.warning("shard %s: what is due could not be read: %s", self._shard, error)
            self._cursor = None  # from the start, next time
            return
        finally:
            self._reading = False
        if not current():
            return
        picked = self._picked
        self._agenda.add([pair for pair in pairs if pair[0].key not in picked] if picked else pairs, now)
        if page.after == self._cursor:  # it was no look at the head
            last = pairs[-1][0] if len(pairs) == page.limit else None
            self._cursor = None if last is None else (last.due_at, last.job_id, last.scheduled_at)
