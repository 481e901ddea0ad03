"""The guard of a shard: time limits, the bulkhead, and the circuit with its probe."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from conformance.samples import T0, W1, dispatch, job, run, worker
from duly.adapters.guarded_store import GuardedStore, Limits
from duly.adapters.sqlite_store import SqliteStore
from duly.core.errors import (
    DulyError,
    Fenced,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    TimedOut,
    Unavailable,
    WrongShard,
)
from duly.core.instants import MILLISECOND, SECOND
from duly.core.model import JobId
from duly.core.ring import SLOTS, SlotMap
from duly.ports import JobQuery, RunQuery, Store
from duly.testing import ManualClock

LIMITS = Limits(point=60 * SECOND, scan=60 * SECOND, upkeep=60 * SECOND, calls=4, failures=3)
SHORT = Limits(point=20 * MILLISECOND, scan=30 * MILLISECOND, upkeep=40 * MILLISECOND, calls=4, failures=3)


class Patient:
    """A store that answers, fails or hangs as it is told; it counts the calls that reach it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.shards = store.shards
        self.hangs = False
        self.door = asyncio.Event()  # opened, it lets go those that hang
        self.fails: DulyError | None = None
        self.calls = 0
        self.ended = 0

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.store, name)

        async def answer(*args: Any, **named: Any) -> Any:
            self.calls += 1
            try:
                if self.hangs:
                    await self.door.wait()
                if self.fails is not None:
                    raise self.fails
                return await verb(*args, **named)
            finally:
                self.ended += 1

        return answer


class Ward:
    """A guarded store, what is behind it, and its clock."""

    def __init__(self, limits: Limits) -> None:
        self.clock = ManualClock(T0)
        self.patient = Patient(SqliteStore(":memory:", clock=self.clock))
        self.store = GuardedStore(cast("Store", self.patient), clock=self.clock, limits=limits)

    async def lose(self) -> None:
        """Let the shard die and the circuit open."""
        self.patient.fails = Unavailable("dead")
        for _ in range(LIMITS.failures):
            with pytest.raises(Unavailable, match="dead"):
                await self.store.now()


@contextlib.asynccontextmanager
async def opened(limits: Limits) -> AsyncIterator[Ward]:
    """Migrated and well."""
    made = Ward(limits)
    await made.store.migrate()
    yield made
    made.patient.hangs = False
    made.patient.fails = None
    await made.store.close()


@pytest.fixture
async def ward() -> AsyncIterator[Ward]:
    """With time limits that no test comes to."""
    async with opened(LIMITS) as made:
        yield made


@pytest.fixture
async def hasty() -> AsyncIterator[Ward]:
    """With time limits that tests come to soon."""
    async with opened(SHORT) as made:
        yield made


READS = {
    "now": lambda store: store.now(),
    "get": lambda store: store.get([JobId("a")]),
    "load": lambda store: store.load([(JobId("a"), T0)]),
    "due": lambda store: store.due("s0", T0, None, 1),
    "active": lambda store: store.active("s0", None, 1),
    "page_jobs": lambda store: store.page_jobs(JobQuery()),
    "page_runs": lambda store: store.page_runs(RunQuery()),
    "stats": lambda store: store.stats(),
    "referred": lambda store: store.referred(["sha256:0"]),
}
WRITES = {
    "create": lambda store: store.create([(job("a"), [])]),
    "change": lambda store: store.change(job("a", version=2), 1, []),
    "apply": lambda store: store.apply([dispatch(run("a"))]),
    "beat": lambda store: store.beat("s0", worker(W1), 1),
    "expired": lambda store: store.expired("s0", 1),
    "hold": lambda store: store.hold("s0", "me", 1),
    "slots": lambda store: store.slots("s0", SlotMap(("s0",) * SLOTS, epoch=1)),
    "prune": lambda store: store.prune(1),
}


@pytest.mark.parametrize("verb", READS)
async def test_a_read_that_takes_too_long_is_unavailable(hasty: Ward, verb: str) -> None:
    """It is given up; nothing of it goes on."""
    hasty.patient.hangs = True
    with pytest.raises(Unavailable, match="in time") as told:
        await READS[verb](hasty.store)
    assert not isinstance(told.value, OutcomeUnknown)
    assert hasty.patient.ended == hasty.patient.calls


@pytest.mark.parametrize("verb", WRITES)
async def test_a_write_that_takes_too_long_may_have_happened(hasty: Ward, verb: str) -> None:
    """So it must not be made again under another name."""
    hasty.patient.hangs = True
    with pytest.raises(OutcomeUnknown, match="in time"):
        await WRITES[verb](hasty.store)
    assert hasty.patient.ended == hasty.patient.calls


async def test_a_time_limit_of_the_store_itself_is_told_alike(ward: Ward) -> None:
    """Whoever notices it first."""
    ward.patient.fails = TimedOut()
    with pytest.raises(Unavailable, match="in time"):
        await ward.store.now()
    with pytest.raises(OutcomeUnknown):
        await ward.store.create([(job("a"), [])])


async def test_more_calls_than_it_is_given_at_once_are_refused(ward: Ward) -> None:
    """At once; those under way are not touched, and room comes back with their end."""
    ward.patient.hangs = True
    calls = [asyncio.ensure_future(ward.store.get([JobId("a")])) for _ in range(LIMITS.calls)]
    await ward.clock.advance(0)
    reached = ward.patient.calls
    with pytest.raises(Overloaded):
        await ward.store.create([(job("a"), [])])
    assert ward.patient.calls == reached
    for call in calls[:2]:
        call.cancel()
    await asyncio.wait(calls[:2])
    ward.patient.hangs = False
    assert await ward.store.get([JobId("a")]) == [None]
    for call in calls[2:]:
        call.cancel()
    await asyncio.wait(calls[2:])


async def test_failures_in_a_row_open_the_circuit(ward: Ward) -> None:
    """Then calls are refused without being sent, each of them."""
    await ward.lose()
    assert ward.store.open
    reached = ward.patient.calls
    for call in [*READS.values(), *WRITES.values()]:
        with pytest.raises(Unavailable, match="does not answer") as refused:
            await call(ward.store)
        assert not isinstance(refused.value, OutcomeUnknown)
    assert ward.patient.calls == reached


async def test_an_answer_between_failures_keeps_it_closed(ward: Ward) -> None:
    """Only failures in a row count."""
    for _ in range(4 * LIMITS.failures):
        ward.patient.fails = Unavailable("for a moment")
        with pytest.raises(Unavailable):
            await ward.store.now()
        ward.patient.fails = None
        await ward.store.now()
    assert not ward.store.open


@pytest.mark.parametrize("answer", [Fenced(), WrongShard(epoch=3), NotFound(), Overloaded()])
async def test_a_refusal_is_an_answer(ward: Ward, answer: DulyError) -> None:
    """The shard is there, and says no."""
    ward.patient.fails = answer
    for _ in range(3 * LIMITS.failures):
        with pytest.raises(type(answer)):
            await ward.store.create([(job("a"), [])])
    assert not ward.store.open


async def test_a_probe_closes_the_circuit_once_the_shard_answers(ward: Ward) -> None:
    """With pauses that grow up to a bound, and no call of a client."""
    await ward.lose()
    reached = ward.patient.calls
    await ward.clock.advance(LIMITS.pause - 1)
    assert ward.patient.calls == reached
    await ward.clock.advance(1)
    assert ward.patient.calls == reached + 1
    await ward.clock.advance(LIMITS.pause)
    assert ward.patient.calls == reached + 1
    await ward.clock.advance(60 * SECOND)
    assert reached + 25 < ward.patient.calls < reached + 40
    ward.patient.fails = None
    await ward.clock.advance(LIMITS.longest_pause)
    assert not ward.store.open
    assert await ward.store.create([(job("a"), [])]) == [None]


async def test_after_a_probe_the_first_failure_opens_it_again(ward: Ward) -> None:
    """It is on trial; an answer ends that."""
    await ward.lose()
    ward.patient.fails = None
    await ward.clock.advance(LIMITS.pause)
    ward.patient.fails = Unavailable("dead")
    with pytest.raises(Unavailable, match="dead"):
        await ward.store.now()
    assert ward.store.open
    ward.patient.fails = None
    await ward.clock.advance(LIMITS.pause)
    await ward.store.now()
    ward.patient.fails = Unavailable("for a moment")
    with pytest.raises(Unavailable, match="moment"):
        await ward.store.now()
    assert not ward.store.open


async def test_a_late_answer_does_not_close_it(ward: Ward) -> None:
    """What was sent before says nothing about now."""
    ward.patient.hangs = True
    late = asyncio.ensure_future(ward.store.get([JobId("a")]))
    await ward.clock.advance(0)
    ward.patient.hangs = False
    await ward.lose()
    ward.patient.fails = None
    ward.patient.door.set()
    assert await late == [None]
    assert ward.store.open


async def test_closing_ends_the_probe_and_waits_no_longer_than_the_limit(hasty: Ward) -> None:
    """A frozen server must not keep a process from ending."""
    await hasty.lose()
    hasty.patient.hangs = True
    await hasty.store.close()
    reached = hasty.patient.calls
    await hasty.clock.advance(60 * SECOND)
    assert hasty.patient.calls == reached
