"""Several processes write one PostgreSQL shard: whichever commits first, the outcome is that of one after the other.

The other side of a race is a session that holds a transaction open, by the product's own functions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace

from conformance.postgres import DatabaseClock, databases
from conformance.samples import SECOND, T0, W1, W2, dispatch, job, missed, run, succeed, worker
from duly.adapters import postgres_changes
from duly.adapters.postgres_store import PostgresStore
from duly.core.errors import Fenced, WrongShard
from duly.core.machine import Transition
from duly.core.model import JobId, RunState
from duly.core.ring import SLOTS, SlotMap
from duly.ports import Collision, JobQuery, RunQuery

FAR = T0 + 10**12


@pytest.fixture
def url() -> Iterator[str]:
    """An empty shard; what is stored twice must agree afterwards."""
    yield databases().shard("s0", T0)
    assert databases().contradictions("s0") == []


def opened(url: str) -> PostgresStore:
    """A store, at T0."""
    return PostgresStore(url, shard="s0", clock=DatabaseClock(databases().clock_file, T0))


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    """One process's."""
    made = opened(url)
    yield made
    await made.close()


@pytest.fixture
async def other(url: str) -> AsyncIterator[PostgresStore]:
    """Another's."""
    made = opened(url)
    yield made
    await made.close()


class OpenTransaction:
    """What another process is in the middle of."""

    def __init__(self, url: str) -> None:
        self.db = psycopg.connect(url)
        found = self.db.execute(
            "select p.proname, array_agg(t::regtype::text order by i) from pg_proc p,"
            " unnest(p.proargtypes::oid[]) with ordinality x(t, i)"
            " where p.pronamespace = 'duly'::regnamespace group by p.proname"
        )
        self._kinds: dict[str, list[str]] = dict(found.fetchall())
        self.db.rollback()

    def call(self, function: str, args: Sequence[Any]) -> Any:
        """Call one of the functions of the database."""
        casts = ", ".join(f"%s::{kind}" for kind in self._kinds[function])
        [(answer,)] = self.db.execute(f"select duly.{function}({casts})", args)
        return answer

    def apply(self, *transitions: Transition, fence: int | None = None) -> list[int]:
        """As the store does."""
        batch = range(len(transitions))
        losers: list[int] = self.call("apply_runs_1", [fence, *postgres_changes.application(transitions, batch, T0)])
        return losers

    def change(
        self, changed: Any, was_version: int, *opened: Any, keep_waiting: bool = False, replaced: Any = None
    ) -> Any:
        """As the store does."""
        args = postgres_changes.change(
            changed, was_version, opened, T0, keep_waiting=keep_waiting, begun=None, unbegun=None, replaced=replaced
        )
        return self.call("change_job_2", args)


@pytest.fixture
def transaction(url: str) -> Iterator[OpenTransaction]:
    """Rolled back at the end, if nobody has committed it."""
    made = OpenTransaction(url)
    yield made
    made.db.close()


async def waiting(call: asyncio.Future[Any]) -> None:
    """Until the call waits for a lock in the database."""
    db = databases().connection("s0")
    while not call.done():
        [(n,)] = db.execute("select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
        if n:
            return
        await asyncio.to_thread(db.execute, "select pg_sleep(0.002)")
    raise AssertionError(f"it did not wait: {call!r}")


async def waiting_for(transaction: OpenTransaction, call: asyncio.Future[Any]) -> None:
    """Until the call waits for what this transaction holds."""
    db = databases().connection("s0")
    blocked = "select exists (select from pg_stat_activity where %s = any (pg_blocking_pids(pid)))"
    while not call.done():
        if db.execute(blocked, (transaction.db.info.backend_pid,)).fetchone() == (True,):
            return
        await asyncio.to_thread(db.execute, "select pg_sleep(0.002)")
    raise AssertionError(f"it did not wait: {call!r}")


async def behind(transaction: OpenTransaction, call: Any) -> Any:
    """What a call answers that had to wait for the transaction, which is then committed."""
    task = asyncio.ensure_future(call)
    await waiting(task)
    transaction.db.commit()
    return await task


# -- fences -------------------------------------------------------------------------------------------------


async def test_a_takeover_that_is_not_committed_is_waited_for(
    store: PostgresStore, transaction: OpenTransaction
) -> None:
    """Then it has won: the old holder's write is fenced, all of it."""
    await store.create([(job("a"), [run("a")]), (job("b"), [run("b")])])
    term = await store.hold("s0", "first", 5 * SECOND)
    transaction.db.execute("update duly.term set owner = 'second', fence = fence + 1")
    with pytest.raises(Fenced):
        await behind(transaction, store.apply([dispatch(run("a")), dispatch(run("b"))], shard="s0", fence=term.fence))
    assert await store.active("s0", None, 10) == []


async def test_a_takeover_that_is_rolled_back_has_not_happened(
    store: PostgresStore, transaction: OpenTransaction
) -> None:
    """The holder writes on."""
    await store.create([(job("a"), [run("a")])])
    term = await store.hold("s0", "first", 5 * SECOND)
    transaction.db.execute("update duly.term set owner = 'second', fence = fence + 1")
    task = asyncio.ensure_future(store.apply([dispatch(run("a"))], shard="s0", fence=term.fence))
    await waiting(task)
    transaction.db.rollback()
    assert await task == []


async def test_a_takeover_waits_for_writes_by_the_old_fence(store: PostgresStore, transaction: OpenTransaction) -> None:
    """So that it sees all of them."""
    await store.create([(job("a"), [run("a")])])
    term = await store.hold("s0", "first", SECOND)
    await store.hold("s0", "first", SECOND, release=True)
    assert transaction.apply(dispatch(run("a")), fence=term.fence) == []
    taken = await behind(transaction, store.hold("s0", "second", SECOND))
    assert (taken.owner, taken.fence) == ("second", term.fence + 1)
    assert [one for one, _ in await store.active("s0", None, 10)] == [dispatch(run("a")).run]


async def test_of_many_that_want_a_term_one_has_it(store: PostgresStore, other: PostgresStore) -> None:
    """Of a shard that never had one, too."""
    terms = await asyncio.gather(*((store, other)[i % 2].hold("s0", f"owner-{i}", SECOND) for i in range(20)))
    assert len({(term.owner, term.fence) for term in terms}) == 1
    assert terms[0].fence == 1


# -- writing at once ----------------------------------------------------------------------------------------


async def test_two_processes_create_the_same_jobs(store: PostgresStore, other: PostgresStore) -> None:
    """Each is written once, and whoever was second is told what the first has written."""
    names = [f"j{i:03}" for i in range(300)]

    async def create(by: PostgresStore, label: str, order: int) -> list[Any]:
        items = [(job(name, labels={"by": label}), [run(name)]) for name in names[::order]]
        answers = await by.create(items)
        return answers[::order]

    first, second = await asyncio.gather(create(store, "first", 1), create(other, "second", -1))
    for mine, theirs in zip(first, second, strict=True):
        assert (mine is None) != (theirs is None)
        assert (mine or theirs).labels == {"by": "second" if theirs is None else "first"}
    [stats] = await store.stats()
    assert (stats.jobs, stats.waiting) == (300, 300)


async def test_two_processes_dispatch_the_same_runs(store: PostgresStore, other: PostgresStore) -> None:
    """Each run is one worker's, and its next run is opened once."""
    names = [f"j{i:03}" for i in range(300)]
    await store.create([(job(name), [run(name)]) for name in names])

    async def give(by: PostgresStore, to: Any, order: int) -> set[str]:
        batch = [dispatch(run(name), to, (run(name, 60),)) for name in names[::order]]
        losers = await by.apply(batch)
        return {t.run.job_id for i, t in enumerate(batch) if i not in losers}

    first, second = await asyncio.gather(give(store, W1, 1), give(other, W2, -1))
    assert first | second == set(names)
    assert not first & second
    held = {one.job_id: one.worker for one, _ in await store.active("s0", None, 1_000)}
    assert held == dict.fromkeys(first, W1) | dict.fromkeys(second, W2)
    [stats] = await store.stats()
    assert (stats.waiting, stats.dispatched) == (300, 300)


async def test_many_small_writes_at_once_keep_the_counts(store: PostgresStore, other: PostgresStore) -> None:
    """Creates, dispatches, ends and changes from two processes; the counts are those of the rows."""
    names = [f"j{i:02}" for i in range(60)]

    async def life(i: int, name: str) -> None:
        by, then = (store, other) if i % 2 else (other, store)
        await by.create([(job(name), [run(name)])])
        out = dispatch(run(name), opened=(run(name, 60),))
        await asyncio.gather(by.apply([out]), then.apply([out]))
        await asyncio.gather(
            by.apply([succeed(out.run, (run(name, 120), missed(name, 90)))]), then.change(job(name, version=2), 1, [])
        )

    await asyncio.gather(*(life(i, name) for i, name in enumerate(names)))
    [stats] = await store.stats()
    waiting_page = await store.page_runs(RunQuery(states=(RunState.WAITING,), limit=1_000))
    assert stats.jobs == len((await store.page_jobs(JobQuery(limit=1_000))).items) == 60
    assert stats.waiting == len(waiting_page.items)
    assert (stats.dispatched, stats.ended) == (0, {"succeeded": 60, "missed": 60})


# -- runs that come into being ------------------------------------------------------------------------------


async def test_a_run_that_ends_meanwhile_is_not_opened_again(
    store: PostgresStore, transaction: OpenTransaction
) -> None:
    """The insert waits for the very transaction that moves the run to history: what fired does not fire twice."""
    await store.create([(job("a"), [run("a"), run("a", 60)])])
    out = dispatch(run("a", 60))
    await store.apply([out])
    assert transaction.apply(succeed(out.run)) == []
    assert await behind(transaction, store.apply([dispatch(run("a"), opened=(run("a", 60),))])) == []
    assert await store.load([out.run.key]) == [(succeed(out.run).run, job("a"))]
    assert await store.due("s0", FAR, None, 10) == []
    [stats] = await store.stats()
    assert (stats.waiting, stats.dispatched, stats.ended) == (0, 1, {"succeeded": 1})


async def test_a_run_that_is_recorded_meanwhile_is_not_opened(
    store: PostgresStore, transaction: OpenTransaction
) -> None:
    """A missed occurrence that another has just written down."""
    await store.create([(job("a"), [run("a"), run("a", 30)])])
    assert transaction.apply(dispatch(run("a", 30), opened=(missed("a", 60),))) == []
    assert await behind(transaction, store.apply([dispatch(run("a"), opened=(run("a", 60),))])) == []
    assert await store.load([run("a", 60).key]) == [(missed("a", 60), job("a"))]
    assert await store.due("s0", FAR, None, 10) == []


async def test_a_run_that_is_opened_meanwhile_is_not_recorded(
    store: PostgresStore, transaction: OpenTransaction
) -> None:
    """The other way round."""
    await store.create([(job("a"), [run("a"), run("a", 30)])])
    assert transaction.apply(dispatch(run("a", 30), opened=(run("a", 60),))) == []
    assert await behind(transaction, store.apply([dispatch(run("a"), opened=(missed("a", 60),))])) == []
    assert await store.load([run("a", 60).key]) == [(run("a", 60), job("a"))]
    assert [one for one, _ in await store.due("s0", FAR, None, 10)] == [run("a", 60)]


# -- changes of a job ---------------------------------------------------------------------------------------


async def test_a_change_sees_the_dispatch_that_it_waited_for(
    store: PostgresStore, transaction: OpenTransaction
) -> None:
    """It was decided before the run had begun: a Collision. The run that the dispatch opened waits on."""
    await store.create([(job("a"), [run("a")])])
    assert transaction.apply(dispatch(run("a"), opened=(run("a", 60),))) == []
    answer = await behind(transaction, store.change(job("a", version=2), 1, [run("a", 90)], begun=frozenset()))
    assert answer == Collision(T0)
    assert [one for one, _ in await store.due("s0", FAR, None, 10)] == [run("a", 60)]


async def test_a_change_replaces_the_run_that_a_dispatch_has_just_opened(
    store: PostgresStore, transaction: OpenTransaction
) -> None:
    """It was not there when the change began, and is of the old schedule."""
    await store.create([(job("a"), [run("a")])])
    assert transaction.apply(dispatch(run("a"), opened=(run("a", 60),))) == []
    changed = job("a", version=2)
    assert await behind(transaction, store.change(changed, 1, [run("a", 90)], begun=frozenset({T0}))) == changed
    assert [one for one, _ in await store.due("s0", FAR, None, 10)] == [run("a", 90)]


async def test_a_change_sees_what_becomes_of_runs_that_were_opened_while_it_waited(
    store: PostgresStore, transaction: OpenTransaction, url: str
) -> None:
    """It locks them as well before it looks: none of the job's runs moves under it."""
    await store.create([(job("a"), [run("a"), run("a", 30, manual=True)])])
    second, third = OpenTransaction(url), OpenTransaction(url)
    assert transaction.apply(dispatch(run("a"), opened=(run("a", 60),))) == []
    second.db.execute("select from duly.run where scheduled = %s for update", (T0 + 30,))
    change = asyncio.ensure_future(store.change(job("a", version=2), 1, [], begun=frozenset({T0})))
    await waiting_for(transaction, change)
    transaction.db.commit()
    await waiting_for(second, change)
    assert third.apply(dispatch(run("a", 60))) == []
    second.db.rollback()
    await waiting_for(third, change)
    third.db.commit()
    assert await change == Collision(T0 + 60)
    second.db.close()
    third.db.close()


async def test_a_dispatch_that_waited_for_a_change_loses(store: PostgresStore, transaction: OpenTransaction) -> None:
    """Its run was replaced, by one of the same instant."""
    await store.create([(job("a"), [run("a")])])
    assert transaction.change(job("a", version=2), 1, run("a", priority=9, job_version=2)) == []
    assert await behind(transaction, store.apply([dispatch(run("a"), opened=(run("a", 60),))])) == [0]
    assert await store.load([run("a").key, run("a", 60).key]) == [
        (run("a", priority=9, job_version=2), job("a", version=2)),
        None,
    ]


async def test_an_end_that_was_decided_by_the_job_waits_for_its_change(
    store: PostgresStore, transaction: OpenTransaction
) -> None:
    """Then it loses, and has to be decided anew."""
    await store.create([(job("a", schedule="after 1m"), [run("a")])])
    out = dispatch(run("a"))
    await store.apply([out])
    assert transaction.change(job("a", schedule="after 1m", state="paused", version=2), 1) == []
    done = succeed(out.run, (run("a", 60),))
    assert await behind(transaction, store.apply([replace(done, was_job=1)])) == [0]
    assert await store.apply([replace(done, was_job=2)]) == []


async def test_a_change_waits_for_an_end_that_was_decided_by_the_job(
    store: PostgresStore, transaction: OpenTransaction
) -> None:
    """It sees what follows the end, and that nothing is out."""
    await store.create([(job("a", schedule="after 1m"), [run("a")])])
    out = dispatch(run("a"))
    await store.apply([out])
    assert transaction.apply(replace(succeed(out.run, (run("a", 60),)), was_job=1)) == []
    changed = job("a", schedule="after 1m", state="paused", version=2)
    answer = await behind(transaction, store.change(changed, 1, [], begun=frozenset({T0})))
    assert answer == Collision(T0)
    assert await store.change(changed, 1, [], begun=frozenset()) == changed
    assert await store.due("s0", FAR, None, 10) == []


async def test_of_two_changes_one_wins(store: PostgresStore, other: PostgresStore) -> None:
    """By the version."""
    await store.create([(job("a"), [run("a")])])
    answers = await asyncio.gather(
        *((store, other)[i % 2].change(job("a", name=str(i), version=2), 1, [run("a", i + 1)]) for i in range(10))
    )
    [written] = [answer for answer in answers if answer is not None]
    [row] = await store.get([JobId("a")])
    assert row is not None
    assert row.job == written
    assert [one.scheduled_at for one, _ in await store.due("s0", FAR, None, 10)] == [T0 + int(row.job.name) + 1]


# -- slot maps, workers -------------------------------------------------------------------------------------


def everything_to(shard: str, epoch: int) -> SlotMap:
    """A map with one owner."""
    return SlotMap((shard,) * SLOTS, epoch=epoch)


async def test_a_map_is_answered_after_the_creations_that_were_judged_by_the_one_before(
    store: PostgresStore, transaction: OpenTransaction
) -> None:
    """It waits for them, the first map too."""
    assert transaction.call("create_jobs_1", [0, *postgres_changes.creation([(job("a"), [run("a")])], T0)]) == ["a"]
    assert await behind(transaction, store.slots("s0", everything_to("x", 1))) == everything_to("x", 1)
    assert (await store.get([JobId("a")]))[0] is not None


async def test_a_creation_waits_for_a_map_that_is_not_committed(
    store: PostgresStore, other: PostgresStore, transaction: OpenTransaction
) -> None:
    """And is judged by it, though its process has never heard of it."""
    await store.create([(job("a"), [])])
    await other.slots("s0", everything_to("s0", 1))
    transaction.db.execute(
        "update duly.slot_map set epoch = 2, doc = replace(doc, '\"s0\"', '\"x\"')",
    )
    transaction.db.execute("update duly.slot_map set doc = replace(doc, '\"epoch\":1', '\"epoch\":2')")
    with pytest.raises(WrongShard) as refused:
        await behind(transaction, store.create([(job("b"), [run("b")])]))
    assert refused.value.epoch == 2
    assert await store.get([JobId("b")]) == [None]


async def test_a_beat_that_comes_first_keeps_the_worker(store: PostgresStore, transaction: OpenTransaction) -> None:
    """Whoever wanted to mark it lost has waited for it, and finds the lease extended."""
    await store.create([(job("a"), [run("a")])])
    await store.beat("s0", worker(W1), SECOND)
    await store.apply([dispatch(run("a"))])
    databases().connection("s0").execute("update duly.worker set lease_until = 0")
    transaction.db.execute("update duly.worker set lease_until = %s", (FAR,))
    assert await behind(transaction, store.expired("s0", 10)) == []
    assert (await store.beat("s0", worker(W1), SECOND)).state == "ready"
