"""The Store port, clause by clause: slots, and what a slot map refuses."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from conformance.harness import STORES, Harness
from conformance.samples import T0, job, run
from duly.adapters.sqlite_store import SqliteStore
from duly.core.errors import WrongShard
from duly.core.model import JobId
from duly.core.ring import SLOTS, SlotMap, map_slots, slot
from duly.ports import JobQuery
from duly.testing import ManualClock


def everything_to(shard: str, epoch: int) -> SlotMap:
    """A map with one owner."""
    return SlotMap((shard,) * SLOTS, epoch=epoch, weights={shard: 1.0})


def elsewhere(epoch: int) -> SlotMap:
    """A map that leaves these stores nothing."""
    return everything_to("elsewhere", epoch)


async def epoch_of(harness: Harness) -> int:
    """Of the first shard's map; 0 without one. A sharded store has begun with one."""
    there = await harness.store.slots(harness.shard())
    return 0 if there is None else there.epoch


@pytest.mark.parametrize("kind", [kind for kind in STORES if "sharded" not in kind])
async def test_a_shard_has_no_slot_map_until_one_is_proposed(kind: str, tmp_path: Path) -> None:
    """And takes every job meanwhile."""
    async with STORES[kind](tmp_path) as harness:
        assert await harness.store.slots(harness.shard()) is None
        assert await harness.store.create([(job("a"), [run("a")])]) == [None]


async def test_a_proposed_map_is_written_before_the_answer(harness: Harness) -> None:
    """The first one, whatever its epoch; with its table and its weights."""
    first = map_slots({harness.shard(): 2.0, "other": 1.0}, after=elsewhere(6))
    assert await harness.store.slots(harness.shard(), first) == first
    assert await harness.store.slots(harness.shard()) == first


async def test_a_map_with_a_higher_epoch_replaces_the_one_there(harness: Harness) -> None:
    """It need not be the next one."""
    await harness.store.slots(harness.shard(), elsewhere(await epoch_of(harness) + 1))
    newer = everything_to(harness.shard(), await epoch_of(harness) + 5)
    assert await harness.store.slots(harness.shard(), newer) == newer


@pytest.mark.parametrize("lower", [0, 1])
async def test_a_map_with_a_lower_or_equal_epoch_changes_nothing(harness: Harness, lower: int) -> None:
    """The answer is the one in force."""
    there = everything_to(harness.shard(), 9)
    await harness.store.slots(harness.shard(), there)
    assert await harness.store.slots(harness.shard(), elsewhere(9 - lower)) == there
    assert await harness.store.slots(harness.shard()) == there


async def test_each_shard_has_its_own_map(harness: Harness) -> None:
    """They are brought up to each other by who calls."""
    first, *others = harness.store.shards
    before = [await harness.store.slots(other) for other in others]
    await harness.store.slots(first, everything_to(first, 5))
    assert [await harness.store.slots(other) for other in others] == before


async def test_create_writes_nothing_of_a_call_with_a_job_that_is_not_the_shards(harness: Harness) -> None:
    """Not the jobs that it owns either; the error has the epoch in force."""
    shard = harness.shard("a")
    mine = [name for name in map(str, range(200)) if harness.shard(name) == shard]
    other = next(name for name in mine if slot(JobId(name)) != slot(JobId(mine[0])))
    table = [shard] * SLOTS
    table[slot(JobId(other))] = "elsewhere"
    await harness.store.slots(shard, SlotMap(tuple(table), epoch=7))
    with pytest.raises(WrongShard) as refused:
        await harness.store.create([(job(mine[0]), [run(mine[0])]), (job(other), [run(other)])])
    assert refused.value.epoch == 7
    assert (refused.value.code, refused.value.status, refused.value.retry_after) == ("wrong_shard", 503, 1.0)
    assert (await harness.store.page_jobs(JobQuery())).items == ()
    assert await harness.store.due(shard, T0 + 100, None, 10) == []
    assert await harness.store.create([(job(mine[0]), [run(mine[0])])]) == [None]


async def test_create_again_of_a_job_whose_slot_went_elsewhere_is_refused(harness: Harness) -> None:
    """The new owner has to answer for it; what is here can still be read and changed."""
    await harness.store.create([(job("a"), [run("a")])])
    await harness.store.slots(harness.shard(), elsewhere(5))
    assert (await harness.store.get([JobId("a")]))[0] is not None
    assert await harness.store.change(job("a", version=2), 1, []) == job("a", version=2)
    with pytest.raises(WrongShard):
        await harness.store.create([(job("a"), [run("a")])])


async def test_a_slot_that_comes_back_is_taken_again(harness: Harness) -> None:
    """With the map that says so."""
    await harness.store.slots(harness.shard(), elsewhere(5))
    await harness.store.slots(harness.shard(), everything_to(harness.shard(), 6))
    assert await harness.store.create([(job("a"), [])]) == [None]


@pytest.mark.parametrize("kind", [kind for kind in STORES if "sharded" not in kind])
async def test_a_refused_creation_does_not_spoil_the_others_of_its_commit(kind: str, tmp_path: Path) -> None:
    """Stores put calls together; each is judged by itself."""
    async with STORES[kind](tmp_path) as harness:
        table = ["s0"] * SLOTS
        table[slot(JobId("b"))] = "elsewhere"
        await harness.store.slots("s0", SlotMap(tuple(table), epoch=1))
        answers = await asyncio.gather(
            *(harness.store.create([(job(name), [run(name)])]) for name in "abc"), return_exceptions=True
        )
        assert [answers[0], answers[2]] == [[None], [None]]
        assert isinstance(answers[1], WrongShard)


async def test_the_map_is_there_again_when_the_file_is_opened(tmp_path: Path) -> None:
    """And in force from the first call."""
    store = SqliteStore(tmp_path / "shard.db", clock=ManualClock(T0))
    await store.migrate()
    await store.slots("s0", elsewhere(3))
    await store.close()
    again = SqliteStore(tmp_path / "shard.db", clock=ManualClock(T0))
    assert await again.slots("s0") == elsewhere(3)
    with pytest.raises(WrongShard):
        await again.create([(job("a"), [])])
    await again.close()
