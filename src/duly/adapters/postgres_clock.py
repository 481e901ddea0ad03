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
from typing import Final

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


class ShardClock:
    """What one node knows of the clock of one shard."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._low = self._high = 0  # bounds of the server's clock less this node's monotonic one
        self._measured_at: int | None = None
        self._measuring: asyncio.Task[None] | None = None
        self._anchor = 0  # lease time less this node's monotonic clock
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
        return (self._low + self._high) // 2 + self._clock.monotonic()

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
        return self._generation, self._anchor + at, at

    # -- measuring ------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Measure the offset, and take up a step of the server's clock if there was one."""
        for _ in range(TRIES):
            before = self._clock.monotonic()
            [(at, generation, shift)] = await self._pool.read(SQL["clock"], urgent=True)
            after = self._clock.monotonic()
            since = 0 if self._measured_at is None else after - self._measured_at
            self._bound(at - after, at - before, after)
            step = await self._step(at - shift, generation, before, after, since)
            self.shift = shift
            if not step:
                return
            await self._take_up(generation, step)

    async def _take_up(self, generation: int, step: int) -> None:
        """If another node was first, this changes nothing, and the next look sees what that one did."""
        try:
            await self._pool.judge(SQL["move_leases"], lambda: (generation, step))
        except OutcomeUnknown as problem:  # the next look tells
            raise Unavailable(str(problem)) from problem

    def _bound(self, low: int, high: int, at: int) -> None:
        if self._measured_at is not None:
            drift = DRIFT * (at - self._measured_at) // SECOND + 1
            was_low, was_high = self._low - drift, self._high + drift
            if was_low <= high and low <= was_high:  # else it has stepped, and what was known is void
                low, high = max(low, was_low), min(high, was_high)
        self._low, self._high, self._measured_at = low, high, at

    async def _step(self, lease_time: int, generation: int, before: int, after: int, since: int) -> int:
        """By how much the server's clock has stepped and nobody has taken it up; 0 for not at all."""
        anchor = lease_time - (before + after) // 2
        if self._generation < 0:
            # A heartbeat from the future: the clock went back while no node was looking.
            [(latest,)] = await self._pool.read(SQL["latest_beat"], urgent=True)
            if latest is not None and latest > lease_time:
                return lease_time - int(latest)
        if generation != self._generation:
            self._anchor, self._generation = anchor, generation
            return 0
        low, high = lease_time - after - self._anchor, lease_time - before - self._anchor
        if low > STEP or high < -STEP:
            return anchor - self._anchor
        drift = DRIFT * since // SECOND  # small differences are followed, steps that add up are not
        self._anchor += min(max(low, 0), drift) + max(min(high, 0), -drift)
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
        return (generation, expected, self._slack, *self._rest)


def _heard(task: asyncio.Task[None]) -> None:
    """Whoever needs the time asks again; that nobody waited for this failure is no fault."""
    if not task.cancelled():
        task.exception()
