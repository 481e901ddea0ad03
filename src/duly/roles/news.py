"""News from others: those who watch through a servicer see what other servicers and the schedulers have committed.

    watched here ──Notice "watching", every 5 s──▶ their heralds ──News of what they write─▶ here ─▶ event log, waiters

Nobody watches, nothing is sent. News name runs and jobs; what they have become is read from the store, up to `RATE` a
second, so that a flood elsewhere is no flood here: a gap is told instead. Waiters for a run's end are woken anyway.
While no broker carries news, a servicer with followers looks in the store once a second for what has begun and ended.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec

from duly.core.errors import DulyError
from duly.core.instants import SECOND
from duly.core.messages import NOTICES, News, Notice
from duly.core.model import Job, Run, RunKey, RunState
from duly.ports import Broker, Clock, RunQuery, Store
from duly.roles.events import EventLog
from duly.roles.herald import ASKING, WATCHING, Herald
from duly.roles.loop import Loop

SAY_EVERY: Final = 5 * SECOND
RATE: Final = 2_000  # runs read a second for news
LOOK: Final = SECOND
LOOKED_AT: Final = 500  # newest ended runs that a look at the store sees
ENDED: Final = tuple(state for state in RunState if state.terminal)
ACTIVE: Final = 4_096  # of a shard, whose ends a look notices

log = logging.getLogger("duly.news")


class NewsDesk(Loop):
    """A servicer's ear for what others have written, and its herald. `origin` is its event log's epoch."""

    def __init__(self, *, store: Store, broker: Broker, clock: Clock, events: EventLog, origin: str) -> None:
        super().__init__("news")
        self._store = store
        self._broker = broker
        self._clock = clock
        self._events = events
        self._origin = origin
        self.herald = Herald(broker=broker, clock=clock, origin=origin)
        self._asked = asyncio.Event()
        self._allowance = RATE
        self._allowed_at = 0
        self._looked_from: int | None = None
        self._active: dict[RunKey, RunState] = {}

    async def _up(self) -> None:
        await self.herald.start()
        self._events.told = self.herald.tell
        self.spawn(self._say(), "watching")

    async def _down(self) -> None:
        self._events.told = None
        await self.herald.stop()

    # -- asking ---------------------------------------------------------------------------------------------

    async def _say(self) -> None:
        """Ask for news while somebody watches here; without a broker, look for it."""
        while True:
            await self._events.wanted.wait()
            said: int | None = None
            self._asked.clear()
            while self._events.watched:
                now = self._clock.monotonic()
                if said is None or self._asked.is_set() or now - said >= SAY_EVERY:
                    said = now
                    self._asked.clear()
                    notice = Notice(kind=WATCHING, data={"origin": msgspec.Raw(msgspec.json.encode(self._origin))})
                    await self._broker.publish(NOTICES, notice)
                if self._broker.connected or not self._events.followers:
                    self._looked_from = None
                else:
                    await self._look_in_the_store()
                await self._clock.wait(self._asked, LOOK)
            self._events.wanted.clear()
            self._looked_from = None

    # -- hearing --------------------------------------------------------------------------------------------

    async def hear(self, message: Notice) -> None:
        """Another process has begun, and asks who watches; or another servicer is watched."""
        if message.kind == ASKING:
            self._asked.set()
        else:
            await self.herald.hear(message)

    async def heard(self, news: News) -> None:
        """Another servicer has written something."""
        if news.origin == self._origin:
            return
        if news.kind == "run.finished":
            self._events.wake(news.runs)
        if not self._events.followers:
            return
        lost = news.lost
        keys = news.runs[: self._allowed(len(news.runs))]
        lost += len(news.runs) - len(keys)
        if keys:
            pairs = [pair for pair in await self._store.load(keys) if pair is not None]
            self._events.heard_runs(news.kind, pairs, news.at)
        ids = news.jobs[: self._allowed(len(news.jobs))]
        lost += len(news.jobs) - len(ids)
        if ids:
            rows = [row for row in await self._store.get(ids) if row is not None]
            self._events.heard_jobs(news.kind, [row.job for row in rows], news.at)
        if lost:
            self._events.skipped(lost)

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
            page = await self._store.page_runs(RunQuery(states=ENDED, limit=LOOKED_AT))
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
        told = self._events.told_since(since - 2 * LOOK)  # by this servicer itself, or by the broker before it went
        self._events.heard_runs(
            "run.started", [pair for pair in began if ("run.started", pair[0].key) not in told], now
        )
        self._events.heard_runs(
            "run.finished", [pair for pair in ended if ("run.finished", pair[0].key) not in told], now
        )
