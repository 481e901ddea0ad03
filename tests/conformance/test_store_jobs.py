"""The Store port, clause by clause: now, create, get, change, page_jobs."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from conformance.harness import Harness
from conformance.samples import SECOND, T0, dispatch, ended, job, missed, retry, run, start, succeed
from duly.core.errors import Malformed
from duly.core.model import CommandTask, JobId, RunState
from duly.ports import Collision, JobQuery, RunQuery

WAITING = RunState.WAITING


async def ids(harness: Harness, **query: Any) -> list[str]:
    """The ids of all pages of a query."""
    found: list[str] = []
    cursor = None
    while True:
        page = await harness.store.page_jobs(JobQuery(**query, cursor=cursor))
        found += [row.job.id for row in page.items]
        cursor = page.next
        if cursor is None:
            return found


# -- now ----------------------------------------------------------------------------------------------------


async def test_now_is_the_shards_clock(harness: Harness) -> None:
    """It is where the clock stands, named shard or not."""
    assert await harness.store.now() == T0
    await harness.passes(7)
    assert await harness.store.now(harness.shard()) == T0 + 7


# -- create -------------------------------------------------------------------------------------------------


async def test_create_writes_the_job_and_its_first_run(harness: Harness) -> None:
    """Both are there when it returns."""
    a = job("a", name="nightly", labels={"team": "x"})
    assert await harness.store.create([(a, [run("a", 60)])]) == [None]
    [row] = await harness.store.get([a.id])
    assert row is not None
    assert row.job == a
    assert await harness.store.load([(a.id, T0 + 60)]) == [(run("a", 60), a)]


async def test_create_of_nothing_writes_nothing(harness: Harness) -> None:
    """No items, no answers."""
    assert await harness.store.create([]) == []


async def test_create_answers_the_job_that_has_the_id_already(harness: Harness) -> None:
    """Nothing of such an item is written, all of the others is."""
    first = job("a", name="first")
    await harness.store.create([(first, [])])
    again = await harness.store.create(
        [(job("b"), [run("b")]), (job("a", name="second", labels={"k": "v"}), [run("a")]), (job("c"), [run("c")])]
    )
    assert again == [None, first, None]
    assert await harness.store.load([(JobId("a"), T0)]) == [None]
    assert await ids(harness, labels=(("k", "v"),)) == []
    assert await ids(harness) == ["a", "b", "c"]
    assert all(await harness.store.load([(JobId("b"), T0), (JobId("c"), T0)]))


async def test_create_with_one_id_twice_writes_the_first(harness: Harness) -> None:
    """The second is told of the first."""
    first = job("a", name="first")
    assert await harness.store.create([(first, []), (job("a", name="second"), [run("a")])]) == [None, first]
    assert await harness.store.load([(JobId("a"), T0)]) == [None]


async def test_create_puts_terminal_runs_into_history(harness: Harness) -> None:
    """They are found finished, and are not due."""
    gone = missed("a", -60)
    await harness.store.create([(job("a"), [gone, run("a", 60)])])
    [found] = await harness.store.load([gone.key])
    assert found is not None
    assert found[0] == gone
    assert [r.key for r, _ in await harness.store.due(harness.shard(), T0 + 60, None, 10)] == [run("a", 60).key]


# -- get ----------------------------------------------------------------------------------------------------


async def test_get_answers_in_the_order_asked_and_none_for_the_unknown(harness: Harness) -> None:
    """Also when one is asked for twice."""
    await harness.store.create([(job(name), []) for name in "abc"])
    rows = await harness.store.get([JobId(name) for name in ("c", "x", "a", "c")])
    assert [row and row.job.id for row in rows] == ["c", None, "a", "c"]


async def test_get_answers_many_at_once(harness: Harness) -> None:
    """More than are looked up on the spot."""
    await harness.store.create([(job(f"j{i:03}"), []) for i in range(100)])
    rows = await harness.store.get([JobId(f"j{i:03}") for i in range(100)])
    assert [row and row.job.id for row in rows] == [f"j{i:03}" for i in range(100)]


async def test_get_returns_deleted_jobs_while_they_are_kept(harness: Harness) -> None:
    """As they are: deleted."""
    await harness.store.create([(job("a"), [])])
    await harness.store.change(job("a", state="deleted", version=2), 1, [])
    [row] = await harness.store.get([JobId("a")])
    assert row is not None
    assert row.job.state == "deleted"


async def test_get_tells_the_earliest_start_that_waits(harness: Harness) -> None:
    """Runs that are out do not count; without a waiting one there is none."""
    await harness.store.create([(job("a"), [run("a", 60), run("a", 30, due_at=T0 + 90)]), (job("b"), [])])
    [a, b] = await harness.store.get([JobId("a"), JobId("b")])
    assert a is not None
    assert b is not None
    assert (a.next_run_at, b.next_run_at) == (T0 + 60, None)
    await harness.store.apply([dispatch(run("a", 60))])
    [a] = await harness.store.get([JobId("a")])
    assert a is not None
    assert a.next_run_at == T0 + 90


async def test_get_tells_the_newest_finished_run_that_started(harness: Harness) -> None:
    """Missed ones after it are passed over."""
    history = [ended("a", 10), ended("a", 20, RunState.FAILED), *(missed("a", 30 + i) for i in range(20))]
    await harness.store.create([(job("a"), history), (job("b"), [missed("b")])])
    [a, b] = await harness.store.get([JobId("a"), JobId("b")])
    assert a is not None
    assert b is not None
    assert a.last_run == history[1]
    assert b.last_run is None


async def test_get_tells_whether_a_run_is_left(harness: Harness) -> None:
    """A waiting or active one is; finished ones are not."""
    await harness.store.create([(job("a"), [run("a")]), (job("b"), [ended("b")])])
    out = dispatch(run("a"))
    await harness.store.apply([out])
    [a, b] = await harness.store.get([JobId("a"), JobId("b")])
    assert a is not None
    assert b is not None
    assert (a.finished, b.finished) == (False, True)
    await harness.store.apply([succeed(out.run)])
    [a] = await harness.store.get([JobId("a")])
    assert a is not None
    assert a.finished


# -- change -------------------------------------------------------------------------------------------------


async def test_change_replaces_the_document_and_the_waiting_runs(harness: Harness) -> None:
    """The waiting run goes, the opened one comes, in one transaction."""
    await harness.store.create([(job("a"), [run("a", 60)])])
    changed = job("a", name="new", priority=9, version=2, labels={"k": "v"}, namespace="ns", schedule="@daily")
    opened = run("a", 90, priority=9, job_version=2)
    assert await harness.store.change(changed, 1, [opened]) == changed
    [row] = await harness.store.get([changed.id])
    assert row is not None
    assert row.job == changed
    assert await harness.store.load([(changed.id, T0 + 60), opened.key]) == [None, (opened, changed)]
    assert await ids(harness, labels=(("k", "v"),), namespace="ns", name="new", schedule="@daily") == ["a"]


async def test_change_opens_the_same_instant_anew(harness: Harness) -> None:
    """A waiting run at the instant of an opened one is replaced, not a collision."""
    await harness.store.create([(job("a"), [run("a", 60)])])
    opened = run("a", 60, priority=9, due_at=T0 + 70)
    await harness.store.change(job("a", version=2), 1, [opened])
    [found] = await harness.store.load([opened.key])
    assert found is not None
    assert found[0] == opened


async def test_change_leaves_retries_and_manual_runs(harness: Harness) -> None:
    """Only waiting runs that never started and come from the schedule are replaced."""
    await harness.store.create([(job("a"), [run("a", 10), run("a", 20), run("a", 30, manual=True, ordinal=0)])])
    out = dispatch(run("a", 10))
    await harness.store.apply([out])
    await harness.store.apply([retry(out.run, 500)])
    await harness.store.change(job("a", version=2), 1, [run("a", 40)])
    found = await harness.store.load([(JobId("a"), T0 + at) for at in (10, 20, 30, 40)])
    assert [pair is not None for pair in found] == [True, False, True, True]


async def test_change_leaves_active_runs(harness: Harness) -> None:
    """What is out stays out."""
    await harness.store.create([(job("a"), [run("a", 10)])])
    await harness.store.apply([dispatch(run("a", 10))])
    await harness.store.change(job("a", version=2), 1, [])
    [found] = await harness.store.load([run("a", 10).key])
    assert found is not None
    assert found[0].state == RunState.DISPATCHED


async def test_change_keeping_the_waiting_runs_adds_the_opened(harness: Harness) -> None:
    """As for a run by hand."""
    await harness.store.create([(job("a"), [run("a", 60)])])
    by_hand = run("a", 5, manual=True, ordinal=0)
    await harness.store.change(job("a"), 1, [by_hand], keep_waiting=True)
    assert all(await harness.store.load([by_hand.key, run("a", 60).key]))


async def test_change_keeping_the_waiting_runs_leaves_one_of_the_same_instant(harness: Harness) -> None:
    """It waits already: it stays as it is."""
    await harness.store.create([(job("a"), [run("a", 60)])])
    await harness.store.change(job("a", version=2), 1, [run("a", 60, priority=9)], keep_waiting=True)
    [found] = await harness.store.load([run("a", 60).key])
    assert found is not None
    assert found[0].priority == 5


async def test_change_to_deleted_removes_all_waiting_runs(harness: Harness) -> None:
    """Retries and manual ones too, whatever `keep_waiting` says; active ones stay."""
    await harness.store.create([(job("a"), [run("a", 10), run("a", 20), run("a", 30, manual=True), run("a", 40)])])
    retried, out = dispatch(run("a", 10)), dispatch(run("a", 40))
    await harness.store.apply([retried, out])
    await harness.store.apply([retry(retried.run, 500)])
    await harness.store.change(job("a", state="deleted", version=2), 1, [], keep_waiting=True)
    found = await harness.store.load([(JobId("a"), T0 + at) for at in (10, 20, 30, 40)])
    assert [pair is not None for pair in found] == [False, False, False, True]


async def test_change_of_another_version_writes_nothing(harness: Harness) -> None:
    """The version differs, or there is no such job: None."""
    await harness.store.create([(job("a", version=3), [run("a", 60)])])
    assert await harness.store.change(job("a", name="x", version=3), 2, [run("a", 90)]) is None
    assert await harness.store.change(job("nobody", version=2), 1, [run("nobody")]) is None
    [row, nobody] = await harness.store.get([JobId("a"), JobId("nobody")])
    assert row is not None
    assert row.job == job("a", version=3)
    assert nobody is None
    found = await harness.store.load([run("a", 60).key, run("a", 90).key, run("nobody").key])
    assert [pair is not None for pair in found] == [True, False, False]


@pytest.mark.parametrize("far", ["dispatched", "finished"])
async def test_change_that_would_open_a_run_that_left_waiting_collides(harness: Harness, far: str) -> None:
    """Nothing is written then, and the answer says where."""
    await harness.store.create([(job("a"), [run("a", 10), run("a", 20)])])
    out = dispatch(run("a", 20))
    await harness.store.apply([out])
    if far == "finished":
        await harness.store.apply([succeed(out.run)])
    answer = await harness.store.change(job("a", name="x", version=2), 1, [run("a", 15), run("a", 20)])
    assert answer == Collision(T0 + 20)
    [row] = await harness.store.get([JobId("a")])
    assert row is not None
    assert row.job == job("a")
    found = await harness.store.load([(JobId("a"), T0 + at) for at in (10, 15)])
    assert [pair is not None for pair in found] == [True, False]


async def test_change_that_saw_other_begun_runs_collides(harness: Harness) -> None:
    """Out or waiting to be tried again: who decided by others than there are has to look again."""
    await harness.store.create([(job("a"), [run("a"), run("a", 5 * SECOND, attempt=1)])])
    out = dispatch(run("a"))
    await harness.store.apply([out])
    changed = job("a", version=2)
    both = frozenset({T0, T0 + 5 * SECOND})
    for seen in (frozenset(), frozenset({T0}), both | {T0 + 9}):
        assert isinstance(await harness.store.change(changed, 1, [], begun=seen), Collision)
    assert await harness.store.change(changed, 1, [], begun=both) == changed


async def test_change_that_saw_other_unbegun_runs_collides(harness: Harness) -> None:
    """One that waited at the decision may have ended without an attempt: cancelled, or missed."""
    manual = run("a", 7, manual=True)
    await harness.store.create([(job("a"), [run("a"), manual, run("a", 5 * SECOND, attempt=1)])])
    changed = job("a", version=2)
    for seen in (frozenset(), frozenset({T0, T0 + 7}), frozenset({T0, T0 + 5 * SECOND})):
        assert isinstance(await harness.store.change(changed, 1, [], unbegun=seen), Collision)
    assert await harness.store.change(changed, 1, [], unbegun=frozenset({T0})) == changed


async def test_change_is_seen_by_load_and_due_at_once(harness: Harness) -> None:
    """No memory of the old document is left."""
    await harness.store.create([(job("a"), [run("a")])])
    await harness.store.load([run("a").key])
    await harness.store.due(harness.shard(), T0, None, 1)
    changed = job("a", name="new", version=2)
    await harness.store.change(changed, 1, [run("a")])
    [found] = await harness.store.load([run("a").key])
    assert found == (run("a"), changed)
    assert await harness.store.due(harness.shard(), T0, None, 1) == [(run("a"), changed)]


# -- page_jobs ----------------------------------------------------------------------------------------------


async def fleet(harness: Harness) -> None:
    """Eight jobs that differ in everything that can be filtered."""
    command = CommandTask(argv=("true",))
    await harness.store.create(
        [
            (job("a", name="zeta", labels={"team": "red", "env": "prod"}), [run("a")]),
            (job("b", name="eta", labels={"team": "red", "env": "test"}), [run("b")]),
            (job("c", name="Nightly-Backup", task=command), [ended("c")]),
            (job("d", namespace="other", labels={"team": "red"}), [run("d")]),
            (job("e", schedule="@daily"), [run("e")]),
            (job("f", state="paused"), []),
            (job("g", name="zeta"), [run("g")]),
            (job("h"), [run("h")]),
        ]
    )
    await harness.store.change(job("h", state="deleted", version=2), 1, [])
    out = dispatch(run("b"))
    await harness.store.apply([out])
    await harness.store.apply([start(out.run)])
    await harness.store.apply([dispatch(run("g"))])


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, "abcdefgh"),
        ({"namespace": "other"}, "d"),
        ({"namespace": "default"}, "abcefgh"),
        ({"namespace": "nowhere"}, ""),
        ({"name": "zeta"}, "ag"),
        ({"name": "zet"}, ""),
        ({"labels": (("team", "red"),)}, "abd"),
        ({"labels": (("team", "red"), ("env", "prod"))}, "a"),
        ({"labels": (("team", "red"),), "namespace": "other"}, "d"),
        ({"labels": (("team", "blue"),)}, ""),
        ({"state": "paused"}, "f"),
        ({"state": "deleted"}, "h"),
        ({"with_deleted": False}, "abcdefg"),
        ({"state": "completed"}, "c"),
        ({"state": "active"}, "abdeg"),
        ({"state": "active", "name": "zeta"}, "ag"),
        ({"task": "command"}, "c"),
        ({"task": "function", "labels": (("env", "test"),)}, "b"),
        ({"schedule": "@daily"}, "e"),
        ({"q": "ght"}, "c"),
        ({"q": "eta"}, "abg"),
        ({"q": "backup"}, "c"),
        ({"q": "e"}, "abeg"),
        ({"q": "%"}, ""),
        ({"running": True}, "b"),
        ({"running": True, "namespace": "other"}, ""),
    ],
)
async def test_page_jobs_filters(harness: Harness, query: dict[str, Any], expected: str) -> None:
    """Every filter given holds, in each order, and pages of two make up the whole."""
    await fleet(harness)
    names = {"a": "zeta", "b": "eta", "c": "Nightly-Backup", "g": "zeta"}
    by_name = sorted(expected, key=lambda i: (names.get(i, ""), i))
    for order, wanted in (("created", list(expected)), ("name", by_name)):
        assert await ids(harness, **query, order=order, limit=2) == wanted, order
        assert await ids(harness, **query, order=f"-{order}", limit=2) == wanted[::-1], order


async def test_page_jobs_shows_what_the_runs_say(harness: Harness) -> None:
    """The same row as `get`."""
    await fleet(harness)
    page = await harness.store.page_jobs(JobQuery())
    assert list(page.items) == await harness.store.get([JobId(name) for name in "abcdefgh"])
    assert page.next is None
    assert page.missing == ()


async def test_page_jobs_keeps_to_the_limit(harness: Harness) -> None:
    """At least one row, at most a thousand."""
    await harness.store.create([(job(f"j{i:04}"), []) for i in range(1_010)])
    assert len((await harness.store.page_jobs(JobQuery(limit=5_000))).items) == 1_000
    assert len((await harness.store.page_jobs(JobQuery(limit=0))).items) == 1
    assert len(await ids(harness, limit=1_000)) == 1_010


@pytest.mark.parametrize("order", ["created", "-created", "name", "-name"])
async def test_page_jobs_cursor_stays_valid_while_jobs_come_and_go(harness: Harness, order: Any) -> None:
    """None is shown twice, none that stays is left out."""
    await harness.store.create([(job(name, name=f"n-{name}"), [run(name)]) for name in "bdfhj"])
    page = await harness.store.page_jobs(JobQuery(order=order, limit=2))
    seen = [row.job.id for row in page.items]
    await harness.store.create([(job(name, name=f"n-{name}"), [run(name)]) for name in "aceg"])
    for name in seen:
        await harness.store.change(job(name, name=f"n-{name}", state="deleted", version=2), 1, [])
    await harness.store.prune(10)
    rest: list[str] = []
    cursor = page.next
    while cursor is not None:
        page = await harness.store.page_jobs(JobQuery(order=order, limit=2, cursor=cursor))
        rest += [row.job.id for row in page.items]
        cursor = page.next
    assert len(set(seen + rest)) == len(seen + rest)
    assert set("bdfhj") <= set(seen + rest)


@pytest.mark.parametrize("cursor", ["", "x", "!!!!", "WyJydW4iLDEsImEiXQ", "W10", "A" * 5_000, "é"])
async def test_page_jobs_refuses_a_malformed_cursor(harness: Harness, cursor: str) -> None:
    """Also one that belongs to runs."""
    with pytest.raises(Malformed):
        await harness.store.page_jobs(JobQuery(cursor=cursor))


async def test_page_jobs_refuses_a_cursor_of_another_order(harness: Harness) -> None:
    """It would lead nowhere."""
    await harness.store.create([(job(name), []) for name in "ab"])
    cursor = (await harness.store.page_jobs(JobQuery(limit=1))).next
    assert cursor is not None
    with pytest.raises(Malformed):
        await harness.store.page_jobs(JobQuery(order="name", cursor=cursor))


async def test_page_jobs_and_page_runs_know_each_others_cursors_apart(harness: Harness) -> None:
    """A cursor of jobs is malformed for runs."""
    await harness.store.create([(job(name), []) for name in "ab"])
    cursor = (await harness.store.page_jobs(JobQuery(limit=1))).next
    with pytest.raises(Malformed):
        await harness.store.page_runs(RunQuery(cursor=cursor))


async def test_a_job_that_was_changed_keeps_its_history(harness: Harness) -> None:
    """`last_run` outlives a change."""
    await harness.store.create([(job("a"), [ended("a")])])
    await harness.store.change(replace(job("a"), version=2), 1, [run("a", SECOND)])
    [row] = await harness.store.get([JobId("a")])
    assert row is not None
    assert row.last_run == ended("a")
    assert row.next_run_at == T0 + SECOND
