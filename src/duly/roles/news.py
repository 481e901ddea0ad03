"""News between servicers: those who watch through one of them see what another has committed.

    watched here ──Notice "watching", every 5 s──▶ the others ──News of what they write──▶ here ──▶ event log, waiters

Nobody watches, nothing is sent. News name runs and jobs; what they have become is read from the store, up to `RATE` a
second, so that a flood elsewhere is no flood here; waiters for a run's end are woken in any case. While no broker
carries news, a servicer with followers looks in the store once a second for what has begun and ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from duly.core.errors import DulyError
from duly.core.instants import MILLISECOND, SECOND
from duly.core.messages import NOTICES, News, Notice
from duly.core.model import Job, JobId, Run, RunKey, RunState
from duly.ports import Broker, Clock, RunQuery, Store
from duly.roles.events import EventLog
from duly.roles.loop import Loop

WATCHING: Final = "watching"  # the kind of the notice
SAY_EVERY: Final = 5 * SECOND
HEARD_FOR: Final = 15 * SECOND  # others count as watching so long after they last said so
LINGER: Final = 5 * MILLISECOND
BATCH: Final = 1_000  # keys in one message
WAITING: Final = 20_000  # keys that wait to be told; the newest are dropped beyond
RATE: Final = 2_000  # runs read a second for news
LOOK: Final = SECOND
LOOKED_AT: Final = 500  # newest runs that a look at the store sees
ACTIVE: Final = 4_096  # of a shard, whose ends a look notices

log = logging.getLogger("duly.news")


class NewsDesk(Loop):
    """A servicer's ear and mouth for what others, and it, have written. `origin` is its event log's epoch."""

    def __init__(self, *, store: Store, broker: Broker, clock: Clock, events: EventLog, origin: str) -> None:
        super().__init__("news")
        self._store = store
        self._broker = broker
        self._clock = clock
        self._events = events
        self._origin = origin
        self._others_until = -1  # by the monotonic clock: others watch
        self._to_tell: list[News] = []
        self._waiting = 0
        self._telling = asyncio.Event()
        self._allowance = RATE
        self._allowed_at = 0
        self._looked_from: int | None = None
        self._active: dict[RunKey, RunState] = {}

    async def _up(self) -> None:
        self._events.told = self.tell
        self.spawn(self._say(), "watching")
        self.spawn(self._send(), "telling")

    async def _down(self) -> None:
        self._events.told = None

    # -- telling --------------------------------------------------------------------------------------------

    def tell(self, kind: str, at: int, runs: Sequence[RunKey], jobs: Sequence[JobId]) -> None:
        """This servicer has written something. Cheap while nobody watches elsewhere."""
        if self._clock.monotonic() > self._others_until or self._waiting > WAITING:
            return
        self._to_tell.append(News(origin=self._origin, kind=kind, at=at, runs=tuple(runs), jobs=tuple(jobs)))
        self._waiting += len(runs) + len(jobs)
        self._telling.set()

    async def _send(self) -> None:
        while True:
            await self._telling.wait()
            await self._clock.sleep(LINGER)
            self._telling.clear()
            told, self._to_tell, self._waiting = self._to_tell, [], 0
            for news in _joined(told):
                await self._broker.publish(NOTICES, news)

    async def _say(self) -> None:
        """Ask for news while somebody watches here; without a broker, look for it."""
        while True:
            await self._events.wanted.wait()
            said: int | None = None
            while self._events.watched:
                now = self._clock.monotonic()
                if said is None or now - said >= SAY_EVERY:
                    said = now
                    notice = Notice(kind=WATCHING, data={"origin": msgspec.Raw(msgspec.json.encode(self._origin))})
                    await self._broker.publish(NOTICES, notice)
                if self._broker.connected or not self._events.followers:
                    self._looked_from = None
                else:
                    await self._look_in_the_store()
                await self._clock.sleep(LOOK)
            self._events.wanted.clear()
            self._looked_from = None

    # -- hearing --------------------------------------------------------------------------------------------

    def heard_watching(self, notice: Notice) -> None:
        """Another servicer is watched."""
        try:
            origin = msgspec.json.decode(notice.data.get("origin", b"null"), type=str)
        except msgspec.DecodeError:
            return
        if origin != self._origin:
            self._others_until = self._clock.monotonic() + HEARD_FOR

    async def heard(self, news: News) -> None:
        """Another servicer has written something."""
        if news.origin == self._origin:
            return
        if news.kind == "run.finished":
            self._events.wake(news.runs)
        if not self._events.followers:
            return
        keys = news.runs[: self._allowed(len(news.runs))]
        if keys:
            pairs = [pair for pair in await self._store.load(keys) if pair is not None]
            self._events.heard_runs(news.kind, pairs, news.at)
        ids = news.jobs[: self._allowed(len(news.jobs))]
        if ids:
            rows = [row for row in await self._store.get(ids) if row is not None]
            self._events.heard_jobs(news.kind, [row.job for row in rows], news.at)

    def _allowed(self, wanted: int) -> int:
        now = self._clock.monotonic()
        self._allowance = min(RATE, self._allowance + RATE * (now - self._allowed_at) // SECOND)
        self._allowed_at = now
        granted = min(wanted, self._allowance)
        self._allowance -= granted
        return granted

    # -- looking --------------------------------------------------------------------------------------------

    async def _look_in_the_store(self) -> None:
        """What has begun or ended since the last look: of the newest runs, and of those that were out then."""
        try:
            now = await self._store.now()
            page = await self._store.page_runs(RunQuery(limit=LOOKED_AT))
            active: dict[RunKey, tuple[Run, Job]] = {}
            for shard in self._store.shards:
                active |= {pair[0].key: pair for pair in await self._store.active(shard, None, ACTIVE)}
            since, self._looked_from = self._looked_from, now
            before, self._active = self._active, {key: pair[0].state for key, pair in active.items()}
            if since is None:
                return  # what there is at the first look is no news
            changed = {run.key for run in page.items if since <= (run.finished_at or 0) < now}
            changed |= before.keys() - active.keys()
            ended = [pair for pair in await self._store.load(sorted(changed)) if pair and pair[0].state.terminal]
        except DulyError as error:
            log.info("the store did not tell what is new: %s", error)
            return
        began = [
            pair
            for key, pair in active.items()
            if pair[0].state == RunState.RUNNING and before.get(key) != RunState.RUNNING
        ]
        self._events.heard_runs("run.started", began, now)
        self._events.heard_runs("run.finished", ended, now)


def _joined(told: Sequence[News]) -> list[News]:
    """The same news in fewer messages, in order, none with more than BATCH keys."""
    joined: list[News] = []
    for news in told:
        last = joined[-1] if joined else None
        if last is not None and last.kind == news.kind and len(last.runs) + len(news.runs) <= BATCH and not news.jobs:
            joined[-1] = msgspec.structs.replace(last, runs=last.runs + news.runs, at=news.at)
            continue
        for start in range(0, max(len(news.runs), len(news.jobs)), BATCH):
            end = start + BATCH
            joined.append(msgspec.structs.replace(news, runs=news.runs[start:end], jobs=news.jobs[start:end]))
    return joined
