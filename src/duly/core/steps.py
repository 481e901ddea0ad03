"""Notices that a clock was set, by a clock that never is; remembers which instants it jumped over. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

TOLERANCE: Final = 100_000  # µs that two readings may disagree by before it counts as a step
REMEMBERED: Final = 8  # jumps


class ClockSteps:
    """A shard's clock against CLOCK_MONOTONIC, both in µs.

    The shard's `now` was read somewhere between two readings of the monotonic clock, so that their difference lies
    in an interval; an interval apart from the one before it is a step. A slow answer is a wide one, not a step.
    """

    def __init__(self) -> None:
        self._seen: tuple[int, int] | None = None
        self._now = 0
        self._jumps: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)

    def see(self, before: int, now: int, after: int) -> int:
        """Take in a reading; returns what the clock was set by since the last, 0 if it was not."""
        low, high = now - after, now - before
        step = 0
        if self._seen is not None:
            was_low, was_high = self._seen
            if low > was_high + TOLERANCE:
                step = low - was_high
                self._jumps.append((self._now, now))
            elif high < was_low - TOLERANCE:
                step = high - was_low
        self._seen = (low, high)
        self._now = now
        return step

    def jumped_over(self, instant: int) -> bool:
        """True if the clock never showed this instant, or was set within a look of it."""
        return bool(self._jumps) and any(start < instant <= end for start, end in self._jumps)
