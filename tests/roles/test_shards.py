"""Several shards, one of which fails: what is created, listed and run meanwhile, and what clients are told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from duly.adapters.sharded_store import ShardedStore
from duly.adapters.sqlite_store import SqliteStore
from duly.core.contract import FunctionSpec, JobSpec
from duly.core.errors import DulyError, NotFound, OutcomeUnknown, Overloaded, StorageFull, Unavailable, WrongShard
from duly.core.instants import SECOND
from duly.core.model import JobId
from duly.core.ring import map_slots
from duly.ports import Clock, JobQuery, Store
from roles.stage import Stage

SHARDS = ("s0", "s1", "s2")
SPEC = JobSpec(task=FunctionSpec(name="m:f"), schedule="in 1h")
BODY = msgspec.Raw(msgspec.json.encode(SPEC))


class Faulty:
    """A shard that fails as it is told: every call, or one verb; before the effect, or after it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.shards = store.shards
        self.fails: DulyError | None = None
        self.verb = ""  # the one that fails; all of them if empty
        self.after = False  # it takes effect and fails then

    def dies(self) -> None:
        """No call is answered any more."""
        self.fails, self.verb = Unavailable("dead"), ""

    def lives(self) -> None:
        """All is well again."""
        self.fails = None

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.store, name)

        async def answer(*args: Any, **named: Any) -> Any:
            fails = self.fails if self.verb in ("", name) else None
            if fails is not None and not self.after:
                raise fails
            result = await verb(*args, **named)
            if fails is not None:
                raise fails
            return result

        return answer


class Shards:
    """Three of them under a stage."""

    def __init__(self) -> None:
        self.faulty: dict[str, Faulty] = {}

    def __getitem__(self, name: str) -> Faulty:
        return self.faulty[name]

    def open(self, clock: Clock) -> Store:
        """The stage's store."""
        for name in SHARDS:
            self.faulty[name] = Faulty(SqliteStore(":memory:", clock=clock, shard=name))
        return ShardedStore(cast("dict[str, Store]", self.faulty), map_slots(dict.fromkeys(SHARDS, 1.0)), clock=clock)

    async def count(self, shard: str) -> int:
        """Jobs that are really there."""
        return (await self.faulty[shard].store.stats())[0].jobs


@pytest.fixture
def shards() -> Shards:
    """Opened by the stage."""
    return Shards()


@pytest.fixture
async def stage(shards: Shards, tmp_path: Path) -> AsyncIterator[Stage]:
    """Three shards, a scheduler each, one worker."""
    async with Stage(tmp_path, store=shards.open) as made:
        yield made
        for faulty in shards.faulty.values():
            faulty.lives()


def key_on(stage: Stage, shard: str) -> str:
    """An idempotency key whose job lies on a shard."""
    from duly.core.job_ids import keyed_job_id

    return next(key for key in map(str, range(999)) if stage.store.shard_of(keyed_job_id("default", key)) == shard)


REFUSALS = [Unavailable("dead"), WrongShard(epoch=9), Overloaded(), StorageFull()]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda error: error.code)
async def test_a_job_without_a_key_is_created_on_another_shard(
    stage: Stage, shards: Shards, refusal: DulyError
) -> None:
    """Every time, while one shard takes it; it can be read at once."""
    shards["s0"].dies()
    shards["s1"].fails, shards["s1"].verb = refusal, "create"
    for _ in range(40):
        job, made = await stage.servicer.create_job(SPEC)
        assert made
        assert stage.store.shard_of(JobId(job.id)) == "s2"
        assert await stage.servicer.get_job(job.id) == job
    assert [await shards.count(name) for name in SHARDS] == [0, 0, 40]


async def test_without_any_shard_it_is_unavailable(stage: Stage, shards: Shards) -> None:
    """With a time to come back; each shard was asked, in a batch too."""
    for name in SHARDS:
        shards[name].dies()
    with pytest.raises(Unavailable, match="dead") as told:
        await stage.servicer.create_job(SPEC)
    assert told.value.retry_after
    batch = await stage.servicer.create_jobs([BODY] * 3)
    assert [item.status for item in batch.results] == [503] * 3


async def test_a_job_with_a_key_waits_for_its_shard(stage: Stage, shards: Shards) -> None:
    """503 and when to come back; there is but one job for a key, wherever it was tried."""
    shards["s1"].dies()
    key, other = key_on(stage, "s1"), key_on(stage, "s2")
    for _ in range(3):
        with pytest.raises(Unavailable) as told:
            await stage.servicer.create_job(SPEC, key=key)
        assert (told.value.status, told.value.retry_after) == (503, 1.0)
    assert (await stage.servicer.create_job(SPEC, key=other))[1]
    shards["s1"].lives()
    first, made = await stage.servicer.create_job(SPEC, key=key)
    again, made_again = await stage.servicer.create_job(SPEC, key=key)
    assert (made, made_again, again.id) == (True, False, first.id)


@pytest.mark.parametrize("written", [True, False])
async def test_what_may_have_been_written_is_not_created_again(stage: Stage, shards: Shards, written: bool) -> None:
    """Not under another id, for there may be two then."""
    for name in SHARDS:
        shards[name].fails, shards[name].verb, shards[name].after = OutcomeUnknown(), "create", written
    with pytest.raises(OutcomeUnknown):
        await stage.servicer.create_job(SPEC)
    assert sum([await shards.count(name) for name in SHARDS]) == int(written)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda error: error.code)
async def test_of_a_batch_only_what_a_shard_did_not_take_is_created_elsewhere(
    stage: Stage, shards: Shards, refusal: DulyError
) -> None:
    """Each job once, under the id that is told."""
    shards["s1"].fails, shards["s1"].verb = refusal, "create"
    batch = await stage.servicer.create_jobs([BODY] * 60)
    assert (batch.created, batch.failed) == (60, 0)
    counts = [await shards.count(name) for name in SHARDS]
    assert (sum(counts), counts[1]) == (60, 0)
    assert len({item.id for item in batch.results}) == 60
    for item in batch.results:
        assert (await stage.servicer.get_job(item.id or "")).id == item.id


async def test_of_a_batch_what_may_have_been_written_is_told_so(stage: Stage, shards: Shards) -> None:
    """And the rest is created."""
    shards["s1"].fails, shards["s1"].verb, shards["s1"].after = OutcomeUnknown(), "create", True
    shards["s2"].dies()
    batch = await stage.servicer.create_jobs([BODY] * 60)
    unknown = [item for item in batch.results if item.error is not None]
    assert {item.error.code for item in unknown if item.error} == {"outcome_unknown"}
    counts = [await shards.count(name) for name in SHARDS]
    assert (sum(counts), counts[1], counts[2]) == (60, len(unknown), 0)
    assert batch.created == counts[0] > 0


async def test_lists_say_which_shard_is_missing(stage: Stage, shards: Shards) -> None:
    """Jobs, running ones, runs, counts, workers; what is on the others is there."""
    stage.script.lasts = lambda _: 60 * SECOND
    made = [await stage.create(f"j{i}", "now") for i in range(9)]
    await stage.advance(SECOND)
    shards["s1"].dies()
    there = {job.id for job in made if stage.store.shard_of(JobId(job.id)) != "s1"}
    assert 0 < len(there) < 9
    jobs = await stage.servicer.list_jobs(JobQuery())
    running = await stage.servicer.running_jobs(JobQuery())
    assert {job.id for job in jobs.items} == there
    assert {one.job.id for one in running.items} <= there
    for page in (jobs, running, await stage.servicer.stats(), await stage.servicer.workers()):
        assert (page.partial, page.missing_shards) == (True, ["s1"])


async def test_running_jobs_are_partial_when_a_shard_dies_in_between(stage: Stage, shards: Shards) -> None:
    """Between the page of the jobs and that of their runs."""
    stage.script.lasts = lambda _: 60 * SECOND
    for i in range(4):
        await stage.create(f"j{i}", "now")
    await stage.advance(SECOND)
    shards["s1"].fails, shards["s1"].verb = Unavailable("dead"), "page_runs"
    running = await stage.servicer.running_jobs(JobQuery())
    assert all(stage.store.shard_of(JobId(one.job.id)) != "s1" for one in running.items)
    assert running.partial == (running.missing_shards == ["s1"])


async def test_a_change_is_not_decided_on_runs_that_were_not_told(stage: Stage, shards: Shards) -> None:
    """A shard that is silent for a moment would else have lost the job's next run."""
    job = await stage.create("a", "every 10s")
    home = shards[stage.store.shard_of(JobId(job.id))]
    home.fails, home.verb = Unavailable("for a moment"), "page_runs"
    with pytest.raises(Unavailable):
        await stage.servicer.update_job(job.id, {"priority": 9})
    home.lives()
    assert await stage.words(job) == ["waiting"]


async def test_jobs_of_the_other_shards_start_in_time(stage: Stage, shards: Shards) -> None:
    """Each shard has its scheduler; those of the dead one go on once it is back."""
    jobs = {}
    while len(jobs) < 3:
        job = await stage.create(f"j{len(jobs)}", "every 1s")
        jobs.setdefault(stage.store.shard_of(JobId(job.id)), job)
    for other in (await stage.servicer.list_jobs(JobQuery())).items:
        if other.id not in {job.id for job in jobs.values()}:
            await stage.servicer.delete_job(other.id)
    await stage.advance(3 * SECOND)
    shards["s1"].dies()
    before = {shard: len(stage.started(jobs[shard].name)) for shard in SHARDS}
    await stage.advance(20 * SECOND)
    assert len(stage.started(jobs["s1"].name)) <= before["s1"] + 1
    for shard in ("s0", "s2"):
        runs = await stage.runs(jobs[shard])
        ended = [run for run in runs if run.state.terminal]
        assert len(ended) >= before[shard] + 19
        assert max(run.lateness or 0 for run in ended) == 0
    shards["s1"].lives()
    await stage.advance(10 * SECOND)
    assert len(stage.started(jobs["s1"].name)) >= before["s1"] + 5


async def test_one_of_several_servicers_is_ready_while_one_shard_answers(stage: Stage, shards: Shards) -> None:
    """Alone, it has to say what is missing."""
    assert await stage.servicer.ready() == []
    shards["s0"].dies()
    shards["s1"].dies()
    assert await stage.servicer.ready() == ["shard s0 does not answer", "shard s1 does not answer"]
    stage.servicer.alone = False
    assert await stage.servicer.ready() == []
    await stage.node.worker.stop()
    await stage.advance(10 * SECOND)
    assert await stage.servicer.ready() == []
    shards["s2"].dies()
    assert await stage.servicer.ready() == ["no shard answers"]


async def test_a_shard_that_dies_while_it_is_looked_at_does_not_answer(stage: Stage, shards: Shards) -> None:
    """The others are looked at all the same."""
    shards["s1"].fails, shards["s1"].verb = Unavailable("dead"), "now"
    assert await stage.servicer.missing() == ["shard s1 does not answer"]


async def test_by_id_a_job_of_a_dead_shard_is_unavailable_not_unknown(stage: Stage, shards: Shards) -> None:
    """404 would be a lie."""
    job = await stage.create("a", "in 1h")
    home = stage.store.shard_of(JobId(job.id))
    nothing = next(name for name in map(str, range(99)) if stage.store.shard_of(JobId(name)) != home)
    shards[home].dies()
    calls: list[Callable[[], Any]] = [
        lambda: stage.servicer.get_job(job.id),
        lambda: stage.servicer.delete_job(job.id),
        lambda: stage.servicer.trigger_job(job.id),
    ]
    for call in calls:
        with pytest.raises(Unavailable):
            await call()
    with pytest.raises(NotFound):
        await stage.servicer.get_job(nothing)
