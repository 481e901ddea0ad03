"""PostgreSQL for the suites: one server for each process that runs tests, one database for each shard, emptied between.

The databases tell the time of the test's clock: `duly.clock()` reads it from a file, written when the clock is moved.
"""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from duly.adapters.sql import migrations
from duly.core.instants import WEEK
from duly.testing import ManualClock
from postgres_server import postgres_server

QUICK = (
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "autovacuum=off",
    "deadlock_timeout=10ms",
    "max_connections=60",
    "max_wal_size=256MB",
)

_EMPTIED = (
    "job",
    "job_version",
    "label",
    "run",
    "held",
    "history",
    "history_ref",
    "blob_ref",
    "orphan",
    "worker",
    "term",
    "tally",
)
_EMPTY = (
    "; ".join(f"delete from duly.{table}" for table in _EMPTIED)
    + "; update duly.lease_clock set generation = 0, shift = 0; update duly.slot_map set epoch = 0, doc = null"
)


# What is stored twice has to agree. (Of finished runs the tallies count those that were pruned, too.)
_CONTRADICTIONS = {
    "held, and not out": """
        select job, scheduled from duly.held except select job, scheduled from duly.run where state <> 0""",
    "out, and not held": """
        select job, scheduled from duly.run where state <> 0 except select job, scheduled from duly.held""",
    "in two places": "select job, scheduled from duly.run intersect select job, scheduled from duly.history",
    "miscounted": """
        select kind, sum(n) from duly.tally where kind < 3 group by kind having sum(n) <> 0
        except (select state, count(*) from duly.run group by state
                union all select -1, count(*) from duly.job where state <> 'deleted')""",
    "not counted": """
        (select state, count(*) from duly.run group by state
         union all select -1, count(*) from duly.job where state <> 'deleted' having count(*) > 0)
        except select kind, sum(n) from duly.tally group by kind""",
}


class DatabaseClock(ManualClock):
    """The test's clock, which is the server's as well."""

    def __init__(self, file: Path, start: int) -> None:
        self._file = file
        self._skew = start
        self._moved = 0
        super().__init__(start)
        self._tell()

    def _tell(self) -> None:
        self._file.write_text(f"{self._moved + self._skew}")

    @property
    def skew(self) -> int:  # type: ignore[override]  # a property where the clock has a field
        """As of the manual clock."""
        return self._skew

    @skew.setter
    def skew(self, value: int) -> None:
        self._skew = value
        self._tell()

    @property
    def _monotonic(self) -> int:  # type: ignore[override]  # a property where the clock has a field
        return self._moved

    @_monotonic.setter
    def _monotonic(self, value: int) -> None:
        self._moved = value
        self._tell()


class Databases:
    """The databases of one server, by the names of shards."""

    def __init__(self, url: str) -> None:
        self._open: dict[str, psycopg.Connection[tuple[object, ...]]] = {}
        self._admin = psycopg.connect(url, autocommit=True)
        # Hashing a password 4,096 times would be a third of what a connection costs here.
        self._admin.execute("set scram_iterations = 1; create role tests superuser login password 'for-tests'")
        parts = urlsplit(url)
        self._url = f"postgresql://tests:for-tests@{parts.hostname}:{parts.port}"
        [(pid,)] = self._admin.execute("select pg_backend_pid()")
        self.clock_file = Path(f"/proc/{pid}/cwd").resolve() / "clock-of-the-test"  # servers stand in their data

    def url(self, name: str) -> str:
        """The address of a database."""
        return f"{self._url}/{name}"

    def create(self, name: str) -> str:
        """An empty database without a schema; returns its address."""
        self._admin.execute(f'drop database if exists "{name}" with (force)')
        self._admin.execute(f'create database "{name}"')
        return self.url(name)

    def create_on(self, name: str, directory: str) -> str:
        """An empty database whose tables are in a directory of their own."""
        self._admin.execute(f"create tablespace apart location '{directory}'")
        self._admin.execute(f'create database "{name}" tablespace apart')
        return self.url(name)

    def drop_disk(self) -> None:
        """Give up that directory."""
        self._admin.execute("drop tablespace apart")

    def drop(self, name: str) -> None:
        """Away with it."""
        self._admin.execute(f'drop database "{name}" with (force)')

    @contextlib.contextmanager
    def fresh(self, shard: str = "s0", steps: int | None = None) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
        """A session in a database of its own, with the schema as `migrate` makes it, up to a step, and real time."""
        with psycopg.connect(self.create("fresh"), autocommit=True) as db:
            apply_migrations(db, shard, steps)
            yield db
        self.drop("fresh")

    def shard(self, name: str, now: int) -> str:
        """The database of a shard, with its schema and no rows, on the test's clock; returns its address."""
        if name not in self._open:
            url = self.create(f"shard-{name}")
            db = psycopg.connect(url, autocommit=True)
            apply_migrations(db, name)
            db.execute(
                "create or replace function duly.clock() returns bigint language sql volatile"
                f" as $$ select pg_read_file('{self.clock_file.name}')::bigint $$"
            )
            weeks = [now // WEEK * WEEK]
            db.execute("select duly.make_weeks_1(%s::bigint[], %s)", (weeks, WEEK))
            self._open[name] = db
        self._open[name].execute(_EMPTY)
        self.clock_file.write_text(str(now))
        return self.url(f"shard-{name}")

    def reset_weeks(self, name: str, now: int) -> str:
        """As `shard`, without any week but the strays."""
        url = self.shard(name, now)
        db = self._open[name]
        for (week,) in db.execute(
            r"select relname from pg_class where relname ~ '^history(_ref)?_w[0-9]+$'"
        ).fetchall():
            db.execute(f"drop table duly.{week}".encode())
        return url

    def contradictions(self, name: str) -> list[str]:
        """What the tables of a shard say differently of one thing."""
        db = self._open[name]
        return [what for what, query in _CONTRADICTIONS.items() if db.execute(query.encode()).fetchall()]

    def connection(self, name: str) -> psycopg.Connection[tuple[object, ...]]:
        """A session in the database of a shard, for tests that look behind the store."""
        return self._open[name]

    def close(self) -> None:
        """End the sessions."""
        for db in (*self._open.values(), self._admin):
            db.close()


def apply_migrations(db: psycopg.Connection[tuple[object, ...]], shard: str, steps: int | None = None) -> None:
    """Do by hand what `migrate` does, up to a step."""
    db.execute("create schema duly")
    db.execute(
        "create table duly.migration(number integer primary key, name text not null, digest text not null,"
        " applied_at timestamptz not null default now())"
    )
    for step in migrations("postgres")[:steps]:
        db.execute(step.text.encode())
        db.execute(
            "insert into duly.migration(number, name, digest) values (%s, %s, %s)",
            (step.number, step.name, step.digest),
        )
    if steps != 0:
        db.execute("insert into duly.shard values (%s)", (shard,))


@cache
def databases() -> Databases:
    """Those of this process's own server, which is started when it is first needed and stopped at exit."""
    stack = contextlib.ExitStack()
    url = stack.enter_context(postgres_server(*QUICK))
    found = Databases(url)
    stack.callback(found.close)
    atexit.register(stack.close)
    return found
