"""How a shard's clock stands to this machine's CLOCK_MONOTONIC, from beats and their answers.

A beat sent at t0 and answered at t1 with the shard's `now` says: shard − monotonic lies in [now − t1, now − t0].
Recent intervals overlap, and what they share is narrower than any of them (Marzullo's algorithm); an older one is
widened by what clocks may drift. An interval that shares nothing with the rest means that a clock has stepped:
what was known before is forgotten.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from duly.ports import Clock

SAMPLES: Final = 16
DRIFT: Final = 20e-6  # µs per µs: disciplined clocks keep well within
STEP: Final = 100_000  # µs that the shard's clock must be ahead of the estimate to have been set forward
SLOW: Final = 1_000_000  # µs that a message would have taken, from which on it is likelier that it was set back


class Offset:
    """An estimate of shard time minus CLOCK_MONOTONIC, in µs: the most that it is known not to be below."""

    def __init__(self) -> None:
        self.value: int | None = None
        self.width: int = 0  # how wide the interval is that the truth lies in
        self._samples: deque[tuple[int, int, int]] = deque(maxlen=SAMPLES)  # (at, low, high)

    def add(self, sent: int, received: int, now: int) -> None:
        """Take in one answer: sent and received by CLOCK_MONOTONIC, `now` by the shard."""
        self._samples.append((received, now - received, now - sent))
        low, high = self._shared(received)
        if low > high:
            newest = self._samples[-1]
            self._samples.clear()
            self._samples.append(newest)
            low, high = newest[1], newest[2]
        self.width = high - low
        self.value = low  # the truth is not below, so that nothing starts early

    def hear(self, received: int, now: int) -> None:
        """A message that left the shard at `now` has arrived: the offset is now − received or more.

        If that is well above the estimate, the clock was set forward. If it is far below, it was set back, or the
        message was slow: either way nothing starts early by the low end, which stands until the next beat.
        """
        if self.value is None:
            return
        low = now - received
        if low > self.value + self.width + STEP or low < self.value - SLOW:
            self._samples.clear()
            self.value = low
            self.width = SLOW

    def _shared(self, at: int) -> tuple[int, int]:
        lows, highs = [], []
        for when, low, high in self._samples:
            slack = int((at - when) * DRIFT)
            lows.append(low - slack)
            highs.append(high + slack)
        return max(lows), min(highs)


class OwnClock(Offset):
    """For a worker that lives where the shard does: their clock is one, so the offset is read off, not estimated."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._read()

    def _read(self) -> None:
        """The wall first, the monotonic clock after it: each difference is at most the truth: take the largest."""
        self.value = max(self._clock.wall() - self._clock.monotonic() for _ in range(3))

    def add(self, sent: int, received: int, now: int) -> None:
        """As it stands at this moment."""
        self._read()

    def hear(self, received: int, now: int) -> None:
        """As it stands at this moment: a step is seen at once."""
        self._read()
