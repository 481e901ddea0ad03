"""The servicer's use-cases: idempotency, triggers, bulk actions, explanations, waits, retention."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from duly.core.contract import BulkFilter, BulkSpec, CommandSpec, FunctionSpec, JobSpec, PreviewSpec
from duly.core.errors import (
    CodeMissing,
    Conflict,
    IdempotencyKeyReused,
    InvalidInput,
    NotFound,
    PreconditionFailed,
)
from duly.core.instants import HOUR, MINUTE, SECOND
from duly.core.model import Failure
from duly.ports import JobQuery, Pruned
from duly.roles.keeper import Keeper
from roles.stage import Stage

SPEC = JobSpec(task=FunctionSpec(name="m:f"), schedule="every 10s")


async def test_a_key_makes_one_job(stage: Stage) -> None:
    """The same key and body find the first job; another body is refused; another namespace is another job."""
    first, made = await stage.servicer.create_job(SPEC, key="k", body_digest="a")
    again, made_again = await stage.servicer.create_job(SPEC, key="k", body_digest="a")
    assert (made, made_again, again.id) == (True, False, first.id)
    with pytest.raises(IdempotencyKeyReused):
        await stage.servicer.create_job(SPEC, key="k", body_digest="b")
    other, _ = await stage.servicer.create_job(SPEC, key="k", body_digest="b", namespace="other")
    assert other.id != first.id


async def test_a_namespace_hides_what_is_not_its_own(stage: Stage) -> None:
    """A job of another namespace does not exist for the caller."""
    job, _ = await stage.servicer.create_job(SPEC, namespace="theirs")
    with pytest.raises(NotFound):
        await stage.servicer.get_job(job.id, namespace="ours")
    with pytest.raises(NotFound):
        await stage.servicer.delete_job(job.id, namespace="ours")
    assert (await stage.servicer.list_jobs(JobQuery(namespace="ours"))).items == []


async def test_what_cannot_run_is_refused_at_once(stage: Stage) -> None:
    """Long past, never due, or naming blobs that are not there."""
    for schedule in ("at 2020-01-01T00:00:00Z", "RRULE:FREQ=DAILY;UNTIL=20200101T000000Z"):
        with pytest.raises(InvalidInput):
            await stage.servicer.create_job(msgspec.structs.replace(SPEC, schedule=schedule))
    task = CommandSpec(argv=["x"], code="sha256:" + "0" * 64, inputs={"a": "sha256:" + "1" * 64})
    with pytest.raises(CodeMissing) as caught:
        await stage.servicer.create_job(JobSpec(task=task, schedule="now"))
    assert {error.pointer for error in caught.value.errors} == {"/task/code", "/task/inputs/a"}


async def test_a_batch_tells_each_ones_fate(stage: Stage) -> None:
    """Two good ones around a bad one."""
    bodies = [
        msgspec.Raw(b'{"task": {"kind": "function", "name": "m:f"}, "schedule": "now"}'),
        msgspec.Raw(b'{"task": {"kind": "function", "name": "m:f"}, "schedule": "nonsense"}'),
        msgspec.Raw(b'{"task": {"kind": "function", "name": "m:f"}, "schedule": "in 5m"}'),
    ]
    answer = await stage.servicer.create_jobs(bodies)
    assert [item.status for item in answer.results] == [201, 422, 201]
    assert (answer.created, answer.failed) == (2, 1)
    error = answer.results[1].error
    assert error is not None
    assert error.errors[0].pointer == "/jobs/1/schedule"


async def test_if_match_and_deleted(stage: Stage) -> None:
    """A version that has passed is refused; a deleted job takes no change, and deleting it again is harmless."""
    job = await stage.create("v", "every 10s")
    changed = await stage.servicer.update_job(job.id, {"priority": 9}, if_version=1)
    assert (changed.version, changed.priority) == (2, 9)
    with pytest.raises(PreconditionFailed):
        await stage.servicer.update_job(job.id, {"priority": 1}, if_version=1)
    await stage.servicer.delete_job(job.id)
    await stage.servicer.delete_job(job.id)
    with pytest.raises(Conflict):
        await stage.servicer.update_job(job.id, {"priority": 1})
    assert (await stage.servicer.get_job(job.id)).state == "deleted"


async def test_trigger_cancel_retry(stage: Stage) -> None:
    """A run outside the schedule; one that has ended can be run again, one that has not cannot."""
    job = await stage.create("t", "0 0 1 1 *", max_runs=1)
    run = await stage.servicer.trigger_job(job.id)
    with pytest.raises(Conflict):
        await stage.servicer.retry_run(run.id)
    await stage.advance(SECOND)
    ended = await stage.servicer.get_run(run.id)
    assert (ended.state, ended.manual) == ("succeeded", True)
    with pytest.raises(Conflict):
        await stage.servicer.cancel_run(run.id)
    again = await stage.servicer.retry_run(run.id)
    assert again.retry_of == run.id
    await stage.advance(SECOND)
    assert (await stage.servicer.get_run(again.id)).state == "succeeded"
    assert (await stage.servicer.get_job(job.id)).next_run_at == "2028-01-01T00:00:00.000000Z"


async def test_cancelling_a_waiting_run_goes_on_with_the_next(stage: Stage) -> None:
    """One occurrence is dropped, the schedule is not."""
    job = await stage.create("w", "every 10s")
    (run,) = await stage.runs(job)
    assert (await stage.servicer.cancel_run(run.id)).state == "cancelled"
    await stage.until(21 * SECOND)
    assert stage.started("w") == [20]


async def test_bulk(stage: Stage) -> None:
    """Counted first, then done; no filter is refused."""
    for index in range(5):
        await stage.create(f"b{index}", "every 1h", labels={"team": "ops" if index % 2 else "web"})
    ops = BulkFilter(label=["team:ops"])
    dry = await stage.servicer.bulk(BulkSpec(filter=ops, action="pause", dry_run=True))
    assert (dry.matched, dry.changed) == (2, 0)
    done = await stage.servicer.bulk(BulkSpec(filter=ops, action="pause"))
    assert (done.matched, done.changed) == (2, 2)
    paused = await stage.servicer.list_jobs(JobQuery(state="paused"))
    assert sorted(job.name for job in paused.items) == ["b1", "b3"]
    with pytest.raises(InvalidInput):
        await stage.servicer.bulk(BulkSpec(filter=BulkFilter(), action="delete"))


async def test_waiting_for_a_run(stage: Stage) -> None:
    """Woken by the commit of its end; or given as it is when time is up."""
    stage.script.lasts = lambda held: 3 * SECOND
    job = await stage.create("x", "in 1s")
    (run,) = await stage.runs(job)
    short = asyncio.create_task(stage.servicer.wait_run(run.id, timeout=2 * SECOND))
    long = asyncio.create_task(stage.servicer.wait_run(run.id, timeout=60 * SECOND))
    await stage.advance(10 * SECOND)
    assert (await short).state == "running"
    assert (await long).state == "succeeded"


async def test_explanations(stage: Stage) -> None:
    """Why it has not started, why it was late, what retried it."""
    far = await stage.create("far", "in 1h")
    lonely = await stage.create("lonely", "in 1s", requires={"zone": "moon"})
    stage.script.fails = lambda held: Failure(kind="exception", message="no") if held.attempt == 1 else None
    flaky = await stage.create("flaky", "in 1s")
    await stage.until(30 * SECOND)
    told = {job.name: await stage.servicer.explain_run((await stage.runs(job))[0].id) for job in (far, lonely, flaky)}
    assert "not due yet" in told["far"].summary
    assert "zone=moon" in told["lonely"].summary
    assert any("Attempt 1" in fact and "exception: no" in fact for fact in told["flaky"].facts)


async def test_events_tell_a_jobs_life(stage: Stage) -> None:
    """Created, started or finished, deleted; a stream can go on from where it was."""
    seen: list[tuple[str, str]] = []

    async def watch(after: str | None) -> None:
        async for event in stage.servicer.events(after):
            seen.extend([(event.id, event.type)])

    watching = asyncio.create_task(watch(None))
    await stage.advance(1000)
    job = await stage.create("e", "in 1s")
    await stage.advance(2 * SECOND)
    await stage.servicer.delete_job(job.id)
    await stage.advance(1000)
    watching.cancel()
    kinds = [kind for _, kind in seen]
    assert kinds[0] == "job.created"
    assert "run.finished" in kinds
    assert kinds[-1] == "job.deleted"
    first, missed = seen[0][0], seen[1:]
    seen.clear()
    again = asyncio.create_task(watch(first))
    await stage.advance(1000)
    again.cancel()
    assert seen == missed


async def test_ready_says_what_is_missing(stage: Stage) -> None:
    """Up with a scheduler and a worker; without a worker it says so."""
    assert await stage.servicer.ready() == []
    await stage.node.worker.stop()
    await stage.advance(10 * SECOND)
    assert await stage.servicer.ready() == ["shard s0 has no worker"]


async def test_preview(stage: Stage) -> None:
    """The next times, local too, with the ones that a clock change moves marked."""
    view = stage.servicer.preview(
        PreviewSpec(schedule="30 2 * * *", timezone="Europe/Berlin", from_="2027-03-27T00:00:00Z", count=2)
    )
    assert [item.moved_by_dst for item in view.items] == [False, True]
    assert view.items[1].at == "2027-03-28T01:00:00.000000Z"


async def test_retention_keeps_what_the_job_says(stage: Stage) -> None:
    """Two runs are kept of many; blobs that nothing names go, those that a job names stay."""
    job = await stage.create("k", "every 10s", keep={"runs": 2, "for": "1d"})
    orphan, _ = await stage.node.blobs.put(b"nobody", limit=100)
    used, _ = await stage.node.blobs.put(b"somebody", limit=100)
    task = CommandSpec(argv=["x"], inputs={"a": used})
    await stage.servicer.create_job(JobSpec(task=task, schedule="in 1d", keep=SPEC.keep))
    await stage.until(2 * MINUTE)
    keeper = Keeper(store=stage.store, blobs=stage.node.blobs, clock=stage.clock)
    await asyncio.gather(keeper.tidy(unused_for=-HOUR), stage.advance(10 * SECOND))
    words = await stage.words(job)
    assert words.count("succeeded") <= 3
    assert await stage.node.blobs.size(used) == len(b"somebody")
    assert await stage.node.blobs.size(orphan) is None


async def test_retention_that_is_behind_takes_larger_steps(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that outlasts the time to the next doubles the steps, up to a bound; one in time halves them again."""
    prune, asked = stage.store.prune, list[int]()
    lasts = 2 * MINUTE

    async def slow(limit: int) -> Pruned:
        asked.append(limit)
        await stage.advance(lasts)
        return await prune(limit)

    monkeypatch.setattr(stage.store, "prune", slow)
    keeper = Keeper(store=stage.store, blobs=stage.node.blobs, clock=stage.clock, interval=MINUTE)
    for _ in range(6):
        await keeper.tidy()
    lasts = SECOND
    for _ in range(5):
        await keeper.tidy()
    assert asked == [1_000, 2_000, 4_000, 8_000, 8_000, 8_000, 8_000, 4_000, 2_000, 1_000, 1_000]
