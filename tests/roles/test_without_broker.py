"""The broker is killed under work: attempts go on, runs go on being started, and it is fast again when it is back."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from duly.cluster.nats_server import NatsServers
from duly.core.instants import SECOND
from nats_server import eventually, nats_servers
from roles.site import Site


@pytest.fixture
def nats() -> Iterator[NatsServers]:
    """A server for this test alone."""
    with nats_servers() as servers:
        yield servers


@pytest.fixture
async def site(tmp_path: Path, nats: NatsServers) -> AsyncIterator[Site]:
    """All up, tasks scripted."""
    opened = Site(tmp_path, nats)
    try:
        await opened.open()
        yield opened
    finally:
        await opened.close()


async def test_nothing_is_lost_and_nothing_killed_while_the_broker_is_away(site: Site) -> None:
    """Runs that execute go on and end, new ones start, retries and cancels reach the worker; then it is fast again."""
    site.script.lasts = lambda held: 3 * SECOND if held.job.name == "long" else 0
    long = [await site.create("now", name="long") for _ in range(20)]
    steady = await site.create("every 1s", name="steady", max_runs=10, overlap="allow")
    for job in long:
        await site.come_to(job, "running")
    assert "Report" not in site.http.asked
    site.http.asked.clear()
    await site.cut()
    during = [await site.create("now", at=number % 2, name="during") for number in range(30)]
    for job in during:
        await site.come_to(job, "succeeded")
    for job in long:
        await site.come_to(job, "succeeded")
    assert "Beat" in site.http.asked
    assert "Report" in site.http.asked

    site.script.lasts = lambda held: 60 * SECOND if held.job.name == "stuck" else 0
    stuck = await site.create("now", name="stuck")
    await site.come_to(stuck, "running")
    await site.servicers[0].cancel_run((await site.runs(stuck))[0].id)
    await site.come_to(stuck, "cancelled")

    await site.mend()
    received = site.brokers["w-1"].counters["received"]
    asked = len(site.http.asked)
    after = await site.create("now", name="after")
    await site.come_to(after, "succeeded")
    await eventually(lambda: site.brokers["w-1"].counters["received"] > received)  # Assigns come by the broker again
    await site.come_to(steady, *["succeeded"] * 10)
    starts = Counter((name, attempt) for name, attempt, _ in site.script.starts)
    assert starts == {("long", 1): 20, ("steady", 1): 10, ("during", 1): 30, ("stuck", 1): 1, ("after", 1): 1}
    assert site.worker.id == "w-1"
    assert "Report" not in site.http.asked[asked:]


async def test_a_fleet_without_any_broker_works(tmp_path: Path, nats: NatsServers) -> None:
    """From the start, for as long as it likes; a servicer that is gone is passed over."""
    for member in nats.members:
        member.kill()
    site = Site(tmp_path, nats)
    try:
        await site.open()
        jobs = [await site.create("now", name=f"j{number}") for number in range(10)]
        for job in jobs:
            await site.come_to(job, "succeeded")
        site.http._urls.insert(0, "http://127.0.0.1:1")
        more = await site.create("now", name="more")
        await site.come_to(more, "succeeded")
        assert site.http.counters["http.failures"] >= 1
    finally:
        await site.close()


async def test_an_attempt_that_was_given_out_while_the_broker_died_is_not_lost_when_it_is_back(site: Site) -> None:
    """At most once allows no second attempt, so the first has to arrive."""
    await site.cut()
    jobs = [await site.create("now", name="once", delivery="at_most_once") for _ in range(5)]

    async def out() -> bool:
        return ["waiting"] not in [await site.words(job) for job in jobs]

    end = site.clock.monotonic() + 30 * SECOND
    while not await out():
        assert site.clock.monotonic() < end
        await site.clock.sleep(2_000)
    await site.mend()
    for job in jobs:
        await site.come_to(job, "succeeded")
    assert Counter(name for name, _, _ in site.script.starts) == {"once": 5}


async def test_what_a_worker_dropped_is_handed_back_by_it(site: Site) -> None:
    """An attempt that the store has at it and that it killed, for want of a lease say, is not begun a second time."""
    site.script.lasts = lambda held: 60 * SECOND if held.attempt == 1 else 0
    job = await site.create("now", name="dropped")
    once = await site.create("now", name="once", delivery="at_most_once")
    await site.come_to(job, "running")
    await site.come_to(once, "running")
    await site.cut()
    for held in site.worker.attempts:
        site.worker.attempts.end_quietly(held)
    await site.come_to(job, "succeeded")
    await site.come_to(once, "lost")
    assert Counter((name, attempt) for name, attempt, _ in site.script.starts) == {
        ("dropped", 1): 1,
        ("dropped", 2): 1,
        ("once", 1): 1,
    }


async def test_a_worker_whose_lease_has_ended_is_told_so_over_http(site: Site) -> None:
    """It comes back under a new id, as with a broker."""
    await site.cut()
    await site.clock.sleep(0)
    row = next(row for row in await site.store.fleet("s0") if row.id == "w-1")
    job = await site.create("now", name="j")
    await site.come_to(job, "succeeded")
    site.script.lasts = lambda held: 60 * SECOND if held.attempt == 1 else 0
    stuck = await site.create("now", name="stuck")
    await site.come_to(stuck, "running")
    await site.store.beat("s0", row, -SECOND)
    assert await site.store.expired("s0", 10)
    await eventually(lambda: site.worker.attempts.shards["s0"].id == "w-1.1")
    await site.come_to(stuck, "succeeded")
    assert [attempt for name, attempt, _ in site.script.starts if name == "stuck"] == [1, 2]
