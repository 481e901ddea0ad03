"""What is the PostgreSQL database's own: its schema, the plans of its statements, and poolers in between."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import asyncpg
import psycopg
import pytest

from conformance.postgres import DatabaseClock, apply_migrations, databases
from conformance.samples import SECOND, T0, W1, dispatch, ended, job, missed, retry, run, succeed, worker
from conformance.test_postgres_races import OpenTransaction
from duly.adapters import postgres_changes, postgres_pages, postgres_schema
from duly.adapters.postgres_pool import Pool
from duly.adapters.postgres_store import PostgresStore
from duly.adapters.sql import migrations
from duly.core.errors import Conflict, InvalidInput, NotFound, Unavailable
from duly.core.model import CommandTask, JobId, RunState
from duly.ports import JobQuery, RunQuery

STEPS = migrations("postgres")
Session = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def empty() -> Iterator[str]:
    """The address of a database without a schema."""
    yield databases().create("empty")
    databases().drop("empty")


@pytest.fixture
def url() -> str:
    """An empty shard."""
    return databases().shard("s0", T0)


def opened(url: str) -> PostgresStore:
    """A store, at T0."""
    return PostgresStore(url, shard="s0", clock=DatabaseClock(databases().clock_file, T0))


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    """A migrated store."""
    made = opened(url)
    yield made
    await made.close()


# -- migrations ---------------------------------------------------------------------------------------------


async def test_a_database_that_is_not_migrated_is_unavailable(empty: str) -> None:
    """The error says what to do; whoever migrates, all can work then."""
    store, other = opened(empty), opened(empty)
    for call in (store.now(), store.get([JobId("a")]), store.create([(job("a"), [])]), store.hold("s0", "me", 1)):
        with pytest.raises(Unavailable, match="duly migrate"):
            await call
    assert await other.migrate() == len(STEPS)
    assert await store.create([(job("a"), [])]) == [None]
    assert await store.migrate() == 0
    await store.close()
    await other.close()


async def test_of_many_that_migrate_at_once_one_does(empty: str) -> None:
    """The others wait for it, and find nothing to do."""
    stores = [opened(empty) for _ in range(4)]
    steps = await asyncio.gather(*(store.migrate() for store in stores))
    assert sorted(steps) == [0, 0, 0, len(STEPS)]
    for store in stores:
        assert await store.create([(job("a"), [])]) in ([None], [job("a")])
        await store.close()


@pytest.mark.parametrize(
    ("tampering", "message"),
    [
        ("insert into duly.migration values (99, 'from_the_future', '')", "use a newer duly"),
        ("update duly.migration set digest = 'x' where number = 1", "differs"),
        ("update duly.shard set name = 's9'", "holds shard s9, not s0"),
    ],
)
async def test_a_schema_that_is_not_this_versions_is_refused(empty: str, tampering: str, message: str) -> None:
    """Newer than the code, made by another text, or another shard's."""
    first = opened(empty)
    await first.migrate()
    await first.close()
    with psycopg.connect(empty, autocommit=True) as db:
        db.execute(tampering.encode())
    second = opened(empty)
    for call in (second.now(), second.migrate()):
        with pytest.raises(Conflict, match=message):
            await call
    await second.close()


async def test_a_migration_that_fails_leaves_nothing(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps or none."""
    broken = (*STEPS, STEPS[0]._replace(number=len(STEPS) + 1, text="create table x(y integer); nonsense"))
    store = opened(empty)
    with monkeypatch.context() as patch:
        patch.setattr(postgres_schema, "migrations", lambda _: broken)
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await store.migrate()
    with psycopg.connect(empty) as db:
        assert db.execute("select to_regnamespace('duly')").fetchone() == (None,)
    assert await store.migrate() == len(STEPS)
    await store.close()


CATALOG = """
select 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull::text,
       coalesce(l.collname, ''), coalesce(c.reloptions::text, '')
  from pg_class c join pg_attribute a on a.attrelid = c.oid left join pg_collation l on l.oid = a.attcollation
 where c.relnamespace = 'duly'::regnamespace and a.attnum > 0 and not a.attisdropped and c.relname !~ '_w[0-9]+'
union all
select 'index', tablename, indexname, indexdef, '', '', '' from pg_indexes
 where schemaname = 'duly' and tablename !~ '_w[0-9]+'
union all
select 'function', proname, '', pg_get_functiondef(oid), '', '', '' from pg_proc
 where pronamespace = 'duly'::regnamespace
union all
select 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', '', '' from pg_constraint
 where connamespace = 'duly'::regnamespace and conrelid::regclass::text !~ '_w[0-9]+'
 order by 1, 2, 3, 4
"""


@pytest.mark.parametrize("steps", range(1, len(STEPS)))
async def test_a_migrated_schema_is_a_fresh_schema(empty: str, steps: int) -> None:
    """From every version on the way."""
    with databases().fresh() as db:
        fresh = db.execute(CATALOG).fetchall()
    with psycopg.connect(empty, autocommit=True) as db:
        apply_migrations(db, "s0", steps)
        store = opened(empty)
        assert await store.migrate() == len(STEPS) - steps
        await store.close()
        migrated = db.execute(CATALOG).fetchall()
    assert [row[:2] for row in migrated] == [row[:2] for row in fresh]
    assert migrated == fresh


async def test_another_shards_name_is_not_found(store: PostgresStore) -> None:
    """In every verb that names one."""
    for call in (
        store.now("s1"),
        store.due("s1", T0, None, 1),
        store.active("s1", None, 1),
        store.apply([dispatch(run("a"))], shard="s1"),
        store.beat("s1", worker(), 1),
        store.fleet("s1"),
        store.expired("s1", 1),
        store.hold("s1", "me", 1),
        store.slots("s1"),
    ):
        with pytest.raises(NotFound):
            await call


# -- poolers ------------------------------------------------------------------------------------------------


async def life(store: PostgresStore) -> None:
    """Every verb."""
    task = CommandTask(code="sha256:" + "1" * 64)
    await store.create([(job(name, task=task, labels={"k": "v"}), [run(name), missed(name, -60)]) for name in "abc"])
    term = await store.hold("s0", "me", 5 * SECOND)
    await store.beat("s0", worker(W1), 5 * SECOND)
    due = [one for one, _ in await store.due("s0", T0, None, 10)]
    out = [dispatch(one, opened=(run(one.job_id, 60),)) for one in due]
    assert await store.apply(out, shard="s0", fence=term.fence) == []
    assert await store.apply([succeed(out[0].run), retry(out[1].run, 500)], shard="s0", fence=term.fence) == []
    assert [pair and pair[0].state for pair in await store.load([one.run.key for one in out])] == [3, 0, 1]
    assert await store.change(job("c", version=2), 1, [run("c", 90)], replaced=job("c")) == job("c", version=2)
    assert await store.versions(job("c").id, None, 10) == [job("c")]
    assert len(await store.active("s0", None, 10)) == 1
    assert len(await store.fleet("s0")) == 1
    assert await store.expired("s0", 10) == []
    assert len((await store.page_jobs(JobQuery(labels=(("k", "v"),)))).items) == 2
    assert len((await store.page_runs(RunQuery())).items) == 9
    assert len(await store.get([JobId("a"), JobId("b")])) == 2
    assert await store.referred(["sha256:" + "1" * 64]) == {"sha256:" + "1" * 64}
    large = [(job(f"j{i:04}"), [run(f"j{i:04}")]) for i in range(postgres_changes.MAX_JOBS + 1)]
    assert await store.create(large) == [None] * len(large)
    [stats] = await store.stats()
    assert (stats.jobs, stats.waiting, stats.dispatched) == (len(large) + 3, len(large) + 4, 1)
    await store.prune(100)
    assert await store.slots("s0") is None


@pytest.mark.parametrize("query", ["connections=2", "connections=x", "statement_cache_size=-1", "connections="])
def test_options_that_make_no_sense_are_refused(url: str, query: str) -> None:
    """They come from a file of settings: the error names them."""
    with pytest.raises(InvalidInput, match=query.partition("=")[0]):
        opened(f"{url}?{query}")


async def test_options_of_the_pool_are_not_the_servers(url: str) -> None:
    """Those that libpq knows go on to it."""
    store = opened(f"{url}?connections=3&application_name=duly-test&statement_cache_size=0")
    await asyncio.gather(*(store.get([JobId("a")]) for _ in range(20)))
    names = (
        databases()
        .connection("s0")
        .execute("select count(*) from pg_stat_activity where application_name = 'duly-test'")
    )
    [(n,)] = names
    assert 1 <= int(str(n)) <= 3
    await store.close()


async def test_every_call_may_be_on_another_backend(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a transaction pooler: nothing that one call leaves on its session is needed by the next."""
    monkeypatch.setattr(asyncpg, "create_pool", partial(asyncpg.create_pool, max_queries=1))
    acquire, backends = Pool._acquire, list[int]()

    async def noted(self: Pool) -> asyncpg.Connection:
        connection = await acquire(self)
        backends.append(connection.get_server_pid())
        return connection

    monkeypatch.setattr(Pool, "_acquire", noted)
    store = opened(f"{url}?statement_cache_size=0")
    await life(store)
    await store.close()
    assert len(backends) >= 30
    assert len(set(backends)) == len(backends)


async def test_nothing_is_left_on_a_session(store: PostgresStore) -> None:
    """No setting, no channel, no lock, no temporary table."""
    await life(store)
    async with store._pool._connection(urgent=False) as db:
        assert await db.fetch("select name, setting from pg_settings where source = 'session'") == []
        assert await db.fetch("select pg_listening_channels()") == []
    other = databases().connection("s0")
    assert other.execute("select * from pg_locks where locktype = 'advisory'").fetchall() == []
    assert other.execute("select relname from pg_class where relpersistence = 't'").fetchall() == []
    idle = "select count(*) from pg_stat_activity where state like 'idle in transaction%'"
    assert other.execute(idle).fetchone() == (0,)


# -- plans --------------------------------------------------------------------------------------------------

LARGE = r"(job|job_version|label|run|held|history\w*|history_ref\w*|blob_ref)"
MANY = 3_000


@pytest.fixture
def explained(url: str) -> Iterator[tuple[OpenTransaction, list[str]]]:
    """A session on a shard with rows, and the plans of all that it executes, nested statements included.

    The tables were never analyzed: that is when statistics mislead.
    """
    session = OpenTransaction(url)
    names = [f"j{i:05}" for i in range(MANY)]
    jobs = [(job(name, labels={"k": name}), [run(name), ended(name, -9, logs={"a": name})]) for name in names]
    session.call("create_jobs_1", [0, *postgres_changes.creation(jobs, T0)])
    session.apply(*(dispatch(run(name)) for name in names[:500]))
    plans: list[str] = []
    session.db.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
    session.db.execute(
        "load 'auto_explain'; set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;"
        " set auto_explain.log_analyze = on; set auto_explain.log_timing = off; set client_min_messages = log"
    )
    yield session, plans
    session.db.close()


CALLS: dict[str, Any] = {
    "due": "select * from duly.due_runs_1(0, '', 0, 9e17::bigint, 100)",
    "due, next page": f"select * from duly.due_runs_1({T0}, 'j01000', {T0}, 9e17::bigint, 100)",
    "active": "select * from duly.active_runs_1('j00100', 0, 100)",
    "hot": f"select * from duly.hot_runs_1(array['j00001', 'j02000'], array[{T0}, {T0}])",
    "finished": f"select * from duly.finished_runs_1(array['j00001', 'j02000'], array[{T0 - 9}, {T0 - 9}])",
    "job rows": "select * from duly.job_rows_1(array['j00001', 'j02000'])",
    "any expired": f"select duly.any_expired_1(0, {T0}, 0)",
    "expired": f"select * from duly.expired_runs_1(0, {T0}, 0, 100)",
    "beyond keep": "select * from duly.beyond_keep_1('j00100', 100, 0, 0, 10)",
    "remove finished": f"select duly.remove_finished_1(array['j00001'], array[{T0 - 9}])",
    "remove jobs": "select duly.remove_empty_jobs_2('', 100, 10)",
    "orphans": "select duly.orphans_1('{}', 100)",
}


def assert_walks(plans: list[str], *, sorts: bool = False) -> None:
    """Nothing large is read from end to end or sorted."""
    assert plans
    for plan in plans:
        assert not re.search(rf"Seq Scan on {LARGE}\b", plan), plan
        assert "Hash Join" not in plan, plan
        if "into tally" not in plan and not sorts:
            assert "Sort  (" not in plan, plan


def test_functions_find_their_rows_by_index(explained: tuple[OpenTransaction, list[str]]) -> None:
    """In order, without a sort, whatever the statistics."""
    session, plans = explained
    for name, call in CALLS.items():
        plans.clear()
        session.db.execute(call)
        assert len(plans) > 1, name
        assert_walks(plans, sorts=name == "remove jobs")  # of the few that are empty, at most `limit`


def test_writes_find_their_rows_by_index(explained: tuple[OpenTransaction, list[str]]) -> None:
    """Creation, dispatch with next runs, ends with references, records, retries, a change."""
    session, plans = explained
    waiting = [run(f"j{i:05}") for i in range(500, 1_000)]
    out = [dispatch(one, opened=(run(one.job_id, 60), missed(one.job_id, 30))) for one in waiting]
    session.call(
        "create_jobs_1", [0, *postgres_changes.creation([(job(f"k{i}"), [run(f"k{i}")]) for i in range(9)], T0)]
    )
    assert session.apply(*out) == []
    assert session.apply(*(succeed(one.run, logs={"stdout": "x"}) for one in out[:250])) == []
    assert session.apply(*(retry(one.run, 99) for one in out[250:])) == []
    assert session.change(job("j02500", version=2), 1, run("j02500", 5), replaced=job("j02500")) == []
    assert len(plans) > 20
    # What waits of one job is sorted, its few versions, and the keys that a caller gives.
    few = ("select from run where job = p_id", "window newest_first", "except")
    assert_walks([plan for plan in plans if not any(text in plan for text in few)])
    assert_walks([plan for plan in plans if "window newest_first" in plan], sorts=True)


def test_a_dispatch_writes_no_index(url: str) -> None:
    """Its update is HOT: no index has a column that it changes."""
    session = OpenTransaction(url)
    db = session.db
    db.autocommit = True
    waiting = [run(f"j{i:05}") for i in range(2_000)]
    session.call("create_jobs_1", [0, *postgres_changes.creation([(job(one.job_id), [one]) for one in waiting], T0)])

    def updates() -> tuple[int, int]:
        db.execute("select pg_stat_force_next_flush()")
        found = db.execute(
            "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relid = 'duly.run'::regclass"
        )
        [(n, hot)] = found.fetchall()
        return int(n), int(hot)

    before = updates()
    for at in range(0, len(waiting), 500):
        assert session.apply(*(dispatch(one) for one in waiting[at : at + 500])) == []
    after = updates()
    assert after[0] - before[0] == len(waiting)
    assert after[1] - before[1] > 0.9 * len(waiting)
    db.close()


JOB_PAGES: list[dict[str, Any]] = [
    {},
    {"namespace": "other"},
    {"name": "x"},
    {"labels": (("k", "j00007"),)},
    {"state": "paused"},
    {"state": "completed"},
    {"q": "x"},
]
RUN_PAGES: list[dict[str, Any]] = [
    {},
    {"job_id": "j00003"},
    {"states": (RunState.SUCCEEDED,)},
    {"states": (RunState.FAILED, RunState.LOST)},
    {"states": (RunState.WAITING,)},
    {"late": True},
    {"worker": W1, "states": (RunState.SUCCEEDED,)},
    {"namespace": "other", "since": T0 - 99, "until": T0 + 9},
]


@pytest.mark.parametrize("descending", [False, True])
async def test_pages_walk_an_index_in_order(
    url: str, store: PostgresStore, descending: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First and next ones: they never sort, and never read a table from end to end."""
    names = [f"j{i:05}" for i in range(1_000)]
    await store.create(
        [(job(n, labels={"k": n}, namespace="other"), [run(n), ended(n, -9), ended(n, -8)]) for n in names]
    )
    fetch, asked = postgres_pages._fetch, list[str]()

    async def noted(db: asyncpg.Connection, text: str, values: dict[str, Any]) -> list[Any]:
        numbered = postgres_pages._Values(**values)
        sql = numbered.fill(text)
        plan = [row[0] for row in await db.fetch(f"explain {sql}", *numbered.args)]
        asked.append("\n".join((sql, *plan)))
        return await fetch(db, text, values)

    monkeypatch.setattr(postgres_pages, "_fetch", noted)
    for query in JOB_PAGES:
        for order in ("created", "name"):
            by = f"-{order}" if descending else order
            page = await store.page_jobs(JobQuery(**query, order=by, limit=5))
            if page.next is not None:
                await store.page_jobs(JobQuery(**query, order=by, limit=5, cursor=page.next))
    for query in RUN_PAGES:
        runs = await store.page_runs(RunQuery(**query, oldest_first=not descending, limit=5))
        if runs.next is not None:
            await store.page_runs(RunQuery(**query, oldest_first=not descending, limit=5, cursor=runs.next))
    assert len(asked) > 40
    # Of what the order of names does not lead along, a label's jobs are few.
    assert_walks([plan for plan in asked if "l.key" not in plan or "order by name" not in plan])
