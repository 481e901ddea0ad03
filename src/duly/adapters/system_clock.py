"""The real clock: the only place in duly that reads time or sleeps."""

from __future__ import annotations

import asyncio
import time

from duly.ports import Waitable


class SystemClock:
    """The Clock port over the operating system."""

    def wall(self) -> int:
        """Microseconds UTC; steps when the machine's clock is set."""
        return time.time_ns() // 1_000

    def monotonic(self) -> int:
        """Microseconds since some fixed instant; never steps."""
        return time.monotonic_ns() // 1_000

    async def sleep(self, duration: int) -> None:
        """Wait at least `duration` µs; not at all if it is not positive, but others get their turn."""
        until = self.monotonic() + duration
        await asyncio.sleep(max(0, duration) / 1_000_000)
        # Event loops round their timers, uvloop to whole milliseconds and down: nothing may be early.
        while (left := until - self.monotonic()) > 0:
            await asyncio.sleep(left / 1_000_000)

    async def wait(self, event: Waitable, timeout: int | None) -> bool:
        """Wait for the event at most `timeout` µs (None: as long as it takes); True if it was set."""
        if timeout is None or event.is_set():
            return await event.wait()
        try:
            async with asyncio.timeout(max(0, timeout) / 1_000_000):
                return await event.wait()
        except TimeoutError:
            return event.is_set()
