"""The clock of a PostgreSQL shard, which is its server's, and leases that its steps do not move (decision 0014).

    now         the server's clock, told by this node's monotonic clock and the offset between the two, measured at
                least once a second. Each measurement bounds the offset by its round trip; the bounds are intersected,
                so that the shortest round trips count.
    lease time  the server's clock less `lease_clock.shift`. Leases and terms are written and judged in it, by the
                server. When the server's clock steps, `shift` takes up the step: one row, and no lease has moved.

A step is noticed by comparing with CLOCK_MONOTONIC of the nodes. Every call that judges or writes a lease says what
lease time its node expects; where the server's is another, by more than a tenth of a second, nothing is judged, the
node looks again and moves `shift` if it was a step. `generation` counts the moves, so that of several nodes that see
one step one moves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from duly.adapters.postgres_pool import LookAgain, Pool, Row
from duly.adapters.sql import statements
from duly.core.errors import OutcomeUnknown, Unavailable
from duly.core.instants import SECOND
from duly.ports import Clock

SQL: Final = statements("postgres")
FRESH: Final = SECOND  # µs that a measured offset is good for; it is measured again, in the background, at half of it
DRIFT: Final = 500  # µs a second by which two clocks that nobody sets may part
STEP: Final = SECOND // 10  # µs by which they must part for it to count as a step
MAX_SLACK: Final = 2 * SECOND  # µs of slow round trips that a lease is still judged by
TRIES: Final = 6


class Bounds(NamedTuple):
    """Where a difference of two clocks lies, as far as a round trip tells."""

    low: int
    high: int

    @property
    def middle(self) -> int:
        """The best guess."""
        return (self.low + self.high) // 2

    def widened(self, by: int) -> Bounds:
        """As time has passed."""
        return Bounds(self.low - by, self.high + by)

    def overlap(self, other: Bounds) -> Bounds | None:
        """What both say, None if they contradict each other."""
        low, high = max(self.low, other.low), min(self.high, other.high)
        return Bounds(low, high) if low <= high else None


class _Sample(NamedTuple):
    anchor: Bounds  # where lease time less this node's monotonic clock lies
    lease_time: int
    generation: int
    shift: int
    drift: int  # by which the clocks may have parted since the sample before


class ShardClock:
    """What one node knows of the clock of one shard."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._offset = Bounds(0, 0)  # of the server's clock less this node's monotonic one
        self._measured_at: int | None = None
        self._measuring: asyncio.Task[None] | None = None
        self._anchor = Bounds(0, 0)  # of lease time less this node's monotonic clock
        self._generation = -1
        self.shift = 0  # the server's clock less lease time

    async def now(self) -> int:
        """The shard's clock. A step is told within a second."""
        measured = self._measured_at
        age = FRESH if measured is None else self._clock.monotonic() - measured
        if age >= FRESH // 2:
            measuring = self._measure()
            if age >= FRESH:
                await asyncio.shield(measuring)
        return self._offset.middle + self._clock.monotonic()

    def _measure(self) -> asyncio.Task[None]:
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.get_running_loop().create_task(self._look())
            self._measuring.add_done_callback(_heard)
        return self._measuring

    async def judge(self, sql: str, *args: object) -> list[Row]:
        """Call a function that judges or writes leases: its first arguments are what this node expects.

        Raises Unavailable if the clocks cannot be brought together within a few tries.
        """
        if self._generation < 0:
            await asyncio.shield(self._measure())
        slack = STEP
        for _ in range(TRIES):
            expecting = _Expecting(self, slack, args)
            try:
                return await self._pool.judge(sql, expecting.args)
            except LookAgain:
                slack = min(MAX_SLACK, max(slack, STEP + 2 * (self._clock.monotonic() - expecting.at)))
                await asyncio.shield(self._measure())
        raise Unavailable("the shard's clock cannot be told: it answers too slowly, or is set again and again")

    def expectation(self) -> tuple[int, int, int]:
        """(generation, lease time, this node's monotonic clock) as this node believes they are now."""
        at = self._clock.monotonic()
        return self._generation, self._anchor.middle + at, at

    @property
    def uncertainty(self) -> int:
        """µs by which the lease time that is expected may be wrong."""
        return (self._anchor.high - self._anchor.low) // 2

    # -- measuring ------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Measure the offset, and take up a step of the server's clock if there was one."""
        if self._measured_at is None:
            await self._sample()  # over a connection that is new: the next one is faster
        for _ in range(TRIES):
            sample = await self._sample()
            step = await self._step(sample)
            self.shift = sample.shift
            if not step:
                return
            await self._take_up(sample.generation, step)

    async def _sample(self) -> _Sample:
        """Ask the server for its clock once, and learn from it where the offset lies."""
        before = self._clock.monotonic()

        def asking() -> Sequence[object]:
            nonlocal before
            before = self._clock.monotonic()  # once there is a connection
            return ()

        [(at, generation, shift)] = await self._pool.judge(SQL["clock"], asking, writes=False)
        after = self._clock.monotonic()
        drift = 0 if self._measured_at is None else DRIFT * (after - self._measured_at) // SECOND + 1
        offset = Bounds(at - after, at - before)
        known = None if self._measured_at is None else self._offset.widened(drift).overlap(offset)
        self._offset, self._measured_at = known or offset, after  # if it has stepped, what was known is void
        return _Sample(Bounds(offset.low - shift, offset.high - shift), at - shift, generation, shift, drift)

    async def _take_up(self, generation: int, step: int) -> None:
        """If another node was first, this changes nothing, and the next look sees what that one did."""
        try:
            await self._pool.judge(SQL["move_leases"], lambda: (generation, step))
        except OutcomeUnknown as problem:  # the next look tells
            raise Unavailable(str(problem)) from problem

    async def _step(self, sample: _Sample) -> int:
        """By how much the server's clock has stepped and nobody has taken it up; 0 for not at all."""
        anchor, lease_time, generation, _, drift = sample
        if self._generation < 0:
            # A heartbeat from the future: the clock went back while no node was looking.
            [(latest,)] = await self._pool.read(SQL["latest_beat"], urgent=True)
            if latest is not None and latest > lease_time:
                return lease_time - int(latest)
        if generation != self._generation:
            self._anchor, self._generation = anchor, generation
            return 0
        overlap = self._anchor.widened(drift).overlap(anchor)
        if overlap is not None:
            self._anchor = overlap
            return 0
        apart = max(anchor.low - self._anchor.high, self._anchor.low - anchor.high)
        if apart > STEP:
            return anchor.middle - self._anchor.middle
        # Small steps add up; they are followed no faster than a drift would be.
        by = min(apart, drift) if anchor.low > self._anchor.high else -min(apart, drift)
        self._anchor = Bounds(self._anchor.low + by, self._anchor.high + by)
        return 0

    async def close(self) -> None:
        """Let a measurement that is under way come to its end."""
        if self._measuring is not None:
            await asyncio.wait([self._measuring])


class _Expecting:
    """The arguments of a function that judges leases; made, and dated, once there is a connection."""

    def __init__(self, clock: ShardClock, slack: int, rest: Sequence[object]) -> None:
        self._clock = clock
        self._slack = slack
        self._rest = rest
        self.at = clock.expectation()[2]

    def args(self) -> Sequence[object]:
        generation, expected, self.at = self._clock.expectation()
        return (generation, expected, self._slack + self._clock.uncertainty, *self._rest)


def _heard(task: asyncio.Task[None]) -> None:
    """Whoever needs the time asks again; that nobody waited for this failure is no fault."""
    if not task.cancelled():
        task.exception()
