"""Which slot map is in force over several shards, as far as one process knows (decision 0015).

    no map seen ──a shard keeps one──▶ agreed ──a shard keeps a newer one──▶ agreed
         └──every shard answers, and none keeps one: the first map is proposed──▲

The highest epoch is in force. A shard that is behind is brought up to it by whoever notices.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from duly.core.errors import Overloaded, TimedOut, Unavailable, WrongShard
from duly.core.instants import SECOND
from duly.core.ring import SlotMap
from duly.ports import Clock, Store

log = logging.getLogger("duly.shard")

REFRESH: Final = 10 * SECOND  # between two looks at the slot maps of all shards
SILENT: Final = (Unavailable, TimedOut, Overloaded)  # what counts as no answer where the others' will do


class SlotAgreement:
    """The slot map of some shards. `first` is proposed if they have none. Without a `clock` it is never due again."""

    def __init__(self, stores: Mapping[str, Store], first: SlotMap, clock: Clock | None) -> None:
        self.map = first
        self.reached = False  # True once `map` is one that a shard keeps
        self._stores = stores
        self._clock = clock
        self._due_at = 0

    def is_due(self) -> bool:
        """True once each time that all shards should be looked at."""
        if self._clock is None or self._clock.monotonic() < self._due_at:
            return False
        self._put_off()
        return True

    def _put_off(self) -> None:
        if self._clock is not None:
            self._due_at = self._clock.monotonic() + REFRESH

    async def refresh(self) -> None:
        """Look at the map of every shard that answers, and bring those that are behind up to the newest.

        Raises Unavailable as long as it is not known whether there is a map: before the first one every shard has to
        answer once. Raises WrongShard when two shards keep different maps of one epoch: they were set up differently.
        """
        self._put_off()
        silent = await self._with_all()
        if not self.reached:
            if silent:
                raise Unavailable(f"there is no slot map yet, and not every shard answers: {', '.join(silent)}")
            for shard in sorted(self._stores):  # the first one decides between those who begin at the same time
                await self._propose(shard)
        else:
            await self._with_all()  # those that were asked before the newest map was seen

    async def with_shard(self, shard: str) -> None:
        """The newer of this map and the shard's becomes the map of both."""
        if self.reached:
            await self._propose(shard)
        else:
            self._adopt(shard, await self._stores[shard].slots(shard))

    async def _with_all(self) -> list[str]:
        """Returns the shards that did not answer."""
        answers = await asyncio.gather(*map(self.with_shard, self._stores), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, SILENT):
                raise answer
        return [shard for shard, answer in zip(self._stores, answers, strict=True) if answer is not None]

    async def _propose(self, shard: str) -> None:
        self._adopt(shard, await self._stores[shard].slots(shard, self.map))

    def _adopt(self, shard: str, theirs: SlotMap | None) -> None:
        if theirs is None:
            return
        if not self.reached or theirs.epoch > self.map.epoch:
            if theirs.table != self.map.table:
                log.info("slot map of epoch %d, from shard %s", theirs.epoch, shard)
            self.map = theirs
            self.reached = True
        elif theirs.epoch == self.map.epoch and theirs.table != self.map.table:
            problem = f"shard {shard} keeps another slot map of epoch {theirs.epoch} than the others"
            log.error("%s: were they set up with different shards?", problem)
            raise WrongShard(problem, epoch=theirs.epoch)
