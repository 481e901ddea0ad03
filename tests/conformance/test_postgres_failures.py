"""PostgreSQL that fails: each failure is one of the answers that the port knows, and what it says is true."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from conformance.cutting_proxy import CuttingProxy, cutting_proxy
from conformance.postgres import DatabaseClock, databases
from conformance.samples import T0, dispatch, job, run, succeed
from duly.adapters import postgres_changes, postgres_pool
from duly.adapters.postgres_store import PostgresStore
from duly.core.errors import InvalidInput, OutcomeUnknown, Overloaded, StorageFull, Unavailable
from duly.core.model import JobId, WorkerId
from duly.ports import JobQuery
from postgres_server import postgres_server


@pytest.fixture
def url() -> str:
    """An empty shard."""
    return databases().shard("s0", T0)


def opened(url: str) -> PostgresStore:
    """A store, at T0."""
    return PostgresStore(url, shard="s0", clock=DatabaseClock(databases().clock_file, T0))


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    """One that nothing stands in the way of."""
    made = opened(url)
    yield made
    await made.close()


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[CuttingProxy]:
    """Before the shard."""
    async with cutting_proxy(url) as made:
        yield made


@pytest.fixture
async def through(proxy: CuttingProxy) -> AsyncIterator[PostgresStore]:
    """A store on the other side of the proxy, that has been used."""
    made = opened(proxy.url)
    await made.create([(job("before"), [run("before")])])
    yield made
    await made.close()


async def waits_for_a_lock(db: psycopg.Connection[tuple[object, ...]]) -> None:
    """Until some session waits for a lock."""
    while True:
        [(n,)] = db.execute("select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
        if n:
            return
        await asyncio.to_thread(db.execute, "select pg_sleep(0.002)")


# -- lost connections ---------------------------------------------------------------------------------------


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    """At once: the connection is refused."""
    nowhere = opened("postgresql://nobody@127.0.0.1:1/nothing")
    for call in (nowhere.now(), nowhere.create([(job("a"), [])]), nowhere.page_jobs(JobQuery()), nowhere.migrate()):
        with pytest.raises(Unavailable) as refused:
            await call
        assert not isinstance(refused.value, OutcomeUnknown)
    await nowhere.close()


async def test_a_password_that_is_wrong_is_unavailable(url: str) -> None:
    """Until someone mends it."""
    locked_out = opened(url.replace("for-tests", "wrong"))
    with pytest.raises(Unavailable, match="password"):
        await locked_out.now()
    await locked_out.close()


async def test_a_write_whose_answer_is_lost_is_unknown(
    proxy: CuttingProxy, through: PostgresStore, store: PostgresStore
) -> None:
    """It may have been committed (here it was): read, then repeat. The next call has a new connection."""
    proxy.lose_answer_to = lambda data: b"after" in data
    with pytest.raises(OutcomeUnknown):
        await through.create([(job("after"), [run("after")])])
    assert proxy.lose_answer_to is None
    while (await store.get([JobId("after")]))[0] is None:  # the server may still be at it
        pass
    assert await through.create([(job("after"), [run("after")])]) == [job("after")]


async def test_a_write_that_is_lost_on_its_way_is_unknown_too(
    proxy: CuttingProxy, through: PostgresStore, store: PostgresStore
) -> None:
    """Nobody can tell from here; a repeat settles it."""
    proxy.lose = lambda data: b"after" in data
    with pytest.raises(OutcomeUnknown):
        await through.create([(job("after"), [run("after")])])
    assert await store.get([JobId("after")]) == [None]
    assert await through.create([(job("after"), [run("after")])]) == [None]


async def test_a_report_whose_answer_is_lost_can_be_repeated(
    proxy: CuttingProxy, through: PostgresStore, store: PostgresStore
) -> None:
    """The repeat loses to what the first has done."""
    out = dispatch(run("before"))
    await store.apply([out])
    proxy.lose_answer_to = lambda data: b"before" in data  # the arguments, which follow the preparation
    with pytest.raises(OutcomeUnknown):
        await through.apply([succeed(out.run)])
    while (await store.load([out.run.key]))[0] != (succeed(out.run).run, job("before")):
        pass
    assert await through.apply([succeed(out.run)]) == [0]


async def test_a_read_whose_answer_is_lost_is_unavailable(proxy: CuttingProxy, through: PostgresStore) -> None:
    """Nothing can have happened."""
    proxy.lose_answer_to = lambda data: b"before" in data
    with pytest.raises(Unavailable) as lost:
        await through.get([JobId("before")])
    assert not isinstance(lost.value, OutcomeUnknown)
    assert (await through.get([JobId("before")]))[0] is not None


LARGE = [(job(f"j{i:04}"), [run(f"j{i:04}")]) for i in range(postgres_changes.MAX_JOBS + 1)]


async def test_a_transaction_that_is_lost_before_its_commit_was_not_carried_out(
    proxy: CuttingProxy, through: PostgresStore, store: PostgresStore
) -> None:
    """A call of several batches is one transaction: what was lost before the commit is surely not there."""
    proxy.lose_answer_to = lambda data: b"begin" in data
    with pytest.raises(Unavailable) as lost:
        await through.create(LARGE)
    assert not isinstance(lost.value, OutcomeUnknown)
    assert [row.job.id for row in (await store.page_jobs(JobQuery())).items] == ["before"]
    assert await through.create(LARGE) == [None] * len(LARGE)


async def test_a_transaction_that_is_lost_at_its_commit_is_unknown(
    proxy: CuttingProxy, through: PostgresStore, store: PostgresStore
) -> None:
    """All of it is there, or nothing."""
    proxy.lose_answer_to = lambda data: b"commit" in data
    with pytest.raises(OutcomeUnknown):
        await through.create(LARGE)
    while (await store.get([JobId("j0000")]))[0] is None:
        pass
    assert await through.create(LARGE) == [of for of, _ in LARGE]


async def test_a_backend_that_is_ended_in_a_write_leaves_it_unknown(url: str, store: PostgresStore) -> None:
    """It says that it was told to end, not whether it had committed before. Reads are just unavailable."""
    await store.create([(job("a"), [run("a")])])
    db = databases().connection("s0")
    with psycopg.connect(url) as other:
        other.execute("select from duly.job for update; select from duly.run for update")
        waiting = asyncio.ensure_future(store.change(job("a", version=2), 1, []))
        await waits_for_a_lock(db)
        db.execute("select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type = 'Lock'")
        with pytest.raises(OutcomeUnknown):
            await waiting
    assert (await store.get([JobId("a")]))[0] is not None


async def test_a_server_that_is_killed_and_started_again() -> None:
    """Calls under way end in a clear answer, those to come wait for nothing, and what was acknowledged is there."""
    with postgres_server("fsync=on", "synchronous_commit=on", "full_page_writes=on") as url:
        clock = DatabaseClock(databases().clock_file, T0)
        store = PostgresStore(url, shard="s0", clock=clock)
        await store.migrate()
        await store.create([(job("a"), [run("a")])])
        with psycopg.connect(url, autocommit=True) as db:
            [(pid,)] = db.execute("select pg_backend_pid()")
            calls = [asyncio.ensure_future(store.create([(job(f"j{i}"), [])])) for i in range(50)]
            await asyncio.wait(calls, timeout=0)
            await asyncio.to_thread(_kill, int(str(pid)))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(answer) for answer in answers} <= {list, OutcomeUnknown, Unavailable}
        while True:  # it recovers by itself
            try:
                rows = await store.get([JobId("a"), *(JobId(f"j{i}") for i in range(50))])
            except Unavailable:
                continue
            break
        assert rows[0] is not None
        acknowledged = [row is not None for answer, row in zip(answers, rows[1:], strict=True) if answer == [None]]
        assert all(acknowledged)
        await store.close()


def _kill(pid: int) -> None:
    """As the kernel does when memory is short: the server takes it for a crash and ends all other sessions."""
    subprocess.run(["kill", "-9", str(pid)], check=True)


# -- waiting ------------------------------------------------------------------------------------------------


async def test_an_answer_that_does_not_come_in_time(
    url: str, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write is unknown then, a read unavailable; the server gives up as well."""
    monkeypatch.setattr(postgres_pool.Pool.write, "__kwdefaults__", {"within": 0.2})
    await store.create([(job("a"), [run("a")])])
    with psycopg.connect(url) as other:
        other.execute("lock table duly.job in access exclusive mode")
        with pytest.raises(OutcomeUnknown):
            await store.change(job("a", version=2), 1, [])
    assert await store.change(job("a", version=2), 1, []) == job("a", version=2)


async def test_more_calls_than_may_wait_are_refused(
    url: str, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those before them are answered. Leases do not wait behind them."""
    monkeypatch.setattr(postgres_pool, "MAX_WAITING", 20)
    await store.create([(job("a"), [run("a")])])
    db = databases().connection("s0")
    with psycopg.connect(url) as other:
        other.execute("select from duly.job for update")
        calls = [asyncio.ensure_future(store.change(job("a", version=2), 1, [])) for _ in range(40)]
        await waits_for_a_lock(db)
        assert (await store.hold("s0", "me", 100)).owner == "me"
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, Overloaded)]
    assert 0 < len(refused) <= 40 - 20
    assert [answer for answer in answers if answer not in refused and answer is not None] == [job("a", version=2)]


async def test_no_connection_in_time_is_overloaded(
    url: str, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded waiting."""
    monkeypatch.setattr(postgres_pool, "ACQUIRE_WITHIN", 0.1)
    await store.create([(job("a"), [run("a")])])
    with psycopg.connect(url) as other:
        other.execute("select from duly.job for update")
        calls = [asyncio.ensure_future(store.change(job("a", version=2), 1, [])) for _ in range(7)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert [type(call.exception()) for call in done] == [Overloaded]
    await asyncio.wait(calls)


async def test_a_caller_that_gives_up_leaves_its_connection_in_order(url: str, store: PostgresStore) -> None:
    """What it had asked for is cancelled at the server; others have the connection after."""
    await store.create([(job("a"), [run("a")])])
    db = databases().connection("s0")
    with psycopg.connect(url) as other:
        other.execute("select from duly.job for update")
        call = asyncio.ensure_future(store.change(job("a", version=2), 1, []))
        await waits_for_a_lock(db)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert await store.change(job("a", version=2), 1, []) == job("a", version=2)


async def test_a_deadlock_is_tried_again(url: str, store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody but the database notices."""
    translated, seen = postgres_pool.translated, list[str]()

    def noting(problem: Exception, *, unsure: bool) -> Exception:
        seen.append(type(problem).__name__)
        return translated(problem, unsure=unsure)

    monkeypatch.setattr(postgres_pool, "translated", noting)
    await store.create([(job(name), [run(name)]) for name in "ab"])
    db = databases().connection("s0")

    def the_other_way_round() -> None:
        with psycopg.connect(url) as other:
            other.execute("select from duly.run where job = 'b' for update")
            locked.set()
            while not release.is_set():
                other.execute("select pg_sleep(0.002)")
            try:
                other.execute("select from duly.run where job = 'a' for update")
            except psycopg.errors.DeadlockDetected as problem:
                seen.append(type(problem).__name__)

    locked, release = threading.Event(), threading.Event()
    other = asyncio.ensure_future(asyncio.to_thread(the_other_way_round))
    while not locked.is_set():
        await asyncio.to_thread(db.execute, "select pg_sleep(0.002)")
    call = asyncio.ensure_future(store.apply([dispatch(run("a")), dispatch(run("b"))]))
    await waits_for_a_lock(db)
    release.set()
    assert await call == []
    await other
    assert seen in (["DeadlockDetectedError"], ["DeadlockDetected"])


async def test_a_call_of_several_batches_is_one_commit(store: PostgresStore) -> None:
    """What is wrong in the last of them undoes the first; without it all of it is there, the losers told by place."""
    names = [f"j{i:04}" for i in range(2 * postgres_changes.MAX_ROWS + 100)]
    await store.create([(job(name), [run(name)]) for name in names])
    term = await store.hold("s0", "me", 10**9)
    batch = [dispatch(run(name)) for name in names]
    spoilt = [*batch[:-1], dispatch(run(names[-1]), WorkerId("no\0worker"))]
    with pytest.raises(InvalidInput):
        await store.apply(spoilt, shard="s0", fence=term.fence)
    assert await store.active("s0", None, 10) == []
    batch.insert(postgres_changes.MAX_ROWS + 7, dispatch(run("nobody")))
    batch.append(batch[0])
    losers = await store.apply(batch, shard="s0", fence=term.fence)
    assert losers == [postgres_changes.MAX_ROWS + 7, len(batch) - 1]
    assert len(await store.active("s0", None, 10_000)) == len(names)


# -- what the server says -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("53100", StorageFull),
        ("53200", Unavailable),
        ("57014", Unavailable),
        ("55P03", Unavailable),
        ("25006", Unavailable),
        ("40001", Unavailable),
        ("57P01", OutcomeUnknown),
    ],
)
async def test_errors_of_the_server_have_their_answer(store: PostgresStore, state: str, error: type) -> None:
    """A full disk, no memory, a cancelled statement, a lock not had, a standby, conflicts without end, a shutdown."""
    db = databases().connection("s0")
    [(was,)] = db.execute("select pg_get_functiondef('duly.count_1'::regproc)")
    db.execute(
        "create or replace function duly.count_1(kinds smallint[], ns bigint[]) returns void language plpgsql as"
        f" $$ begin raise exception 'said so' using errcode = '{state}'; end $$".encode()
    )
    try:
        with pytest.raises(error) as answered:
            await store.create([(job("a"), [run("a")])])
        assert type(answered.value).__mro__[1] is error or type(answered.value) is error
    finally:
        db.execute(str(was).encode())
    assert await store.create([(job("a"), [run("a")])]) == [None]


@pytest.fixture
def small_disk() -> Iterator[tuple[str, Path]]:
    """The address of a database on a file system of its own, and a file there that can fill it."""
    data = databases().clock_file.parent
    disk = data / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=32m,uid={data.stat().st_uid}", "tmpfs", str(disk)], check=True)
    try:
        yield databases().create_on("full", "/proc/self/cwd/small"), disk / "filler"
    finally:
        databases().drop("full")
        databases().drop_disk()
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
        disk.rmdir()


@pytest.mark.skipif(os.getuid() != 0, reason="a file system has to be mounted")
async def test_a_full_disk_is_storage_full_and_writes_nothing(small_disk: tuple[str, Path]) -> None:
    """Reads go on; so do writes once there is room."""
    address, filler = small_disk
    store = opened(address)
    await store.migrate()
    await store.create([(job("a"), [run("a")])])

    def fill() -> None:
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4_096))

    await asyncio.to_thread(fill)
    large = [(job(f"j{i:03}", name="x" * 200, labels={"k": "v"}), [run(f"j{i:03}")]) for i in range(800)]
    with pytest.raises(StorageFull):
        await store.create(large)
    assert [row.job.id for row in (await store.page_jobs(JobQuery())).items] == ["a"]
    assert (await store.stats())[0].jobs == 1
    await asyncio.to_thread(filler.unlink)
    assert await store.create(large) == [None] * 800
    assert (await store.stats())[0].jobs == 801
    await store.close()


async def test_text_that_postgresql_cannot_hold_is_invalid_input(store: PostgresStore) -> None:
    """NUL in what is stored by itself; inside of documents it is fine."""
    with pytest.raises(InvalidInput, match="NUL"):
        await store.create([(job("a", name="x\0y"), [])])
    inside = job("b", calendar=("x\0y",))
    await store.create([(inside, [])])
    [row] = await store.get([inside.id])
    assert row is not None
    assert row.job == inside


WITHOUT_DRIVER = """
import asyncio, contextlib, sys
sys.modules["asyncpg"] = None
import duly, duly.boot, duly.program, duly.cli, duly.testing
from duly.adapters.system_clock import SystemClock
from duly.boot.parts import open_stores
from duly.settings import Settings
settings = Settings(stores={"s0": "postgresql://127.0.0.1/x"})
try:
    asyncio.run(open_stores(contextlib.AsyncExitStack(), settings, SystemClock()))
except duly.core.errors.InvalidInput as refused:
    print(refused)
"""


def test_the_embedded_shape_needs_no_driver() -> None:
    """asyncpg is an extra: without it everything but this store imports, and who wants it is told."""
    found = subprocess.run([sys.executable, "-c", WITHOUT_DRIVER], check=True, capture_output=True, text=True)
    assert "pip install duly[cluster]" in found.stdout
