"""Leadership of one shard: its term is taken, renewed, trusted, and given up.

    standing by ──hold granted──▶ leading ──renewed at a third of the ttl──▶ leading
       ▲                            │ fenced, not renewed in time, or released
       └────────────────────────────┘

The fence is what makes it safe: the store refuses what is written under an older one. Trust in the term ends `MARGIN`
before the lease does, by this node's monotonic clock, which may only make it stop sooner.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from duly.core.errors import DulyError, Fenced
from duly.core.instants import MILLISECOND
from duly.core.machine import Transition
from duly.core.model import Term
from duly.ports import Clock, Store
from duly.telemetry import Telemetry

log = logging.getLogger("duly.scheduler")

MARGIN: Final = 500 * MILLISECOND  # trust ends this long before the term does


class Leadership:
    """One scheduler's of one shard. `ttl` in µs; `next_renewal` is by the monotonic clock.

    `began` is awaited with each new term, before it counts as held: if it fails, the term is given up again.
    `ended` is called whenever a term is given up, and may be called when none was held.
    """

    def __init__(
        self,
        *,
        shard: str,
        owner: str,
        store: Store,
        clock: Clock,
        telemetry: Telemetry,
        ttl: int,
        began: Callable[[], Awaitable[None]],
        ended: Callable[[], None],
    ) -> None:
        self.term: Term | None = None
        self.next_renewal = 0
        self._shard = shard
        self._owner = owner
        self._store = store
        self._clock = clock
        self._telemetry = telemetry
        self._ttl = ttl
        self._began = began
        self._ended = ended
        self._trusted_until = 0
        self._in_doubt = False  # a write under the present fence may still be on its way

    @property
    def trusted(self) -> bool:
        """True while the term is held and trusted."""
        return self.term is not None and self._clock.monotonic() < self._trusted_until

    def is_under(self, fence: int | None) -> bool:
        """True while the term is the one with this fence."""
        return self.term is not None and self.term.fence == fence

    async def hold(self) -> bool:
        """Take or renew the term when it is time; True while it is held and trusted."""
        asked_at = self._clock.monotonic()
        if self.term is not None and asked_at < self.next_renewal:
            return True
        if self.term is not None and asked_at >= self._trusted_until:
            self.step_down("not renewed in time")
        if self._in_doubt:
            await self._store.hold(self._shard, self._owner, 0, release=True)  # the next fence refuses what comes late
            self._in_doubt = False
        term = await self._store.hold(self._shard, self._owner, self._ttl)
        if term.owner != self._owner:
            self.step_down(f"held by {term.owner}")
            return False
        self._trusted_until = asked_at + self._ttl - MARGIN
        self.next_renewal = asked_at + self._ttl // 3
        if not self.is_under(term.fence) and not await self._begin(term):
            return False
        self.term = term
        return self.trusted

    async def _begin(self, term: Term) -> bool:
        """A new term; False if it was given up again at once."""
        self.term = term
        log.info("shard %s: leading as %s, fence %d", self._shard, self._owner, term.fence)
        self._telemetry.fence(self._shard, term.fence)
        try:
            await self._began()
        except BaseException:  # whoever leads without knowing what is out lets runs overlap
            self.step_down("taking over failed")
            raise
        if self._in_doubt:  # a write of before, which had to end first
            self.step_down("what became of a dispatch is unknown")
            return False
        return True

    async def apply(self, transitions: Sequence[Transition]) -> list[int]:
        """Commit under the fence; returns the indexes of what lost.

        Raises Fenced if the term is not held and trusted any more, and what the store's `apply` raises.
        """
        if not transitions:
            return []
        if self.term is None or not self.trusted:
            raise Fenced("the term ran out before the commit")
        try:
            return await self._store.apply(transitions, shard=self._shard, fence=self.term.fence)
        except Fenced:
            self.step_down("fenced")
            raise

    def doubt(self) -> None:
        """What became of a write is unknown: the term is given up, and taking over again reads what is out."""
        self._in_doubt = True
        self.step_down("what became of a dispatch is unknown")

    def step_down(self, why: str) -> None:
        """Lead no more, without a word to the store."""
        if self.term is not None:
            log.info("shard %s: no longer leading: %s", self._shard, why)
            self._telemetry.fence(self._shard, 0)
        self.term = None
        self._ended()

    async def release(self, why: str) -> None:
        """Step down and say so, so that another need not wait for the term to run out."""
        if self.term is None:
            return
        self.step_down(why)
        try:
            await self._store.hold(self._shard, self._owner, 0, release=True)
        except DulyError as error:
            log.warning("shard %s: the term was not released, it will run out: %s", self._shard, error)
