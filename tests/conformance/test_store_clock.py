"""The shard's clock is set under a store: leases and terms keep what is left of them, whichever way it goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.harness import Harness
from conformance.samples import SECOND, T0, W1, dispatch, job, run, worker
from duly.adapters.sqlite_store import SqliteStore
from duly.core.instants import DAY, HOUR
from duly.testing import ManualClock

STEPS = [HOUR, -HOUR, DAY, -DAY]
TTL = 5 * SECOND


async def held(harness: Harness) -> str:
    """A shard with one run in a worker's hands; its lease and the term begin now."""
    store = harness.store
    shard = harness.shard()
    await store.hold(shard, "first", TTL)
    waiting = run("a")
    await store.create([(job("a"), [waiting])])
    assert not await store.apply([dispatch(waiting)])
    await store.beat(shard, worker(), TTL)
    return shard


@pytest.mark.parametrize("step", STEPS)
async def test_the_clock_follows_the_machines(harness: Harness, step: int) -> None:
    """`now` steps with the machine's clock, backwards too, at once or within a second: time never stands still."""
    shard = harness.shard()
    before = await harness.store.now(shard)
    harness.clock.skew += step
    await harness.passes(harness.told_within)
    before += harness.told_within
    assert await harness.store.now(shard) == before + step
    await harness.passes(SECOND)
    assert await harness.store.now(shard) == before + step + SECOND


@pytest.mark.parametrize("step", STEPS)
async def test_a_lease_keeps_what_is_left_of_it(harness: Harness, step: int) -> None:
    """A step ends no lease and lengthens none: a worker is lost once its own time has passed."""
    shard = await held(harness)
    await harness.passes(2 * SECOND)
    harness.clock.skew += step
    assert await harness.store.expired(shard, 10) == []
    await harness.passes(3 * SECOND - 1)
    assert await harness.store.expired(shard, 10) == []
    await harness.passes(1)
    [(lost, _, gone)] = await harness.store.expired(shard, 10)
    assert (lost.worker, gone and gone.state) == (W1, "lost")
    assert gone is not None
    assert gone.lease_until == T0 + step + TTL


@pytest.mark.parametrize("step", STEPS)
async def test_a_term_keeps_what_is_left_of_it(harness: Harness, step: int) -> None:
    """Another gets the term when the holder's time has passed, not before; the holder's renewal has its old fence."""
    shard = await held(harness)
    harness.clock.skew += step
    assert (await harness.store.hold(shard, "second", TTL)).owner == "first"
    renewed = await harness.store.hold(shard, "first", TTL)
    assert (renewed.owner, renewed.fence, renewed.expires_at) == ("first", 1, T0 + step + TTL)
    await harness.passes(TTL - 1)
    assert (await harness.store.hold(shard, "second", TTL)).owner == "first"
    await harness.passes(1)
    taken = await harness.store.hold(shard, "second", TTL)
    assert (taken.owner, taken.fence) == ("second", 2)


async def test_small_steps_add_up(harness: Harness) -> None:
    """Steps too small to notice one by one are noticed together."""
    shard = await held(harness)
    for _ in range(100):
        harness.clock.skew += 60_000
        await harness.store.beat(shard, worker(), TTL)
    assert await harness.store.expired(shard, 10) == []
    assert (await harness.store.hold(shard, "second", TTL)).owner == "first"


@pytest.mark.parametrize("back", [2 * SECOND, HOUR, DAY])
async def test_a_clock_set_back_while_the_store_was_closed(tmp_path: Path, back: int) -> None:
    """A heartbeat from the future is taken for one of now: the lease is not shorter for it, and ends within its ttl."""
    clock = ManualClock(T0)
    harness = Harness(SqliteStore(tmp_path / "shard.db", clock=clock), clock)
    await harness.store.migrate()
    shard = await held(harness)
    await harness.store.close()
    clock.skew -= back
    harness.store = SqliteStore(tmp_path / "shard.db", clock=clock)
    await harness.passes(TTL - 1)
    assert await harness.store.expired(shard, 10) == []
    assert (await harness.store.hold(shard, "second", TTL)).owner == "first"
    await harness.passes(1)
    assert len(await harness.store.expired(shard, 10)) == 1
    assert (await harness.store.hold(shard, "second", TTL)).owner == "second"
    await harness.store.close()
