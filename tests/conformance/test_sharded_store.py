"""What is the sharded store's own: where writes go, and what happens when a shard does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from conformance.samples import T0, dispatch, ended, job, run
from duly.adapters.sharded_store import ShardedStore
from duly.adapters.sqlite_store import SqliteStore
from duly.core.errors import DulyError, NotFound, Overloaded, TimedOut, Unavailable
from duly.core.model import CommandTask, Job, JobId, Run
from duly.core.ring import map_slots
from duly.ports import JobQuery, RunQuery, Store
from duly.testing import ManualClock

SHARDS = ("s0", "s1", "s2")
NAMES = [f"j{i}" for i in range(30)]


class Cluster:
    """Three shards whose lights can be put out."""

    def __init__(self) -> None:
        self.clock = ManualClock(T0)
        self.ring = map_slots(dict.fromkeys(SHARDS, 1.0))
        self.shards = {name: Lamp(SqliteStore(":memory:", clock=self.clock, shard=name)) for name in SHARDS}
        self.store = ShardedStore(cast("dict[str, Store]", self.shards), self.ring)

    def on(self, shard: str) -> list[str]:
        """The jobs of a shard."""
        return [name for name in NAMES if self.ring.shard_of(JobId(name)) == shard]


class Lamp:
    """A store that does not answer while it is out."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.out = False
        self.silence: type[DulyError] = Unavailable

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.store, name)

        async def answer(*args: Any, **named: Any) -> Any:
            if self.out:
                raise self.silence("out")
            return await verb(*args, **named)

        return answer


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """Filled with thirty jobs, one run each."""
    made = Cluster()
    await made.store.migrate()
    await made.store.create([(job(name), [run(name, i)]) for i, name in enumerate(NAMES)])
    yield made
    for shard in made.shards.values():
        shard.out = False
    await made.store.close()


async def test_each_job_lies_on_the_shard_of_its_slot(cluster: Cluster) -> None:
    """And only there."""
    for shard in SHARDS:
        page = await cluster.shards[shard].page_jobs(JobQuery())
        assert [row.job.id for row in page.items] == sorted(cluster.on(shard))
        assert all(cluster.store.shard_of(row.job.id) == shard for row in page.items)


async def test_a_ring_with_a_shard_that_has_no_store_is_refused() -> None:
    """It would lose jobs."""
    with pytest.raises(NotFound, match="s9"):
        ShardedStore({}, map_slots({"s9": 1.0}))


async def test_a_shard_that_is_not_there_is_not_found(cluster: Cluster) -> None:
    """By every verb that names one; a fence names none by itself."""
    for call in (
        cluster.store.now("x"),
        cluster.store.due("x", T0, None, 1),
        cluster.store.hold("x", "me", 1),
        cluster.store.apply([dispatch(run("j0"))], shard="x", fence=1),
        cluster.store.apply([dispatch(run("j0"))], fence=1),
    ):
        with pytest.raises(NotFound):
            await call


async def test_pages_leave_out_a_shard_that_does_not_answer_and_name_it(cluster: Cluster) -> None:
    """The others' rows are there."""
    cluster.shards["s1"].out = True
    jobs = await cluster.store.page_jobs(JobQuery())
    runs = await cluster.store.page_runs(RunQuery())
    assert jobs.missing == runs.missing == ("s1",)
    assert {row.job.id for row in jobs.items} == {one.job_id for one in runs.items} == {*NAMES} - {*cluster.on("s1")}


async def test_pages_without_any_shard_are_unavailable(cluster: Cluster) -> None:
    """Nothing at all is no partial answer."""
    for shard in cluster.shards.values():
        shard.out = True
    for call in (cluster.store.page_jobs(JobQuery()), cluster.store.page_runs(RunQuery())):
        with pytest.raises(Unavailable, match="s0, s1, s2"):
            await call


async def test_runs_of_one_job_are_asked_of_its_shard_only(cluster: Cluster) -> None:
    """Where that does not answer they are not said to be none; what the others do is all the same."""
    alive, dead = JobId(cluster.on("s0")[0]), JobId(cluster.on("s1")[0])
    cluster.shards["s1"].out = True
    page = await cluster.store.page_runs(RunQuery(job_id=alive))
    assert ([one.job_id for one in page.items], page.missing) == ([alive], ())
    with pytest.raises(Unavailable):
        await cluster.store.page_runs(RunQuery(job_id=dead))


@pytest.mark.parametrize("silence", [TimedOut, Overloaded])
async def test_a_shard_that_is_too_slow_or_too_busy_is_missing_too(cluster: Cluster, silence: type[DulyError]) -> None:
    """As one that is down."""
    cluster.shards["s1"].out = True
    cluster.shards["s1"].silence = silence
    assert (await cluster.store.page_jobs(JobQuery())).missing == ("s1",)
    assert [one.state for one in await cluster.store.stats()] == ["up", "down", "up"]
    assert await cluster.store.now() == T0


@settings(max_examples=40, deadline=None)
@given(
    outages=st.lists(st.sets(st.sampled_from(SHARDS), max_size=2), max_size=12),
    query=st.one_of(
        st.builds(JobQuery, order=st.sampled_from(["created", "-created", "name", "-name"]), limit=st.integers(1, 9)),
        st.builds(RunQuery, oldest_first=st.booleans(), limit=st.integers(1, 9)),
    ),
)
def test_a_shard_that_comes_and_goes_while_pages_are_read(outages: list[set[str]], query: JobQuery | RunQuery) -> None:
    """No row is shown twice; every row that is left out is of a shard that some page names as missing."""

    async def read(query: JobQuery | RunQuery) -> None:
        cluster = Cluster()
        await cluster.store.migrate()
        await cluster.store.create([(job(name, name=name[::-1]), [run(name, i)]) for i, name in enumerate(NAMES)])
        seen: list[str] = []
        missing: set[str] = set()
        weather = iter(outages)
        while True:
            out = next(weather, set())
            for name, shard in cluster.shards.items():
                shard.out = name in out
            if isinstance(query, JobQuery):
                jobs = await cluster.store.page_jobs(query)
                cursor, named = jobs.next, jobs.missing
                seen += [row.job.id for row in jobs.items]
            else:
                runs = await cluster.store.page_runs(query)
                cursor, named = runs.next, runs.missing
                seen += [one.job_id for one in runs.items]
            assert set(named) == out
            missing |= out
            if cursor is None:
                break
            query = replace(query, cursor=cursor)
        assert len(seen) == len(set(seen))
        assert set(NAMES) - set(seen) <= {name for name in NAMES if cluster.store.shard_of(JobId(name)) in missing}

    asyncio.run(read(query))


async def test_stats_tell_that_a_shard_is_down(cluster: Cluster) -> None:
    """With the slots that it holds."""
    cluster.shards["s1"].out = True
    stats = {one.shard: one for one in await cluster.store.stats()}
    assert {name: one.state for name, one in stats.items()} == {"s0": "up", "s1": "down", "s2": "up"}
    assert stats["s1"].slots == len(cluster.ring.slots_of("s1"))


async def test_now_is_any_live_shards(cluster: Cluster) -> None:
    """Unless one is named."""
    cluster.shards["s0"].out = True
    assert await cluster.store.now() == T0
    with pytest.raises(Unavailable):
        await cluster.store.now("s0")
    for shard in cluster.shards.values():
        shard.out = True
    with pytest.raises(Unavailable):
        await cluster.store.now()


async def test_calls_for_live_shards_go_on(cluster: Cluster) -> None:
    """Only what lies on the dead one is unavailable."""
    cluster.shards["s1"].out = True
    alive, dead = cluster.on("s0")[0], cluster.on("s1")[0]
    assert (await cluster.store.get([JobId(alive)]))[0] is not None
    with pytest.raises(Unavailable):
        await cluster.store.get([JobId(dead)])
    with pytest.raises(Unavailable):
        await cluster.store.load([(JobId(alive), T0), (JobId(dead), T0)])


async def test_writes_to_several_shards_stand_where_they_could_be_made(cluster: Cluster) -> None:
    """The error says that not all could; repeating it finds the others done."""
    cluster.shards["s1"].out = True
    items: list[tuple[Job, list[Run]]] = [(job(f"new{i}"), []) for i in range(30)]
    with pytest.raises(Unavailable):
        await cluster.store.create(items)
    cluster.shards["s1"].out = False
    answers = await cluster.store.create(items)
    for (made, _), answer in zip(items, answers, strict=True):
        assert answer == (None if cluster.store.shard_of(made.id) == "s1" else made)


async def test_prune_holds_orphans_back_while_a_shard_may_refer_to_them(cluster: Cluster) -> None:
    """A blob may be shared between shards; once all answer, they are told."""
    code = "sha256:" + "a" * 64
    task = CommandTask(code=code)
    here, there = [next(f"c{i}" for i in range(99) if cluster.store.shard_of(JobId(f"c{i}")) == s) for s in SHARDS[:2]]
    await cluster.store.create([(job(here, task=task), []), (job(there, task=task), [])])
    await cluster.store.change(job(here, version=2), 1, [])
    assert (await cluster.store.prune(10)).orphans == ()
    await cluster.store.change(job(here, task=task, version=3), 2, [])
    await cluster.store.change(job(there, version=2), 1, [])
    await cluster.store.change(job(here, version=4), 3, [])
    cluster.shards["s1"].out = True
    assert (await cluster.store.prune(10)).orphans == ()
    cluster.shards["s1"].out = False
    assert (await cluster.store.prune(10)).orphans == (code,)


async def test_prune_without_any_shard_is_unavailable(cluster: Cluster) -> None:
    """Nothing was looked at."""
    await cluster.store.create([(job("z"), [ended("z")])])
    for shard in cluster.shards.values():
        shard.out = True
    with pytest.raises(Unavailable):
        await cluster.store.prune(10)
