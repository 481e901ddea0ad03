"""The keeper: removes finished runs beyond what their jobs keep, and blobs that nothing refers to any more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from duly.core.errors import DulyError
from duly.core.instants import HOUR, MINUTE, SECOND
from duly.core.steps import ClockSteps
from duly.ports import Blobs, Clock, Store
from duly.roles.loop import Loop

log = logging.getLogger("duly.keeper")

STEP: Final = 1_000  # runs removed in one commit, so that no write waits long behind it
LARGEST_STEP: Final = 8_000  # while passes take longer than the time between them, so that history cannot outgrow them
UNUSED_FOR: Final = HOUR  # an upload may be this much older than the job that will name it


class Keeper(Loop):
    """Retention, in small steps, every `interval` µs; in larger ones while it does not keep up with what ends."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: Blobs,
        clock: Clock,
        interval: int = MINUTE,
        may_tidy: Callable[[], bool] = lambda: True,
    ) -> None:
        """`may_tidy`: whether it is this keeper's turn, where there are several."""
        super().__init__("keeper")
        self._may_tidy = may_tidy
        self._store = store
        self._blobs = blobs
        self._clock = clock
        self._interval = interval
        self._step = STEP
        self._swept: str | None = None
        self._steps = ClockSteps()  # of this machine's clock, which blobs are dated by
        self._dated_from = 0  # monotonic: until then a blob may look older than it is

    async def _up(self) -> None:
        self.spawn(self._work(), "work")

    async def _work(self) -> None:
        self._look()
        while self.state == "started":
            await self._clock.sleep(self._interval)
            if not self._may_tidy():
                continue
            try:
                await self.tidy()
            except DulyError as error:
                log.warning("retention waits: %s", error)

    async def tidy(self, *, unused_for: int = UNUSED_FOR) -> tuple[int, int]:
        """One whole pass; returns (runs removed, blobs removed).

        A blob goes when nothing refers to it and it was not written within `unused_for`: what a prune has just let
        go of at once, and one page of all blobs each pass, so that nothing stays for ever. After a step of the clock,
        which makes new blobs look old, none goes for `unused_for`.
        """
        if self._look() > 0:
            self._dated_from = self._clock.monotonic() + unused_for
        runs = blobs = 0
        more = True
        began = self._clock.monotonic()
        while more and self.state != "stopped":
            pruned = await self._store.prune(self._step)
            runs += pruned.runs
            more = pruned.more
            blobs += await self._delete_unused(pruned.orphans, unused_for)
            if more:
                await self._clock.sleep(SECOND // 100)
        behind = self._clock.monotonic() - began > self._interval
        self._step = min(self._step * 2, LARGEST_STEP) if behind else max(self._step // 2, STEP)
        page = await self._blobs.page(self._swept, STEP, unused_for=unused_for)
        self._swept = page[-1] if len(page) == STEP else None
        blobs += await self._delete_unused(page, unused_for)
        return runs, blobs

    def _look(self) -> int:
        """What the clock was set by since the last look."""
        before = self._clock.monotonic()
        return self._steps.see(before, self._clock.wall(), self._clock.monotonic())

    async def _delete_unused(self, digests: Sequence[str], unused_for: int) -> int:
        if not digests or self._clock.monotonic() < self._dated_from:
            return 0
        used = await self._store.referred(digests)
        return await self._blobs.delete([digest for digest in digests if digest not in used], unused_for=unused_for)
