"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from typing import Any

from anyio.lowlevel import checkpoint

from duly.ports import Waitable

MOST_TURNS = 100_000
START = 1_800_000_000_000_000  # 2027-01-15T08:00:00Z


class ManualClock:
    """The Clock port, moved by hand: `advance` wakes sleepers in the order of their times.

    `skew` sets the wall clock apart from the monotonic one, as an operator or NTP does.
    """

    def __init__(self, start: int = START) -> None:
        self.skew = start
        self._monotonic = 0
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def wall(self) -> int:
        return self._monotonic + self.skew

    def monotonic(self) -> int:
        return self._monotonic

    async def sleep(self, duration: int) -> None:
        if duration <= 0:
            await checkpoint()
        else:
            await self._timer(duration)

    def _timer(self, duration: int) -> asyncio.Future[None]:
        """A future that is done once so much time has passed."""
        timer = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + max(0, duration), next(self._order), timer))
        return timer

    async def wait(self, event: Waitable, timeout: int | None) -> bool:
        if timeout is None or event.is_set():
            return await event.wait()
        timer = self._timer(timeout)
        waiting = asyncio.ensure_future(event.wait())
        ends: set[asyncio.Future[Any]] = {timer, waiting}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
        return event.is_set()

    @property
    def next_wake(self) -> int | None:
        """When the next sleeper wakes, by the monotonic clock; None if all are awake."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    async def advance(self, duration: int) -> None:
        """Move time on by `duration` µs, stopping at each sleeper's time to let it run until it waits again."""
        until = self._monotonic + duration
        await settle()
        while (wake := self.next_wake) is not None and wake <= until:
            _, _, woken = heapq.heappop(self._sleepers)
            self._monotonic = max(self._monotonic, wake)
            woken.set_result(None)
            await settle()
        self._monotonic = until
        await settle()


async def settle() -> None:
    """Let everything run that can run without time passing (and without other threads): until the loop is idle."""
    ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined] # asyncio has no public way to ask
    for _ in range(MOST_TURNS):
        await checkpoint()
        if not ready:
            return
    raise AssertionError("something runs without end and without waiting for time")
