"""Scheduler processes over the same shards: who leads what, when one joins, dies, leaves or cannot be heard."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from duly.adapters.local_broker import LocalBroker
from duly.adapters.sharded_store import ShardedStore
from duly.adapters.sqlite_store import SqliteStore
from duly.core.errors import Unavailable
from duly.core.instants import MILLISECOND, SECOND
from duly.core.messages import SCHEDULERS, AnyMessage, Standing
from duly.core.ring import map_slots
from duly.roles.scheduler import Scheduler, SchedulerSettings
from duly.roles.shard_balance import BETWEEN, SETTLED, SILENT_AFTER, ShardBalance
from duly.telemetry import Telemetry
from duly.testing import ManualClock

SHARDS = tuple(f"s{number}" for number in range(6))
TERM = SchedulerSettings().term_ttl


class Line:
    """A process's connection to the broker, which can be cut."""

    def __init__(self, broker: LocalBroker) -> None:
        self.broker = broker
        self.cut = False

    async def publish(self, subject: str, message: AnyMessage) -> None:
        if self.cut:
            raise Unavailable("cut")
        await self.broker.publish(subject, message)

    async def subscribe(self, subject: str, handler: Any, *, group: str | None = None) -> Any:
        async def heard(message: AnyMessage) -> AnyMessage | None:
            return None if self.cut else await handler(message)

        return await self.broker.subscribe(subject, heard, group=group)

    async def request(self, subject: str, message: AnyMessage, *, timeout: int) -> AnyMessage:
        raise Unavailable("nobody")

    async def close(self) -> None:
        """Nothing of its own."""


class Process:
    """A scheduler process."""

    def __init__(self, name: str, room: Room) -> None:
        self.name = name
        self.line = Line(room.broker)
        self.schedulers = [
            Scheduler(
                shard=shard,
                owner=name,
                store=room.store,
                broker=self.line,
                clock=room.clock,
                telemetry=Telemetry(),
                dice=lambda: 0.5,
            )
            for shard in SHARDS
        ]
        self.balance = ShardBalance(name=name, schedulers=self.schedulers, broker=self.line, clock=room.clock)

    @property
    def leads(self) -> list[str]:
        """The shards whose terms it holds and trusts."""
        return [scheduler.shard for scheduler in self.schedulers if scheduler.leading]

    async def start(self) -> None:
        """Stand by, and share."""
        for scheduler in self.schedulers:
            await scheduler.start()
        await self.balance.start()

    async def die(self) -> None:
        """Without a word: the terms run out."""
        self.line.cut = True
        for part in (self.balance, *self.schedulers):
            for scheduler in self.schedulers:
                scheduler._leadership.term = None  # so that nothing is released
            await part.stop()

    async def leave(self) -> None:
        """As at SIGTERM."""
        await self.balance.drain()
        await self.stop()

    async def stop(self) -> None:
        """Everything."""
        await self.balance.stop()
        for scheduler in self.schedulers:
            await scheduler.stop()


class Room:
    """Shards in memory, a broker, and processes that come and go."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.broker = LocalBroker(self.clock)
        stores = {shard: SqliteStore(":memory:", clock=self.clock, shard=shard) for shard in SHARDS}
        self.store = ShardedStore(stores, map_slots(dict.fromkeys(SHARDS, 1.0)), clock=self.clock)
        self.processes: list[Process] = []

    async def join(self, name: str) -> Process:
        """One more process."""
        process = Process(name, self)
        self.processes.append(process)
        await process.start()
        return process

    async def fences(self) -> int:
        """How often a term was granted, on all shards."""
        return sum(shard.term.fence for shard in await self.store.stats() if shard.term)

    def counts(self) -> list[int]:
        """How many shards each process leads, in the order of joining."""
        return [len(process.leads) for process in self.processes]

    def led(self) -> list[str]:
        """The shards that are led, each as often as it is."""
        return sorted(shard for process in self.processes for shard in process.leads)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    """Nobody there yet."""
    made = Room()
    await made.store.migrate()
    yield made
    async with contextlib.AsyncExitStack() as stack:
        for process in made.processes:
            stack.push_async_callback(process.stop)
    await made.broker.close()
    await made.store.close()


async def test_one_process_leads_all(room: Room) -> None:
    """At once; there is nobody to share with."""
    alone = await room.join("a")
    await room.clock.advance(SECOND)
    assert alone.leads == list(SHARDS)
    assert alone.balance.first


async def test_a_process_that_joins_is_handed_its_share(room: Room) -> None:
    """Once it has been heard for a while; no term runs out, and each shard is led all the time but for moments."""
    await room.join("a")
    await room.clock.advance(SECOND)
    await room.join("b")
    await room.clock.advance(SETTLED - SECOND)
    assert room.counts() == [6, 0]
    unled = 0
    for _ in range(1_500):
        await room.clock.advance(10 * MILLISECOND)
        unled += room.led() != list(SHARDS)
    assert room.counts() == [3, 3]
    assert unled <= 3  # a hundredth of a second for each of three hand-overs
    assert await room.fences() == 6 + 3


async def test_with_more_processes_than_shards_some_stand_by(room: Room) -> None:
    """One shard each, and nothing moves any more."""
    for name in "abcdefgh":
        await room.join(name)
    await room.clock.advance(60 * SECOND)
    assert sorted(room.counts()) == [0, 0, 1, 1, 1, 1, 1, 1]
    fences = await room.fences()
    await room.clock.advance(60 * SECOND)
    assert await room.fences() == fences


async def test_nothing_moves_where_the_shares_are_even(room: Room) -> None:
    """Nor where they are one apart: no term changes hands."""
    for name in "abcd":
        await room.join(name)
    await room.clock.advance(30 * SECOND)
    assert sorted(room.counts()) == [1, 1, 2, 2]
    fences = await room.fences()
    await room.clock.advance(100 * SECOND)
    assert await room.fences() == fences
    assert sorted(room.counts()) == [1, 1, 2, 2]


async def test_the_shards_of_one_that_dies_are_taken_when_its_terms_have_run_out(room: Room) -> None:
    """By the others, evenly in the end."""
    for name in "abc":
        await room.join(name)
    await room.clock.advance(30 * SECOND)
    assert room.counts() == [2, 2, 2]
    await room.processes[0].die()
    await room.clock.advance(TERM + TERM // 3)
    assert room.led() == list(SHARDS)
    await room.clock.advance(20 * SECOND)
    assert room.counts() == [0, 3, 3]


async def test_the_shards_of_one_that_leaves_are_taken_at_once(room: Room) -> None:
    """No term has to run out."""
    for name in "ab":
        await room.join(name)
    await room.clock.advance(30 * SECOND)
    await room.processes[0].leave()
    await room.clock.advance(10 * MILLISECOND)
    assert room.processes[1].leads == list(SHARDS)


async def test_one_that_comes_and_goes_moves_nothing(room: Room) -> None:
    """It is not given shards before it has been heard for a while without a break."""
    await room.join("a")
    await room.clock.advance(SECOND)
    fences = await room.fences()
    for _ in range(10):
        restless = await room.join("b")
        await room.clock.advance(SETTLED - SECOND)
        await restless.die()
        room.processes.remove(restless)
        await room.clock.advance(SILENT_AFTER + 2 * SECOND)
    assert await room.fences() == fences


async def test_hand_overs_are_bounded_in_time(room: Room) -> None:
    """Whatever the others tell: a forged taker gets at most one in `BETWEEN`, and what it does not take comes back."""
    alone = await room.join("a")
    for second in range(60):
        leads = () if second % 2 else SHARDS
        await room.broker.publish(SCHEDULERS, Standing(process="ghost", leads=leads))
        await room.clock.advance(SECOND)
    assert alone.balance.handed_over <= 60 * SECOND // BETWEEN
    assert alone.balance.handed_over > 0
    await room.clock.advance(10 * SECOND)
    assert alone.leads == list(SHARDS)


async def test_without_a_broker_free_shards_are_taken_and_nothing_is_handed_over(room: Room) -> None:
    """Each knows of itself only."""
    for name in "ab":
        process = await room.join(name)
        process.line.cut = True
    await room.clock.advance(30 * SECOND)
    assert room.led() == list(SHARDS)
    fences = await room.fences()
    await room.clock.advance(30 * SECOND)
    assert await room.fences() == fences
    leader = max(room.processes, key=lambda process: len(process.leads))
    await leader.die()
    await room.clock.advance(2 * TERM)
    assert room.led() == list(SHARDS)


async def test_one_process_of_those_that_lead_is_the_first(room: Room) -> None:
    """For what one should do for all; another one when it dies."""
    for name in "abc":
        await room.join(name)
    await room.clock.advance(30 * SECOND)
    assert [process.balance.first for process in room.processes] == [True, False, False]
    await room.processes[0].die()
    await room.clock.advance(10 * SECOND)
    assert [process.balance.first for process in room.processes[1:]] == [True, False]
