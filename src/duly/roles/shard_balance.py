"""Scheduler processes share the shards among themselves: whoever leads more than its share hands the surplus over.

    each process ── Standing, every second ──▶ all of them
    gives:   settles what it dispatches ─▶ releases the term ─▶ Standing names the taker, who holds it at once
    dies:    its terms run out, and those who lead fewer ask for them oftener than those who lead more
    leaves:  its terms are released, its last Standing says so, and all ask at once

What a Standing says decides nothing: a term is had from the shard alone. Without a broker nobody hands over, and free
shards are taken all the same. A process is given shards only once it has been heard for `SETTLED`, and one hand-over
at a time, so that one that comes and goes moves nothing (decision 0016).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from duly.core.balance import next_hand_over
from duly.core.errors import DulyError
from duly.core.instants import SECOND
from duly.core.messages import SCHEDULERS, AnyMessage, Standing
from duly.ports import Broker, Clock, Subscription
from duly.roles.loop import Loop
from duly.roles.scheduler import Scheduler

log = logging.getLogger("duly.scheduler")

BEAT: Final = SECOND
SILENT_AFTER: Final = 3 * SECOND  # who is not heard for so long does not count
SETTLED: Final = 3 * SECOND  # who is heard for so long may be given shards
BETWEEN: Final = 2 * SECOND  # hand-overs of one process: at most thirty a minute
REST: Final = 2 * SECOND  # a shard that was handed over is the others' for so long
MOST: Final = 1_000  # processes that are kept in mind


class _Other(msgspec.Struct):
    """A process as it was last heard. `first` and `last`: when, by this process's monotonic clock."""

    leads: tuple[str, ...]
    first: int
    last: int


class ShardBalance(Loop):
    """One process's part in it. `name` is the owner of its schedulers, one for each shard."""

    def __init__(self, *, name: str, schedulers: Sequence[Scheduler], broker: Broker, clock: Clock) -> None:
        super().__init__("shard balance")
        self.owner = name
        self.handed_over = 0  # shards, so far
        self._schedulers = {scheduler.shard: scheduler for scheduler in schedulers}
        self._broker = broker
        self._clock = clock
        self._others: dict[str, _Other] = {}
        self._next_hand_over = 0
        self._subscription: Subscription | None = None

    @property
    def first(self) -> bool:
        """True in one process of those that lead shards, as far as they hear each other: for what one should do."""
        mine = self._leads()
        return bool(mine) and all(self.owner < name for name, leads in self._standings().items() if leads)

    async def _up(self) -> None:
        self._subscription = await self._broker.subscribe(SCHEDULERS, self._heard)
        self.spawn(self._work(), "work")

    async def _drain(self) -> None:
        """Hand every term over, and say so."""
        await asyncio.gather(*(scheduler.drain() for scheduler in self._schedulers.values()))
        await self._tell(leaving=True)

    async def _down(self) -> None:
        if self._subscription is not None:
            await self._subscription.stop()
            self._subscription = None

    # -- what others tell -----------------------------------------------------------------------------------

    async def _heard(self, message: AnyMessage) -> None:
        if not isinstance(message, Standing) or message.process == self.owner:
            return
        now = self._clock.monotonic()
        if message.leaving:
            self._others.pop(message.process, None)
            for scheduler in self._schedulers.values():
                scheduler.hurry()
            return
        other = self._others.get(message.process)
        if other is not None and now - other.last <= SILENT_AFTER:
            other.leads, other.last = message.leads, now
        elif other is not None or len(self._others) < MOST:
            self._others[message.process] = _Other(message.leads, now, now)
        given = self._schedulers.get(message.given)
        if given is not None and message.taker == self.owner:
            given.hurry()

    def _leads(self) -> tuple[str, ...]:
        return tuple(sorted(shard for shard, scheduler in self._schedulers.items() if scheduler.leading))

    def _standings(self) -> dict[str, tuple[str, ...]]:
        """What the others lead, of those that are heard."""
        oldest = self._clock.monotonic() - SILENT_AFTER
        return {name: other.leads for name, other in self._others.items() if other.last >= oldest}

    # -- what this one does ---------------------------------------------------------------------------------

    async def _work(self) -> None:
        while self.state == "started":
            await self._tell()
            self._weigh()
            await self._even_out()
            await self._clock.sleep(BEAT)

    async def _tell(self, *, given: str = "", taker: str = "", leaving: bool = False) -> None:
        """Publish where this process stands; lost, it is told again at the next beat."""
        standing = Standing(process=self.owner, leads=self._leads(), given=given, taker=taker, leaving=leaving)
        try:
            await self._broker.publish(SCHEDULERS, standing)
        except DulyError as error:
            log.debug("the other schedulers were not told: %s", error)

    def _weigh(self) -> None:
        """Forget the silent; who leads more than others waits longer before asking for a free shard."""
        oldest = self._clock.monotonic() - SILENT_AFTER
        self._others = {name: other for name, other in self._others.items() if other.last >= oldest}
        fewest = min((len(other.leads) for other in self._others.values()), default=len(self._leads()))
        for scheduler in self._schedulers.values():
            scheduler.reluctance = max(0, len(self._leads()) - fewest)

    async def _even_out(self) -> None:
        """Hand over one shard, if it is this process's turn."""
        now = self._clock.monotonic()
        settled = [name for name, other in self._others.items() if other.last - other.first >= SETTLED]
        move = next_hand_over({**self._standings(), self.owner: self._leads()}, settled)
        if move is None or move.giver != self.owner or now < self._next_hand_over:
            return
        self._next_hand_over = now + BETWEEN
        log.info("shard %s: handed over to %s", move.shard, move.taker)
        await self._schedulers[move.shard].hand_over(REST)
        self.handed_over += 1
        await self._tell(given=move.shard, taker=move.taker)
