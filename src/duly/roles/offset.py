"""How a shard's clock stands to this machine's CLOCK_MONOTONIC, from beats and their answers.

A beat sent at t0 and answered at t1 with the shard's `now` says: shard − monotonic lies in [now − t1, now − t0].
Recent intervals overlap, and what they share is narrower than any of them (Marzullo's algorithm); an older one is
widened by what clocks may drift. An interval that shares nothing with the rest means that a clock has stepped:
what was known before is forgotten.
"""

from __future__ import annotations

from collections import deque
from typing import Final

SAMPLES: Final = 16
DRIFT: Final = 20e-6  # µs per µs: disciplined clocks keep well within
STEP: Final = 100_000  # µs that the shard's clock must be ahead of the estimate to have been set forward
SLOW: Final = 1_000_000  # µs that a message would have taken, from which on it is likelier that it was set back
EARLY_GUARD: Final = 200  # µs by which the estimate may lean to the late side of the middle


class Offset:
    """An estimate of shard time minus CLOCK_MONOTONIC, in µs."""

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
        # The low end can never start a run early; the middle is likeliest. Lean to the low end, a little.
        self.value = max(low, (low + high) // 2 - EARLY_GUARD)

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
