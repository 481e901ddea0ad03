"""History by the week: what is dropped, what is deleted, and what outlasts its time by how much (decision 0013)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from conformance.postgres import DatabaseClock, databases
from conformance.samples import T0, dispatch, ended, job, missed, run, succeed
from duly.adapters import postgres_prune
from duly.adapters.postgres_prune import LONG_AGE
from duly.adapters.postgres_store import PostgresStore
from duly.core.instants import DAY, HOUR, WEEK
from duly.core.model import JobId, Keep
from duly.ports import RunQuery

WEEK_0 = T0 // WEEK  # the week of T0
DEFAULT = Keep().age
FILE = "sha256:" + "5" * 64


@pytest.fixture
def clock() -> DatabaseClock:
    """The shard's."""
    return DatabaseClock(databases().clock_file, T0)


@pytest.fixture
async def store(clock: DatabaseClock) -> AsyncIterator[PostgresStore]:
    """On a database of its own weeks: they come and go here."""
    db = databases().reset_weeks("s0", T0)
    made = PostgresStore(db, shard="s0", clock=clock)
    yield made
    await made.close()
    databases().reset_weeks("s0", T0)


def weeks() -> list[int]:
    """The weeks that have a partition, counted from that of T0."""
    rows = (
        databases()
        .connection("s0")
        .execute("select substr(relname, 10)::bigint from pg_class where relname ~ '^history_w[0-9]+$' order by 1")
    )
    return [int(str(week)) - WEEK_0 for (week,) in rows]


def stray() -> int:
    """Rows in the default partition."""
    [(n,)] = databases().connection("s0").execute("select count(*) from duly.history_strays")
    return int(str(n))


async def prune_all(store: PostgresStore) -> tuple[int, set[str]]:
    """Until there is no more: runs and orphans."""
    runs, orphans = 0, set[str]()
    while True:
        pruned = await store.prune(100)
        runs, orphans = runs + pruned.runs, orphans | set(pruned.orphans)
        if not pruned.more:
            return runs, orphans


async def left(store: PostgresStore, name: str) -> list[int]:
    """What is left of a job's runs."""
    page = await store.page_runs(RunQuery(job_id=JobId(name), oldest_first=True, limit=1_000))
    return [one.scheduled_at - T0 for one in page.items]


# -- weeks --------------------------------------------------------------------------------------------------


async def test_weeks_are_made_ahead(store: PostgresStore, clock: DatabaseClock) -> None:
    """By every prune that finds it has come to be time."""
    assert weeks() == []
    await store.prune(10)
    assert weeks() == [-1, 0, 1, 2]
    await clock.advance(WEEK)
    await store.prune(10)
    assert weeks() == [-1, 0, 1, 2, 3]


async def test_what_came_before_its_week_is_moved_into_it(store: PostgresStore) -> None:
    """Nothing fails for want of a partition; and nothing is opened again for having been moved."""
    files = {"stdout": FILE}
    runs = [ended("a", 1, logs=files), ended("a", 100 * WEEK), ended("a", -100 * WEEK)]
    await store.create([(job("a", keep=Keep(age=1_000 * WEEK)), runs)])
    assert stray() == 3
    await store.prune(10)
    assert stray() == 2
    assert await left(store, "a") == [-100 * WEEK, 1, 100 * WEEK]
    assert await store.referred([FILE]) == {FILE}
    [pair] = await store.load([ended("a", 1).key])
    assert pair is not None
    assert pair[0] == ended("a", 1, logs=files)


async def test_a_run_is_unique_over_all_weeks(store: PostgresStore) -> None:
    """The key names one partition."""
    await store.prune(10)
    old = ended("a", -2 * DAY)
    await store.create([(job("a"), [old, run("a")])])
    assert await store.apply([dispatch(run("a"), opened=(run("a", -2 * DAY), missed("a", -2 * DAY)))]) == []
    assert await left(store, "a") == [-2 * DAY, 0]


async def test_pages_go_through_all_weeks_in_order(store: PostgresStore) -> None:
    """Strays among them, both ways."""
    await store.prune(10)
    times = [-100 * WEEK, -WEEK, -DAY, 0, DAY, WEEK, 2 * WEEK, 100 * WEEK]
    await store.create([(job("a"), [ended("a", at) for at in times])])
    for oldest_first in (True, False):
        seen: list[int] = []
        cursor = None
        while True:
            page = await store.page_runs(RunQuery(oldest_first=oldest_first, limit=3, cursor=cursor))
            seen += [one.scheduled_at - T0 for one in page.items]
            cursor = page.next
            if cursor is None:
                break
        assert seen == sorted(times, reverse=not oldest_first)


# -- dropping -----------------------------------------------------------------------------------------------


async def test_a_week_that_is_over_is_dropped(store: PostgresStore, clock: DatabaseClock) -> None:
    """Once its last run is older than its job keeps; its files are let go of."""
    await store.prune(10)
    await store.create([(job("a"), [ended("a", i * HOUR, logs={"stdout": FILE}) for i in range(5)])])
    await clock.advance(DEFAULT)
    assert await prune_all(store) == (0, set())
    assert 0 in weeks()
    await clock.advance(5 * HOUR + 10)
    assert await prune_all(store) == (5, {FILE})
    assert 0 not in weeks()
    assert await left(store, "a") == []
    assert await store.referred([FILE]) == set()


async def test_runs_that_are_merely_too_old_are_left_to_their_week(store: PostgresStore, clock: DatabaseClock) -> None:
    """While a run of the same week is still to be kept none is deleted."""
    await store.prune(10)
    early, late = ended("a", 0), ended("a", DAY)
    assert early.scheduled_at // WEEK == late.scheduled_at // WEEK
    await store.create([(job("a"), [early, late])])
    await clock.advance(DEFAULT + DAY)
    assert await prune_all(store) == (0, set())
    assert await left(store, "a") == [0, DAY]
    await clock.advance(HOUR)
    assert (await prune_all(store))[0] == 2


async def test_no_run_outlasts_its_time_by_more_than_a_week(store: PostgresStore, clock: DatabaseClock) -> None:
    """Where another job keeps something of that week for longer, they are deleted by row."""
    await store.prune(10)
    await store.create([(job("a"), [ended("a")]), (job("b", keep=Keep(age=100 * WEEK)), [ended("b")])])
    await clock.advance(DEFAULT + WEEK)
    assert (await prune_all(store))[0] == 0
    await clock.advance(HOUR)
    assert (await prune_all(store))[0] == 1
    assert (await left(store, "a"), await left(store, "b")) == ([], [0])
    assert 0 in weeks()
    await clock.advance(100 * WEEK)
    assert (await prune_all(store))[0] == 1
    assert 0 not in weeks()


async def test_jobs_that_keep_for_a_short_time_are_pruned_exactly(store: PostgresStore, clock: DatabaseClock) -> None:
    """By row, at once."""
    await store.prune(10)
    short = Keep(age=LONG_AGE - 1)
    await store.create([(job("a", keep=short), [ended("a", 0), ended("a", HOUR)])])
    await clock.advance(LONG_AGE + 10)
    assert (await prune_all(store))[0] == 1
    assert await left(store, "a") == [HOUR]


async def test_what_is_beyond_the_number_kept_is_deleted_at_once(store: PostgresStore, clock: DatabaseClock) -> None:
    """However long the job keeps."""
    await store.prune(10)
    await store.create([(job("a", keep=Keep(runs=2)), [ended("a", i) for i in range(9)])])
    await clock.advance(HOUR)
    assert (await prune_all(store))[0] == 7
    assert await left(store, "a") == [7, 8]


async def test_history_of_a_job_that_is_gone_keeps_no_week(store: PostgresStore, clock: DatabaseClock) -> None:
    """It cannot be asked for."""
    await store.prune(10)
    await store.create([(job("a", keep=Keep(age=1_000 * WEEK)), [ended("a")])])
    databases().connection("s0").execute("delete from duly.job")
    await clock.advance(LONG_AGE + 2 * WEEK)
    await prune_all(store)
    assert 0 not in weeks()


async def test_a_week_is_not_read_again_before_it_can_be_over(
    store: PostgresStore, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found in it says until when."""
    await store.prune(10)
    await store.create([(job("a", keep=Keep(age=50 * WEEK)), [ended("a")])])
    read, looked = store._pool.read, list[int]()

    async def noted(sql: str, *args: object, **options: Any) -> object:
        if sql == postgres_prune.SQL["week_kept_until"]:
            looked.append(int(str(args[0])) - WEEK_0)
        return await read(sql, *args, **options)

    monkeypatch.setattr(store._pool, "read", noted)
    for _ in range(20):
        await clock.advance(3 * WEEK)
        await prune_all(store)
    assert looked.count(0) == 2
    assert await left(store, "a") == []


async def test_a_reader_of_history_delays_the_drop_and_nothing_else(store: PostgresStore, clock: DatabaseClock) -> None:
    """A backup: the lock is not waited for long, what is deleted by row goes, and the week goes the next time."""
    await store.prune(10)
    await store.create([(job("a"), [ended("a")]), (job("b", keep=Keep(age=DAY)), [ended("b")])])
    await clock.advance(DEFAULT + DAY)
    with psycopg.connect(databases().url("shard-s0")) as backup:
        backup.execute("select from duly.history limit 1")
        assert (await store.prune(100)).runs == 1
        assert 0 in weeks()
        assert (await store.get([JobId("a")]))[0] is not None
    await clock.advance(HOUR)
    assert (await prune_all(store))[0] == 1
    assert 0 not in weeks()


async def test_a_run_that_ends_in_a_week_that_was_dropped(store: PostgresStore, clock: DatabaseClock) -> None:
    """It has waited for months: it is filed among the strays."""
    await store.prune(10)
    await store.create([(job("a"), [run("a")])])
    out = dispatch(run("a"))
    await store.apply([out])
    await clock.advance(DEFAULT + 2 * WEEK)
    await prune_all(store)
    assert 0 not in weeks()
    done = succeed(out.run, finished_at=clock.wall())
    assert await store.apply([done]) == []
    assert await store.load([done.run.key]) == [(done.run, job("a"))]
    assert stray() == 1
    await clock.advance(DEFAULT + WEEK + 1)
    assert (await prune_all(store))[0] == 1
