"""The slot map over several shards: how it is agreed on, and that a stale servicer never splits a job over two."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from conformance.samples import T0, job, run
from conformance.test_sharded_store import Lamp
from duly.adapters.sharded_store import ShardedStore
from duly.adapters.slot_agreement import REFRESH
from duly.adapters.sqlite_slots import Ownership
from duly.adapters.sqlite_store import SqliteStore
from duly.core.errors import Unavailable, WrongShard
from duly.core.model import JobId
from duly.core.ring import NOBODY, SLOTS, SlotMap, map_slots, slot
from duly.ports import JobQuery, Store
from duly.testing import ManualClock

SHARDS = ("s0", "s1", "s2")
EVEN = map_slots(dict.fromkeys(SHARDS, 1.0))


class Shards:
    """Three shards in memory, and any number of servicers' stores over them."""

    def __init__(self) -> None:
        self.clock = ManualClock(T0)
        self.lamps = {name: Lamp(SqliteStore(":memory:", clock=self.clock, shard=name)) for name in SHARDS}

    def servicer(self, first: SlotMap = EVEN) -> ShardedStore:
        """A store of its own over the same shards."""
        return ShardedStore(cast("dict[str, Store]", self.lamps), first, clock=self.clock)

    async def maps(self) -> list[SlotMap | None]:
        """What the shards keep."""
        return [await self.lamps[name].store.slots(name) for name in SHARDS]

    async def epochs(self) -> list[int]:
        """Of what the shards keep; 0 for none."""
        return [0 if each is None else each.epoch for each in await self.maps()]

    async def holders(self, name: str) -> list[str]:
        """The shards that have a job."""
        found = [(shard, await lamp.store.get([JobId(name)])) for shard, lamp in self.lamps.items()]
        return [shard for shard, rows in found if rows[0] is not None]


@pytest.fixture
async def shards() -> AsyncIterator[Shards]:
    """Migrated, without a slot map."""
    made = Shards()
    for lamp in made.lamps.values():
        await lamp.store.migrate()
    yield made
    for lamp in made.lamps.values():
        await lamp.store.close()


def moved(slots: SlotMap, owners: dict[str, str]) -> SlotMap:
    """The next map, in which the slots of these jobs have other owners."""
    table = list(slots.table)
    for name, owner in owners.items():
        table[slot(JobId(name))] = owner
    return SlotMap(tuple(table), epoch=slots.epoch + 1)


async def test_the_first_map_is_kept_by_every_shard(shards: Shards) -> None:
    """Once all have answered."""
    await shards.servicer().migrate()
    assert await shards.maps() == [EVEN, EVEN, EVEN]


async def test_of_those_who_begin_at_the_same_time_one_decides(shards: Shards) -> None:
    """Though they were set up with other weights."""
    lopsided = map_slots({"s0": 3.0, "s1": 1.0, "s2": 1.0})
    one, other = shards.servicer(), shards.servicer(lopsided)
    await asyncio.gather(one.migrate(), other.migrate())
    [first, *others] = await shards.maps()
    assert first in (EVEN, lopsided)
    assert others == [first, first]
    assert one.slot_map == other.slot_map == first


async def test_without_a_map_nothing_is_created_until_every_shard_has_answered(shards: Shards) -> None:
    """The one that is silent may keep a map; reads go on, and once it is back so do creations."""
    shards.lamps["s2"].out = True
    store = shards.servicer()
    await store.migrate()
    with pytest.raises(Unavailable, match="s2"):
        await store.create([(job("a"), [])])
    assert (await store.page_jobs(JobQuery())).missing == ("s2",)
    assert await shards.epochs() == [0, 0, 0]
    shards.lamps["s2"].out = False
    assert await store.create([(job("a"), [])]) == [None]
    assert await shards.epochs() == [1, 1, 1]


async def test_with_a_map_a_servicer_starts_without_the_dead_shard(shards: Shards) -> None:
    """Its map is that of the others; it creates on them."""
    await shards.servicer().migrate()
    shards.lamps["s0"].out = True
    store = shards.servicer(map_slots({"s0": 9.0, "s1": 1.0, "s2": 1.0}))
    await store.migrate()
    assert store.slot_map == EVEN
    alive = next(name for name in map(str, range(99)) if EVEN.shard_of(JobId(name)) == "s1")
    assert await store.create([(job(alive), [])]) == [None]


async def test_without_any_shard_a_servicer_does_not_start(shards: Shards) -> None:
    """There is nothing to serve."""
    for lamp in shards.lamps.values():
        lamp.out = True
    with pytest.raises(Unavailable, match="s0, s1, s2"):
        await shards.servicer().migrate()


async def test_the_highest_epoch_wins_and_every_shard_is_brought_up_to_it(shards: Shards) -> None:
    """Whichever shard has it."""
    store = shards.servicer()
    await store.migrate()
    newer = moved(EVEN, {"a": "s1"})
    await shards.lamps["s2"].store.slots("s2", newer)
    late = shards.servicer()
    await late.migrate()
    assert late.slot_map == newer
    assert await shards.maps() == [newer, newer, newer]


async def test_a_refused_creation_is_repeated_by_the_newer_map(shards: Shards) -> None:
    """Nobody hears of it, and the job is on its new shard only."""
    stale = shards.servicer()
    await stale.migrate()
    home = EVEN.shard_of(JobId("a"))
    other = next(shard for shard in SHARDS if shard != home)
    for shard in SHARDS:
        await shards.lamps[shard].store.slots(shard, moved(EVEN, {"a": other}))
    assert await stale.create([(job(name), [run(name)]) for name in "abcdefgh"]) == [None] * 8
    assert await shards.holders("a") == [other]
    assert stale.shard_of(JobId("a")) == other


@pytest.mark.parametrize("migrated", [True, False])
async def test_a_job_of_a_moved_slot_is_found_by_who_has_an_older_map(shards: Shards, migrated: bool) -> None:
    """Or by who has seen none yet: a shard that knows nothing of a job says first whether it would have to."""
    stale, fresh = shards.servicer(), shards.servicer()
    await fresh.migrate()
    if migrated:
        await stale.migrate()
    home = EVEN.shard_of(JobId("a"))
    other = next(shard for shard in SHARDS if shard != home)
    for shard in SHARDS:
        await shards.lamps[shard].store.slots(shard, moved(EVEN, {"a": other}))
    assert await fresh.create([(job("a"), [run("a")])]) == [None]
    [found, none] = await stale.load([run("a").key, run("b").key])
    assert (found, none) == ((run("a"), job("a")), None)
    [row] = await stale.get([JobId("a")])
    assert row is not None
    assert stale.shard_of(JobId("a")) == other


async def test_whoever_knows_a_runs_shard_finds_it_there_whatever_the_maps_say(shards: Shards) -> None:
    """The scheduler that leads it, and who reports to it: by a map that is behind, the run would not be there."""
    stale, fresh = shards.servicer(), shards.servicer()
    await fresh.migrate()
    await stale.migrate()
    home = EVEN.shard_of(JobId("a"))
    other = next(shard for shard in SHARDS if shard != home)
    await shards.lamps[other].store.slots(other, moved(EVEN, {"a": other}))
    assert await shards.lamps[other].store.create([(job("a"), [run("a")])]) == [None]
    assert await stale.load([run("a").key]) == [None]  # the shard that it asks has missed the newer map, too
    assert await stale.load([run("a").key], shard=other) == [(run("a"), job("a"))]


async def test_a_shard_that_missed_a_map_is_brought_up_to_it(shards: Shards) -> None:
    """By the first creation that it refuses."""
    home = EVEN.shard_of(JobId("a"))
    other = next(shard for shard in SHARDS if shard != home)
    newer = moved(EVEN, {"a": other})
    await shards.servicer().migrate()
    shards.lamps[other].out = True
    await shards.lamps[home].store.slots(home, newer)
    fresh = shards.servicer()
    await fresh.migrate()
    shards.lamps[other].out = False
    assert await shards.lamps[other].store.slots(other) == EVEN
    assert await fresh.create([(job("a"), [])]) == [None]
    assert await shards.lamps[other].store.slots(other) == newer


async def test_a_slot_that_nobody_owns_takes_no_jobs(shards: Shards) -> None:
    """It is on its way; the others take theirs."""
    store = shards.servicer()
    await store.migrate()
    home = EVEN.shard_of(JobId("a"))
    await shards.lamps[home].store.slots(home, moved(EVEN, {"a": NOBODY}))
    with pytest.raises(WrongShard, match="between two shards"):
        await store.create([(job("a"), [])])
    with pytest.raises(WrongShard, match="between two shards"):
        await store.get([JobId("a")])
    assert await store.create([(job("b"), [])]) == [None]
    assert (await store.page_jobs(JobQuery())).missing == ()


async def test_a_shard_that_is_not_set_up_here_is_missing(shards: Shards) -> None:
    """From pages and counts; its jobs are unavailable, not unknown."""
    store = shards.servicer()
    await store.migrate()
    table = ("s9",) * 100 + EVEN.table[100:]
    await shards.lamps["s0"].store.slots("s0", SlotMap(table, epoch=2))
    late = shards.servicer()
    await late.migrate()
    beyond = next(name for name in map(str, range(999)) if slot(JobId(name)) < 100)
    with pytest.raises(WrongShard, match="s9, which is not set up here"):
        await late.get([JobId(beyond)])
    assert (await late.page_jobs(JobQuery())).missing == ("s9",)
    down = [one for one in await late.stats() if one.state == "down"]
    assert [(one.shard, one.slots) for one in down] == [("s9", 100)]


async def test_different_maps_of_one_epoch_are_unavailable(shards: Shards) -> None:
    """Shards that were set up apart: nothing is created where that might split a job."""
    await shards.lamps["s0"].store.slots("s0", SlotMap(("s0",) * SLOTS, epoch=1))
    await shards.lamps["s1"].store.slots("s1", SlotMap(("s1",) * SLOTS, epoch=1))
    store = shards.servicer()
    await store.migrate()
    mine = store.slot_map.table[0]
    assert await store.create([(job("a"), [])]) == [None]
    assert await shards.holders("a") == [mine]


async def test_maps_are_looked_at_now_and_then(shards: Shards) -> None:
    """In the background of any call, no oftener than each `REFRESH`."""
    store = shards.servicer()
    await store.migrate()
    newer = moved(EVEN, {"a": "s1"})
    await shards.lamps["s0"].store.slots("s0", newer)
    await store.get([JobId("b")])
    await shards.clock.advance(0)
    assert store.slot_map == EVEN
    await shards.clock.advance(REFRESH)
    await store.get([JobId("b")])
    await shards.clock.advance(0)
    assert store.slot_map == newer
    assert await shards.maps() == [newer, newer, newer]
    await store.close()


# -- any sequence -------------------------------------------------------------------------------------------

NAMES = [f"j{i}" for i in range(12)]
SOME = st.sets(st.sampled_from(SHARDS))


class StaleServicers(RuleBasedStateMachine):
    """Two servicers create, shards come and go, and slots move: first to nobody, on every shard, then to the new one.

    There is no mover yet, so a slot that turns out to hold a job goes back to where it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.shards = Shards()
        self.servicers = [self.shards.servicer(), self.shards.servicer()]
        for lamp in self.shards.lamps.values():
            self.wait(lamp.store.migrate())
        for servicer in self.servicers:
            self.wait(servicer.migrate())
        self.newest = EVEN
        self.moving: dict[str, tuple[str, str]] = {}
        self.created: dict[str, int] = {}

    def wait(self, call: Any) -> Any:
        """Run a call to its end."""
        return self.loop.run_until_complete(call)

    def teardown(self) -> None:
        for servicer in self.servicers:
            servicer._refreshing = None
        for lamp in self.shards.lamps.values():
            self.wait(lamp.store.close())
        self.loop.close()

    def install(self, slots: SlotMap, on: set[str]) -> None:
        """Write a map to some shards; the rest hears of it from the servicers, or not."""
        self.newest = slots
        for shard in on:
            if not self.shards.lamps[shard].out:
                self.wait(self.shards.lamps[shard].store.slots(shard, slots))

    @rule(out=st.sets(st.sampled_from(SHARDS), max_size=1))
    def weather(self, out: set[str]) -> None:
        """One shard at most is dead."""
        for shard, lamp in self.shards.lamps.items():
            lamp.out = shard in out

    @rule(by=st.integers(0, 1), names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    def create(self, by: int, names: list[str]) -> None:
        """Some jobs, known or new; what was created where a shard failed stays."""
        try:
            answers = self.wait(self.servicers[by].create([(job(name), [run(name)]) for name in names]))
        except Unavailable:
            return
        for name, answer in zip(names, answers, strict=True):
            self.created[name] = self.created.get(name, 0) + (answer is None)

    @rule(by=st.integers(0, 1))
    def refresh(self, by: int) -> None:
        """As each does every now and then."""
        self.wait(self.servicers[by]._refresh())

    @rule(names=st.sets(st.sampled_from(NAMES), min_size=1), to=st.sampled_from(SHARDS), on=SOME)
    def let_go(self, names: set[str], to: str, on: set[str]) -> None:
        """Slots begin to move."""
        if not self.moving:
            self.moving = {name: (self.newest.shard_of(JobId(name)), to) for name in names}
            self.install(moved(self.newest, dict.fromkeys(names, NOBODY)), on)

    @rule(on=SOME)
    def take(self, on: set[str]) -> None:
        """Slots that every shard has let go of get their new owner."""
        epochs = self.wait(self.shards.epochs())
        if self.moving and min(epochs) >= self.newest.epoch:
            held = {name: bool(self.wait(self.shards.holders(name))) for name in self.moving}
            owners = {name: home if held[name] else to for name, (home, to) in self.moving.items()}
            self.moving = {}
            self.install(moved(self.newest, owners), on)

    @invariant()
    def no_job_is_on_two_shards(self) -> None:
        """And none was said to be new twice."""
        for name in NAMES:
            assert len(self.wait(self.shards.holders(name))) <= 1
            assert self.created.get(name, 0) <= 1


def test_a_stale_servicer_never_splits_a_job_over_two_shards() -> None:
    """Whatever maps the shards and the servicers have."""
    run_state_machine_as_test(
        StaleServicers,
        settings=settings(
            max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize("checks", [True, False])
async def test_it_is_the_shards_own_check_that_prevents_it(
    shards: Shards, checks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the job is there twice."""
    if not checks:
        monkeypatch.setattr(Ownership, "guarding", lambda _, __, create: create)
    stale = shards.servicer()
    await stale.migrate()
    home = EVEN.shard_of(JobId("a"))
    other = next(shard for shard in SHARDS if shard != home)
    for shard in SHARDS:
        await shards.lamps[shard].store.slots(shard, moved(EVEN, {"a": other}))
    fresh = shards.servicer()
    await fresh.migrate()
    made = [await fresh.create([(job("a"), [])]), await stale.create([(job("a"), [])])]
    assert made == [[None], [job("a")] if checks else [None]]
    assert await shards.holders("a") == ([other] if checks else sorted([home, other]))
