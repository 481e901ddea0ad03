"""The Store port, clause by clause: beat, expired, active, hold, stats, prune, referred, migrate, close."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from conformance.harness import Harness
from conformance.samples import T0, W1, W2, dispatch, ended, job, missed, retry, run, start, succeed, worker
from duly.core.errors import Unavailable
from duly.core.instants import DAY, HOUR, MINUTE, SECOND
from duly.core.model import Attempt, CommandTask, Job, JobId, Keep, Output, Run, RunState, Term, WorkerId
from duly.ports import Pruned, RunQuery


def digest(i: int) -> str:
    """A digest like any other."""
    return f"sha256:{i:064x}"


async def given(harness: Harness, *runs: Run) -> None:
    """One job for each run."""
    await harness.store.create([(job(one.job_id), [one]) for one in runs])


# -- beat ---------------------------------------------------------------------------------------------------


async def test_beat_writes_the_row_with_a_lease_by_the_shards_clock(harness: Harness) -> None:
    """lease_until = the shard's clock + ttl, whatever the worker believes."""
    told = worker(W1, free=3, labels={"gpu": "1"}, functions=("f",), beat_at=1, lease_until=2, clock_offset=-5)
    written = await harness.store.beat(harness.shard(), told, 500)
    assert (written.beat_at, written.lease_until) == (T0, T0 + 500)
    assert (written.free, written.labels, written.functions, written.clock_offset) == (3, {"gpu": "1"}, ("f",), -5)
    [*_, stats] = [s for s in await harness.store.stats() if s.shard == harness.shard()]
    assert stats.workers == (written,)


async def test_beat_again_replaces_the_row(harness: Harness) -> None:
    """The lease moves on."""
    await harness.store.beat(harness.shard(), worker(W1, free=3), 500)
    await harness.passes(400)
    again = await harness.store.beat(harness.shard(), worker(W1, free=1, state="draining"), 500)
    assert (again.free, again.state, again.lease_until) == (1, "draining", T0 + 900)


async def test_beat_after_the_lease_ended_unnoticed_goes_on(harness: Harness) -> None:
    """Nobody took its runs away, so it may come back."""
    await harness.store.beat(harness.shard(), worker(W1), 500)
    await harness.passes(1_000)
    assert (await harness.store.beat(harness.shard(), worker(W1), 500)).lease_until == T0 + 1_500


async def test_beat_of_a_lost_worker_stays_lost(harness: Harness) -> None:
    """With its old lease: it has to come back under a new id."""
    await given(harness, run("a"))
    await harness.store.beat(harness.shard(), worker(W1), 500)
    await harness.store.apply([dispatch(run("a"))])
    await harness.passes(501)
    assert await harness.store.expired(harness.shard(), 10)
    back = await harness.store.beat(harness.shard(), worker(W1), 500)
    assert (back.state, back.lease_until) == ("lost", T0 + 500)
    assert (await harness.store.beat(harness.shard(), worker(W2), 500)).state == "ready"


# -- fleet --------------------------------------------------------------------------------------------------


async def test_fleet_is_what_beats_have_written(harness: Harness) -> None:
    """Every row whole, lost workers' too."""
    shard = harness.shard()
    assert await harness.store.fleet(shard) == []
    first = await harness.store.beat(shard, worker(W1, capacity={"process": 4, "async": 7}, labels={"a": "b"}), 500)
    await given(harness, run("a"))
    await harness.store.apply([dispatch(run("a"))])
    await harness.passes(600)
    second = await harness.store.beat(shard, worker(W2), 500)
    await harness.store.expired(shard, 10)
    found = {row.id: row for row in await harness.store.fleet(shard)}
    assert found == {W1: replace(first, state="lost"), W2: second}


# -- expired ------------------------------------------------------------------------------------------------


async def test_expired_shows_active_runs_of_workers_whose_lease_has_ended(harness: Harness) -> None:
    """Dispatched and running ones, with their jobs and the worker, marked lost; not those of a live worker."""
    names = [name for name in "abcdefghijklmnopq" if harness.shard(name) == harness.shard()][:4]
    await given(harness, *(run(name) for name in names))
    await harness.store.beat(harness.shard(), worker(W1), 500)
    await harness.store.beat(harness.shard(), worker(W2), 5_000)
    out = [dispatch(run(names[0])), dispatch(run(names[1])), dispatch(run(names[2]), W2)]
    await harness.store.apply(out)
    await harness.store.apply([start(out[1].run)])
    assert await harness.store.expired(harness.shard(), 10) == []
    await harness.passes(499)
    assert await harness.store.expired(harness.shard(), 10) == []
    await harness.passes(1)
    found = sorted(await harness.store.expired(harness.shard(), 10), key=lambda item: item[0].job_id)
    lost = worker(W1, beat_at=T0, lease_until=T0 + 500, state="lost")
    assert found == [(out[0].run, job(names[0]), lost), (start(out[1].run).run, job(names[1]), lost)]


async def test_expired_shows_active_runs_of_unknown_workers(harness: Harness) -> None:
    """Without the worker, which never beat here."""
    await given(harness, run("a"))
    await harness.store.apply([dispatch(run("a"))])
    assert await harness.store.expired(harness.shard(), 10) == [(dispatch(run("a")).run, job("a"), None)]


async def test_expired_shows_a_run_again_until_it_is_dealt_with(harness: Harness) -> None:
    """Whoever asked may have died with the answer."""
    await given(harness, run("a"))
    await harness.store.beat(harness.shard(), worker(W1), 500)
    out = dispatch(run("a"))
    await harness.store.apply([out])
    await harness.passes(500)
    assert len(await harness.store.expired(harness.shard(), 10)) == 1
    assert len(await harness.store.expired(harness.shard(), 10)) == 1
    await harness.store.apply([retry(out.run, 0)])
    assert await harness.store.expired(harness.shard(), 10) == []


async def test_expired_keeps_to_the_limit(harness: Harness) -> None:
    """The rest is for the next call."""
    names = [name for name in "abcdefghijklmnopq" if harness.shard(name) == harness.shard()][:3]
    await given(harness, *(run(name) for name in names))
    await harness.store.apply([dispatch(run(name)) for name in names])
    assert len(await harness.store.expired(harness.shard(), 2)) == 2


# -- active -------------------------------------------------------------------------------------------------


async def test_active_shows_what_is_out_in_order_and_page_by_page(harness: Harness) -> None:
    """By (job_id, scheduled_at), strictly after the cursor."""
    names = sorted([f"j{i}" for i in range(100) if harness.shard(f"j{i}") == harness.shard()][:5])
    await harness.store.create([(job(name), [run(name), run(name, 9)]) for name in names])
    await harness.store.apply([dispatch(run(name)) for name in names])
    await harness.store.apply([dispatch(run(names[1], 9)), succeed(dispatch(run(names[3])).run)])
    await harness.store.apply([start(dispatch(run(names[0])).run)])
    expected = [(names[0], 0), (names[1], 0), (names[1], 9), (names[2], 0), (names[4], 0)]
    seen: list[tuple[str, int]] = []
    after = None
    while page := await harness.store.active(harness.shard(), after, 2):
        seen += [(one.job_id, one.scheduled_at - T0) for one, _ in page]
        after = page[-1][0].key
    assert seen == expected
    [(first, of), *_] = await harness.store.active(harness.shard(), None, 1)
    assert (first.state, of) == (RunState.RUNNING, job(names[0]))


# -- hold ---------------------------------------------------------------------------------------------------


async def test_hold_of_a_new_term_gives_the_first_fence(harness: Harness) -> None:
    """Yours for ttl."""
    assert await harness.store.hold(harness.shard(), "x", 100) == Term(owner="x", fence=1, expires_at=T0 + 100)


async def test_hold_by_the_holder_extends_with_the_fence_unchanged(harness: Harness) -> None:
    """From now on."""
    await harness.store.hold(harness.shard(), "x", 100)
    await harness.passes(60)
    assert await harness.store.hold(harness.shard(), "x", 100) == Term(owner="x", fence=1, expires_at=T0 + 160)


async def test_hold_by_another_returns_the_holders_term(harness: Harness) -> None:
    """And changes nothing."""
    mine = await harness.store.hold(harness.shard(), "x", 100)
    await harness.passes(99)
    assert await harness.store.hold(harness.shard(), "y", 100) == mine


@pytest.mark.parametrize("owner", ["x", "y"])
async def test_hold_of_an_expired_term_raises_the_fence(harness: Harness, owner: str) -> None:
    """One higher than any before, for whoever asks, the last holder too."""
    await harness.store.hold(harness.shard(), "x", 100)
    await harness.passes(100)
    assert await harness.store.hold(harness.shard(), owner, 50) == Term(owner=owner, fence=2, expires_at=T0 + 150)


async def test_hold_of_a_released_term_raises_the_fence(harness: Harness) -> None:
    """Release ends it at once."""
    await harness.store.hold(harness.shard(), "x", 100)
    released = await harness.store.hold(harness.shard(), "x", 100, release=True)
    assert released.expires_at <= T0
    assert await harness.store.hold(harness.shard(), "y", 100) == Term(owner="y", fence=2, expires_at=T0 + 100)


async def test_hold_releases_only_the_callers_own(harness: Harness) -> None:
    """Another's release changes nothing, and takes nothing."""
    mine = await harness.store.hold(harness.shard(), "x", 100)
    assert await harness.store.hold(harness.shard(), "y", 100, release=True) == mine
    assert await harness.store.hold(harness.shard(), "z", 100) == mine


# -- stats --------------------------------------------------------------------------------------------------


async def test_stats_count_jobs_and_runs_by_state(harness: Harness) -> None:
    """Through every way in which they come, move and go."""
    names = [name for name in "abcdefghijklmnopqrstuvwxyz" if harness.shard(name) == harness.shard()][:5]
    a, b, c, d, e = names
    await harness.store.create(
        [
            (job(a), [run(a), run(a, 9)]),
            (job(b), [run(b), missed(b, -5)]),
            (job(c), [run(c)]),
            (job(d), [run(d)]),
            (job(e), [run(e)]),
        ]
    )
    await harness.store.create([(job(a), [run(a, 77)])])
    out = [dispatch(run(name)) for name in (a, b, c)]
    await harness.store.apply([*out, dispatch(run(a))])
    await harness.store.apply([start(out[0].run), succeed(out[1].run, (run(b, 60), missed(b, -4)))])
    await harness.store.change(job(d, state="deleted", version=2), 1, [])
    await harness.store.change(job(e, version=2), 1, [run(e, 5), run(e, 6)])
    [stats] = [s for s in await harness.store.stats() if s.shard == harness.shard()]
    assert stats.state == "up"
    assert (stats.jobs, stats.waiting, stats.dispatched, stats.running) == (4, 4, 1, 1)
    assert stats.ended == {"succeeded": 1, "missed": 2}
    assert stats.bytes > 0


async def test_stats_tell_the_term_and_every_shard(harness: Harness) -> None:
    """Each shard has its own."""
    assert [s.term for s in await harness.store.stats()] == [None] * len(harness.store.shards)
    term = await harness.store.hold(harness.shard(), "x", 100)
    stats = await harness.store.stats()
    assert tuple(s.shard for s in stats) == harness.store.shards
    assert [s.term for s in stats if s.shard == harness.shard()] == [term]
    assert sum(s.slots for s in stats) == 4_096


# -- prune --------------------------------------------------------------------------------------------------


async def prune_all(harness: Harness, limit: int = 100) -> tuple[int, int, set[str]]:
    """Prune until there is no more: runs, jobs, orphans."""
    runs = jobs = 0
    orphans: set[str] = set()
    for _ in range(1_000):
        pruned = await harness.store.prune(limit)
        runs, jobs, orphans = runs + pruned.runs, jobs + pruned.jobs, orphans | set(pruned.orphans)
        if not pruned.more:
            return runs, jobs, orphans
    raise AssertionError("prune has no end")


async def left(harness: Harness, name: str) -> list[int]:
    """What is left of a job's runs."""
    page = await harness.store.page_runs(RunQuery(job_id=JobId(name), oldest_first=True, limit=1_000))
    return [one.scheduled_at - T0 for one in page.items]


async def test_prune_keeps_the_newest_runs_of_each_job(harness: Harness) -> None:
    """As many as the job says; other jobs have their own number."""
    few, many = job("a", keep=Keep(runs=3, age=DAY)), job("b", keep=Keep(runs=50, age=DAY))
    await harness.store.create([(few, [ended("a", i) for i in range(10)]), (many, [ended("b", i) for i in range(10)])])
    await harness.passes(SECOND)
    assert await prune_all(harness) == (7, 0, set())
    assert await left(harness, "a") == [7, 8, 9]
    assert await left(harness, "b") == list(range(10))


async def test_prune_removes_runs_older_than_the_job_keeps(harness: Harness) -> None:
    """Counted from their end."""
    await harness.store.create([(job("a", keep=Keep(runs=10, age=100)), [ended("a", i * 10) for i in range(6)])])
    await harness.passes(130)
    assert (await prune_all(harness))[0] == 3
    assert await left(harness, "a") == [30, 40, 50]


async def test_prune_can_keep_nothing(harness: Harness) -> None:
    """runs=0."""
    await harness.store.create([(job("a", keep=Keep(runs=0)), [ended("a", i) for i in range(5)])])
    await harness.passes(SECOND)
    assert (await prune_all(harness))[0] == 5
    assert await left(harness, "a") == []


async def test_prune_leaves_what_ended_ahead_of_its_time(harness: Harness) -> None:
    """Until that has come, or the job is deleted: a changed schedule could come to it again."""
    keep = Keep(runs=0, age=1)
    await harness.store.create([(job("a", keep=keep), [ended("a", 0), ended("a", HOUR, finished_at=T0)])])
    await harness.passes(MINUTE)
    assert (await prune_all(harness))[:2] == (1, 0)
    assert await left(harness, "a") == [HOUR]
    await harness.store.change(job("a", keep=keep, state="deleted", version=2), 1, [])
    assert (await prune_all(harness))[:2] == (1, 1)


async def test_prune_never_touches_waiting_and_active_runs(harness: Harness) -> None:
    """However old."""
    await harness.store.create([(job("a", keep=Keep(runs=0, age=1)), [run("a"), run("a", 1), ended("a", 2)])])
    await harness.store.apply([dispatch(run("a", 1))])
    await harness.passes(50 * DAY)
    assert (await prune_all(harness))[0] == 1
    assert await left(harness, "a") == [0, 1]


async def test_prune_goes_in_steps_of_the_limit(harness: Harness) -> None:
    """`more` until there is no more."""
    jobs: list[tuple[Job, list[Run]]] = [
        (job(name, keep=Keep(runs=1)), [ended(name, i) for i in range(6)]) for name in "abc"
    ]
    await harness.store.create(jobs)
    await harness.passes(SECOND)
    first = await harness.store.prune(4)
    assert 0 < first.runs <= 4 * len(harness.store.shards)
    assert first.runs + (await prune_all(harness, 4))[0] == 15
    assert [await left(harness, name) for name in "abc"] == [[5]] * 3


async def test_prune_of_nothing_says_so(harness: Harness) -> None:
    """Again and again."""
    assert await harness.store.prune(10) == Pruned(0, 0, (), more=False)
    assert await harness.store.prune(10) == Pruned(0, 0, (), more=False)


async def test_prune_removes_deleted_jobs_once_their_history_is_gone(harness: Harness) -> None:
    """Not before, and not while a run is out."""
    keep = Keep(age=100)
    await harness.store.create(
        [(job("a", keep=keep), [ended("a")]), (job("b", keep=keep), [run("b")]), (job("c", labels={"k": "v"}), [])]
    )
    await harness.store.apply([dispatch(run("b"))])
    for name in "abc":
        await harness.store.change(job(name, keep=keep, state="deleted", version=2), 1, [])
    assert (await prune_all(harness))[1] == 1
    assert [row and row.job.id for row in await harness.store.get([JobId(n) for n in "abc"])] == ["a", "b", None]
    await harness.passes(1_000)
    assert (await prune_all(harness))[:2] == (1, 1)
    assert [row and row.job.id for row in await harness.store.get([JobId(n) for n in "abc"])] == [None, "b", None]
    assert await harness.store.load([ended("a").key]) == [None]


async def test_prune_removes_completed_jobs_with_the_last_that_is_kept_of_them(harness: Harness) -> None:
    """Else a million one-time jobs would stay for ever. One that has a run to come stays, and so does a paused one."""
    keep = Keep(age=100)
    over, going, paused = (
        (job("a", keep=keep, labels={"k": "v"}), [ended("a")]),
        (job("b", keep=keep), [ended("b"), run("b", DAY)]),
        (job("c", keep=keep, state="paused"), [ended("c")]),
    )
    await harness.store.create([over, going, paused])
    assert (await prune_all(harness))[:2] == (0, 0)
    await harness.passes(1_000)
    assert (await prune_all(harness))[:2] == (3, 1)
    assert [row and row.job.id for row in await harness.store.get([JobId(n) for n in "abc"])] == [None, "b", "c"]
    assert [stats.jobs for stats in await harness.store.stats() if stats.jobs] in (
        [2],
        [1, 1],
    )  # of one shard, or of three


async def test_prune_forgets_workers_not_heard_of_for_a_day(harness: Harness) -> None:
    """Unless they still hold a run."""
    await given(harness, run("a"))
    silent, holder, live = W1, W2, WorkerId("live")
    for name in (silent, holder):
        await harness.store.beat(harness.shard(), worker(name), 500)
    await harness.store.apply([dispatch(run("a"), holder)])
    await harness.passes(DAY)
    await harness.store.beat(harness.shard(), worker(live), 500)
    await harness.passes(1)
    await prune_all(harness)
    [stats] = [s for s in await harness.store.stats() if s.shard == harness.shard()]
    assert {one.id for one in stats.workers} == {holder, live}


# -- references to blobs ------------------------------------------------------------------------------------


def code_job(name: str, code: int, *inputs: int, version: int = 1, state: str = "active") -> Job:
    """A job that names files."""
    task = CommandTask(code=digest(code), inputs={f"in/{i}": digest(i) for i in inputs})
    return job(name, task=task, version=version, state=state, keep=Keep(age=100))


async def referred(harness: Harness, *numbers: int) -> set[int]:
    """Which of the digests are referred to."""
    found = await harness.store.referred([digest(i) for i in numbers])
    return {int(one[7:], 16) for one in found}


async def test_referred_answers_for_files_of_jobs(harness: Harness) -> None:
    """Code and inputs."""
    await harness.store.create([(code_job("a", 1, 2, 3), []), (code_job("b", 1), [])])
    assert await referred(harness, 1, 2, 3, 4) == {1, 2, 3}
    assert await harness.store.referred([]) == set()


async def test_referred_answers_for_files_of_runs(harness: Harness) -> None:
    """Outputs and logs, also those of earlier attempts, whether the run has ended or waits again."""
    await given(harness, run("a"), run("b"))
    outs = [dispatch(run("a")), dispatch(run("b"))]
    await harness.store.apply(outs)
    tried = Attempt(number=1, worker=W1, state="failed", logs={"stderr": digest(5)})
    await harness.store.apply(
        [
            succeed(
                outs[0].run,
                outputs=(Output(path="o", size=1, digest=digest(1)),),
                logs={"stdout": digest(2)},
                attempts=(Attempt(number=1, worker=W1, state="failed", logs={"stdout": digest(3)}),),
            ),
            retry(outs[1].run, 50, attempts=(tried,)),
        ]
    )
    assert await referred(harness, 1, 2, 3, 4, 5) == {1, 2, 3, 5}


async def test_referred_answers_for_records_that_a_create_brings(harness: Harness) -> None:
    """As when a shard is filled from another."""
    await given(harness, ended("a", logs={"stdout": digest(2)}))
    assert await referred(harness, 2) == {2}


async def test_losers_refer_to_nothing(harness: Harness) -> None:
    """A stale attempt's files are not the run's."""
    await given(harness, run("a"), run("b"))
    stale = succeed(dispatch(run("a"), W2).run, logs={"stdout": digest(1)})
    assert await harness.store.apply([dispatch(run("b")), stale]) == [1]
    assert await referred(harness, 1) == set()


async def test_prune_returns_digests_that_nothing_refers_to_any_more(harness: Harness) -> None:
    """Those of removed runs and jobs; not one that something else still refers to."""
    shared = {"stdout": digest(9)}
    await harness.store.create(
        [
            (code_job("a", 1, 2), [ended("a", logs={"stdout": digest(5), "stderr": digest(1)})]),
            (job("b"), [ended("b", logs=shared)]),
            (job("c", keep=Keep(age=100)), [ended("c", logs=shared)]),
        ]
    )
    await harness.store.change(code_job("a", 1, 2, version=2, state="deleted"), 1, [])
    assert (await prune_all(harness))[2] == set()
    await harness.passes(1_000)
    assert await prune_all(harness) == (2, 2, {digest(1), digest(2), digest(5)})
    assert await referred(harness, 1, 2, 5, 9) == {9}


async def test_prune_returns_digests_that_a_change_left_behind(harness: Harness) -> None:
    """The old code; not an input that stayed."""
    await harness.store.create([(code_job("a", 1, 2), [run("a", DAY)])])
    await harness.store.change(code_job("a", 3, 2, version=2), 1, [run("a", DAY)])
    assert await referred(harness, 1, 2, 3) == {2, 3}
    assert (await prune_all(harness))[2] == {digest(1)}


async def test_files_of_attempts_that_a_run_no_longer_lists_are_kept_as_long_as_the_run(harness: Harness) -> None:
    """Its document names the last attempts only."""
    keep = Keep(age=100)
    await harness.store.create([(job("a", keep=keep), [run("a"), run("a", DAY)])])
    out = dispatch(run("a"))
    await harness.store.apply([out])
    tried = Attempt(number=1, worker=W1, state="failed", logs={"stderr": digest(5)})
    again = retry(out.run, 50, attempts=(tried,))
    await harness.store.apply([again])
    second = dispatch(again.run)
    await harness.store.apply([second])
    await harness.store.apply([succeed(second.run, attempts=())])
    assert (await prune_all(harness))[2] == set()
    assert await referred(harness, 5) == {5}
    await harness.passes(1_000)
    assert (await prune_all(harness))[::2] == (1, {digest(5)})


async def test_prune_returns_digests_of_retries_of_a_deleted_job(harness: Harness) -> None:
    """Their runs went without a record."""
    await given(harness, run("a"))
    out = dispatch(run("a"))
    await harness.store.apply([out])
    tried = Attempt(number=1, worker=W1, state="failed", logs={"stderr": digest(5)})
    await harness.store.apply([retry(out.run, 50, attempts=(tried,))])
    await harness.store.change(job("a", state="deleted", version=2), 1, [])
    assert (await prune_all(harness))[2] == {digest(5)}


async def test_prune_does_not_return_a_digest_that_is_referred_to_again(harness: Harness) -> None:
    """It came back before anyone looked."""
    await harness.store.create([(code_job("a", 1), [run("a", DAY)])])
    await harness.store.change(code_job("a", 2, version=2), 1, [run("a", DAY)])
    await harness.store.create([(code_job("b", 1), [run("b", DAY)])])
    assert (await prune_all(harness))[2] == set()


async def test_prune_returns_orphans_once(harness: Harness) -> None:
    """The next prune takes them as dealt with."""
    await harness.store.create([(code_job("a", 1), [run("a", DAY)])])
    await harness.store.change(code_job("a", 2, version=2), 1, [run("a", DAY)])
    assert (await harness.store.prune(10)).orphans == (digest(1),)
    assert (await harness.store.prune(10)).orphans == ()


# -- migrate, close -----------------------------------------------------------------------------------------


async def test_migrate_again_takes_no_steps(harness: Harness) -> None:
    """The schema is up to date."""
    assert await harness.store.migrate() == 0


async def test_close_makes_later_calls_unavailable(harness: Harness) -> None:
    """Reads and writes; closing again is fine."""
    await given(harness, run("a"))
    await harness.store.close()
    await harness.store.close()
    for call in (
        harness.store.create([(job("b"), [])]),
        harness.store.get([JobId("a")]),
        harness.store.apply([dispatch(run("a"))]),
        harness.store.load([run("a").key]),
        harness.store.due(harness.shard(), T0, None, 1),
        harness.store.now(),
        harness.store.prune(1),
        harness.store.migrate(),
    ):
        with pytest.raises(Unavailable):
            await call
