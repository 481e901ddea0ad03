"""What is the SQLite file's own: who may open it, what survives, how it fails, and which indexes its reads use."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import apsw.ext
import pytest

from conformance.samples import T0, W1, dispatch, ended, job, run, succeed
from duly.adapters import sqlite_file
from duly.adapters.sql import migrations, statements
from duly.adapters.sqlite_bulk import MOST, form
from duly.adapters.sqlite_store import SqliteStore
from duly.core.errors import Conflict, NotFound, OutcomeUnknown, StorageFull, Unavailable
from duly.core.model import JobId, RunState
from duly.ports import JobQuery, RunQuery
from duly.testing import ManualClock


def opened(path: Path, shard: str = "s0") -> SqliteStore:
    """A store on a file, at T0."""
    return SqliteStore(path, clock=ManualClock(T0), shard=shard)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file will be."""
    return tmp_path / "shard.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    """A migrated store on a file."""
    made = opened(path)
    await made.migrate()
    yield made
    await made.close()


# -- opening ------------------------------------------------------------------------------------------------


async def test_a_file_has_one_owner(store: SqliteStore, path: Path) -> None:
    """A second one is refused, and told which process has it; after the first has closed it may."""
    with pytest.raises(Conflict, match=f"process {os.getpid()}"):
        opened(path)
    await store.close()
    second = opened(path)
    await second.close()


async def test_a_file_is_its_owners_to_read(store: SqliteStore, path: Path) -> None:
    """Jobs may hold secrets; what SQLite makes beside the file has the file's mode."""
    await store.create([(job("a"), [])])
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(["shard.db", "shard.db-wal", "shard.db-shm", "shard.db.lock"], 0o600)


async def test_what_was_written_is_there_again(store: SqliteStore, path: Path) -> None:
    """And is found without a migration."""
    await store.create([(job("a"), [run("a")])])
    await store.apply([dispatch(run("a"))])
    await store.hold("s0", "me", 100)
    await store.close()
    again = opened(path)
    assert (await again.load([run("a").key])) == [(dispatch(run("a")).run, job("a"))]
    assert (await again.hold("s0", "you", 100)).owner == "me"
    assert (await again.stats())[0].dispatched == 1
    await again.close()


async def test_a_file_that_is_not_migrated_is_unavailable(path: Path) -> None:
    """The error says what to do."""
    store = opened(path)
    with pytest.raises(Unavailable, match="migrate"):
        await store.get([JobId("a")])
    with pytest.raises(Unavailable, match="migrate"):
        await store.create([(job("a"), [])])
    assert await store.migrate() == len(migrations("sqlite"))
    assert await store.get([JobId("a")]) == [None]
    await store.close()


async def test_a_file_of_another_shard_is_refused(store: SqliteStore, path: Path) -> None:
    """It would answer for jobs that it does not have."""
    await store.close()
    with pytest.raises(Conflict, match="holds shard s0, not s1"):
        opened(path, "s1")


async def test_another_shards_name_is_not_found(store: SqliteStore) -> None:
    """In every verb that names one."""
    for call in (
        store.now("s1"),
        store.due("s1", T0, None, 1),
        store.active("s1", None, 1),
        store.apply([dispatch(run("a"))], shard="s1"),
        store.expired("s1", 1),
        store.hold("s1", "me", 1),
        store.slots("s1"),
    ):
        with pytest.raises(NotFound):
            await call


@pytest.mark.parametrize(
    ("tampering", "message"),
    [
        ("insert into migration values (99, 'from_the_future', '', 0)", "use a newer duly"),
        ("update migration set digest = 'x' where number = 1", "differs"),
    ],
)
async def test_a_schema_that_is_not_this_versions_is_refused(
    store: SqliteStore, path: Path, tampering: str, message: str
) -> None:
    """Newer than the code, or made by another text; the file can be opened by who knows it."""
    await store.close()
    db = apsw.Connection(str(path))
    db.execute(tampering)
    db.close()
    for _ in range(2):
        with pytest.raises(Conflict, match=message):
            opened(path)


async def test_a_file_that_is_no_database_is_unavailable(path: Path) -> None:
    """And stays as it is; the lock is let go."""
    await asyncio.to_thread(path.write_bytes, b"not a database" * 100)
    for _ in range(2):
        with pytest.raises(Unavailable, match="cannot be opened"):
            opened(path)
    assert await asyncio.to_thread(path.read_bytes) == b"not a database" * 100


async def test_a_migration_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps or none."""
    broken = (*migrations("sqlite"), migrations("sqlite")[0]._replace(number=2, text="create table x(y); nonsense"))
    store = opened(path)
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_file, "migrations", lambda _: broken)
        with pytest.raises(apsw.SQLError):
            await store.migrate()
    assert await store.migrate() == len(migrations("sqlite"))
    await store.close()


async def test_a_sqlite_with_the_wal_reset_bug_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files do not stay whole under two connections."""
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(Conflict, match=r"3\.51\.3"):
        opened(path)


async def test_the_file_is_written_as_promised(store: SqliteStore) -> None:
    """WAL, synced at each commit, nothing mapped."""
    assert store._db.pragma("journal_mode") == "wal"
    assert store._db.pragma("synchronous") == 2
    assert store._db.pragma("mmap_size") == 0


# -- surviving ----------------------------------------------------------------------------------------------

CHILD = """
    import asyncio, os, sys
    from conformance.samples import T0, dispatch, job, run
    from duly.testing import ManualClock
    from duly.adapters.sqlite_store import SqliteStore

    async def main():
        store = SqliteStore(sys.argv[1], clock=ManualClock(T0))
        await store.migrate()
        for i in range(50):
            await store.create([(job(f"j{i}"), [run(f"j{i}")])])
            await store.apply([dispatch(run(f"j{i}"))])
            print(i, flush=True)
        unanswered = [store.create([(job(f"late{i}"), [run(f"late{i}")])]) for i in range(200)]
        tasks = [asyncio.ensure_future(one) for one in unanswered]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        os.kill(os.getpid(), 9)

    asyncio.run(main())
"""


async def test_what_was_answered_survives_the_death_of_the_process(path: Path) -> None:
    """And the lock does not; what was not answered is there whole or not at all."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(CHILD), str(path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    answered = [int(line) for line in done.stdout.split()]
    assert answered == list(range(50))
    store = opened(path)
    found = await store.load([run(f"j{i}").key for i in answered])
    assert found == [(dispatch(run(f"j{i}")).run, job(f"j{i}")) for i in answered]
    names = [f"late{i}" for i in range(200)]
    jobs = await store.get([JobId(name) for name in names])
    runs = await store.load([run(name).key for name in names])
    assert [row is not None for row in jobs] == [pair is not None for pair in runs]
    stats = (await store.stats())[0]
    assert stats.jobs == 50 + sum(row is not None for row in jobs)
    assert stats.dispatched == 50
    await store.close()


async def test_close_commits_what_is_queued(store: SqliteStore, path: Path) -> None:
    """Every caller is answered, and the WAL is folded in."""
    calls = [asyncio.ensure_future(store.create([(job(f"j{i}"), [run(f"j{i}")])])) for i in range(300)]
    await asyncio.wait(calls, timeout=0)
    await store.close()
    assert await asyncio.gather(*calls) == [[None]] * 300
    wal = path.parent / "shard.db-wal"
    assert not wal.exists() or wal.stat().st_size == 0
    again = opened(path)
    assert (await again.stats())[0].jobs == 300
    await again.close()


# -- failing ------------------------------------------------------------------------------------------------


async def test_a_full_disk_is_storage_full_and_writes_nothing(store: SqliteStore) -> None:
    """Reads go on; so do writes once there is room."""
    await store.create([(job("a"), [run("a")])])
    db = store._db
    db.pragma("max_page_count", db.pragma("page_count") + 2)
    large = [(job(f"j{i:03}", name="x" * 200, labels={"k": "v"}), [run(f"j{i:03}")]) for i in range(200)]
    with pytest.raises(StorageFull):
        await store.create(large)
    assert [row.job.id for row in (await store.page_jobs(JobQuery())).items] == ["a"]
    assert (await store.page_jobs(JobQuery(labels=(("k", "v"),)))).items == ()
    assert (await store.stats())[0].jobs == 1
    db.pragma("max_page_count", 1_000_000)
    assert await store.create(large) == [None] * 200
    assert (await store.stats())[0].jobs == 201


async def test_a_call_that_finds_the_disk_full_does_not_spoil_its_batch(store: SqliteStore) -> None:
    """The small ones beside it are written."""
    await store.create([(job("a"), [run("a")])])
    db = store._db
    db.pragma("max_page_count", db.pragma("page_count") + 2)
    large = store.create([(job(f"j{i:03}", name="x" * 200), []) for i in range(300)])
    answers = await asyncio.gather(large, store.apply([dispatch(run("a"))]), return_exceptions=True)
    assert isinstance(answers[0], StorageFull)
    assert answers[1] == []
    assert (await store.stats())[0].dispatched == 1


async def test_a_commit_that_fails_is_unknown_and_stops_the_store(store: SqliteStore) -> None:
    """After a failed sync nobody knows what the disk holds; only a restart reads it again."""
    await store.create([(job("a"), [])])
    store._db.set_commit_hook(lambda: True)
    with pytest.raises(OutcomeUnknown):
        await store.create([(job("b"), [])])
    store._db.set_commit_hook(None)
    with pytest.raises(Unavailable, match="failed commit"):
        await store.create([(job("c"), [])])


async def test_a_caller_that_gives_up_leaves_the_others_alone(store: SqliteStore) -> None:
    """Its call may be carried out all the same."""
    first = asyncio.ensure_future(store.create([(job("a"), [])]))
    others = [asyncio.ensure_future(store.create([(job(f"j{i}"), [])])) for i in range(20)]
    await asyncio.wait([first], timeout=0)
    first.cancel()
    assert await asyncio.gather(*others) == [[None]] * 20
    with pytest.raises(asyncio.CancelledError):
        await first


# -- plans --------------------------------------------------------------------------------------------------

# What reads all of something that is small, or one stretch of it in order.
MAY_SCAN = {
    "expired": {"r USING INDEX run_active"},  # what the fleet holds
    "forget_workers": {"worker", "run USING INDEX run_active"},  # the fleet, and what it holds
    "workers": {"worker"},
    "term": {"term"},  # one row
    "tallies": {"tally"},  # a dozen rows
    "orphans": {"orphan"},
    "history_by_job": {"h"},  # the result of its own bounded subquery
    "due": {"(subquery-1)"},  # the page
    "versions_beyond_keep": {"(subquery-1)", "(subquery-3)", "(subquery-4)"},  # the few of one job, in their order
}
GIVEN = {"512-ROW VALUES CLAUSE", "(subquery-2)"}  # the rows that come with the statement
WIDTHS = {
    "insert_jobs": 10,
    "insert_runs": 11,
    "insert_first_runs": 11,
    "insert_history": 8,
    "insert_records": 8,
    "move_columns": 3,
    "take_runs": 3,
    "delete_finished": 2,
    "referring": 2,
    "add_to_tally": 2,
}


class Asked(list[tuple[str, Any]]):
    """The statements that a connection was asked, for `exec_trace`."""

    def __call__(self, cursor: apsw.Cursor, sql: str, bindings: Any) -> bool:
        self.append((sql, bindings))
        return True


@pytest.mark.parametrize("name", statements("sqlite"))
async def test_no_statement_scans_a_large_table_or_sorts(name: str) -> None:
    """Whatever the size of the shard."""
    store = SqliteStore(":memory:", clock=ManualClock(T0))
    await store.migrate()
    sql = form(name, WIDTHS.get(name, 0), MOST)
    assert ("{rows}" in statements("sqlite")[name]) == (name in WIDTHS)
    assert len(sql) < 16_384  # longer ones are prepared anew each time
    wanted = apsw.ext.query_info(store._db, sql).bindings_count
    steps = [row[3] for row in store._db.execute(f"explain query plan {sql}", (0,) * wanted)]
    scans = {step.removeprefix("SCAN ") for step in steps if step.startswith("SCAN") and "CONSTANT" not in step}
    assert {scan for scan in scans if scan not in GIVEN} == MAY_SCAN.get(name, set())
    assert [step for step in steps if "TEMP B-TREE" in step] == []
    await store.close()


JOB_PAGES: list[dict[str, Any]] = [
    {},
    {"namespace": "other"},
    {"name": "x"},
    {"labels": (("a", "b"),)},
    {"state": "paused"},
    {"state": "completed"},
    {"q": "x"},
]
RUN_PAGES: list[dict[str, Any]] = [
    {},
    {"job_id": "a"},
    {"states": (RunState.SUCCEEDED,)},
    {"states": (RunState.FAILED, RunState.LOST)},
    {"states": (RunState.WAITING,)},
    {"late": True},
    {"worker": W1, "states": (RunState.SUCCEEDED,)},
    {"namespace": "other", "since": T0, "until": T0 + 9},
]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("second_page", [False, True])
async def test_pages_walk_an_index_in_order(descending: bool, second_page: bool) -> None:
    """They never sort, and never start from the first row to get to the second page."""
    store = SqliteStore(":memory:", clock=ManualClock(T0))
    await store.migrate()
    await store.create(
        [(job(n, name="x", namespace="other"), [ended(n, i) for i in range(3)] + [run(n, 9)]) for n in "ab"]
    )
    asked = Asked()
    job_cursor = (await store.page_jobs(JobQuery(limit=1))).next if second_page else None
    name_cursor = (await store.page_jobs(JobQuery(limit=1, order="name"))).next if second_page else None
    run_cursor = (await store.page_runs(RunQuery(limit=1))).next if second_page else None
    store._db.exec_trace = asked
    for query in JOB_PAGES:
        await store.page_jobs(JobQuery(**query, order="-created" if descending else "created", cursor=job_cursor))
        await store.page_jobs(JobQuery(**query, order="-name" if descending else "name", cursor=name_cursor))
    for query in RUN_PAGES:
        await store.page_runs(RunQuery(**query, oldest_first=not descending, cursor=run_cursor))
    store._db.exec_trace = None
    pages = [(sql, bindings) for sql, bindings in asked if "limit" in sql and ":budget" in sql]
    assert len(pages) > 2 * len(JOB_PAGES) + len(RUN_PAGES)
    for sql, bindings in pages:
        steps = [row[3] for row in store._db.execute(f"explain query plan {sql}", bindings)]
        assert [step for step in steps if "TEMP B-TREE" in step] == [], sql
        scans = [step for step in steps if step.startswith("SCAN") and step not in ("SCAN w", "SCAN (subquery-2)")]
        scans = [step for step in scans if not step.startswith("SCAN (")]
        if second_page:
            assert scans == [], sql
        else:
            assert [step for step in scans if not step.startswith("SCAN job")] == [], sql
    await store.close()


async def test_finishing_a_run_needs_no_read(store: SqliteStore) -> None:
    """What was dispatched is remembered until it is reported: `load` asks nothing."""
    await store.create([(job("a"), [run("a")])])
    await store.apply([dispatch(run("a"))])
    asked = Asked()
    store._point.exec_trace = asked
    assert await store.load([run("a").key]) == [(dispatch(run("a")).run, job("a"))]
    assert asked == []
    await store.apply([succeed(dispatch(run("a")).run)])
    assert await store.load([run("a").key]) == [(succeed(dispatch(run("a")).run).run, job("a"))]
    assert asked
    store._point.exec_trace = None
