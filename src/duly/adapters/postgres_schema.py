"""The schema `duly` of a PostgreSQL database: whether it is this version's, and how it is brought up to date."""

from __future__ import annotations

import logging
from typing import Any, Final

import asyncpg

from duly.adapters.postgres_pool import Pool
from duly.adapters.sql import migrations, statements
from duly.core.errors import Conflict, Unavailable
from duly.core.instants import MINUTE, WEEK

log = logging.getLogger("duly.store")

SQL: Final = statements("postgres")
MIGRATING: Final = 0x6475_6C79  # "duly": the advisory lock of whoever migrates, until the end of the transaction
WEEKS_AHEAD: Final = (
    3  # partitions made before their time, this week's included; if nobody makes more, the strays take it
)
WEEKS_BACK: Final = 1
WITHIN: Final = 10 * MINUTE  # of a migration

_TABLE: Final = """
create table duly.migration(
  number integer primary key, name text not null, digest text not null, applied_at timestamptz not null default now()
)
"""


async def missing_steps(connection: asyncpg.Connection, shard: str) -> int:
    """How many migrations the database lacks.

    Raises Conflict for a schema newer than the code, a migration that was edited, or another shard's database.
    """
    known = migrations("postgres")
    if await connection.fetchval("select to_regclass('duly.migration')") is None:
        return len(known)
    done: list[Any] = await connection.fetch("select number, name, digest from duly.migration order by number")
    if len(done) > len(known):
        number, name, _ = done[-1]
        raise Conflict(f"the database has schema {number} ({name}), this duly knows {len(known)}: use a newer duly")
    for (number, name, digest), step in zip(done, known, strict=False):
        if (number, digest) != (step.number, step.digest):
            raise Conflict(f"migration {number} ({name}) differs from the one that this database was made with")
    for (name,) in await connection.fetch("select name from duly.shard"):
        if name != shard:
            raise Conflict(f"the database holds shard {name}, not {shard}")
    return len(known) - len(done)


async def check(pool: Pool, shard: str) -> None:
    """Raises Unavailable if the schema is older than the code, else as `missing_steps` does."""
    missing = await pool.transact("begin read only", lambda connection: missing_steps(connection, shard))
    if missing:
        raise Unavailable(f"the schema of shard {shard} is not up to date: run `duly migrate`")


async def migrate(pool: Pool, shard: str) -> int:
    """Bring the schema up to date; returns the number of steps taken. All or none of them are.

    Several may call this at once: one after the other does it, and all but the first find nothing to do.
    """

    async def work(connection: asyncpg.Connection) -> int:
        await connection.execute(f"select pg_advisory_xact_lock({MIGRATING})", timeout=WITHIN / 1_000_000)
        known = migrations("postgres")
        missing = await missing_steps(connection, shard)
        if missing == len(known):
            await connection.execute("create schema if not exists duly")
            await connection.execute(_TABLE)
        for step in known[len(known) - missing :]:
            await connection.execute(step.text, timeout=WITHIN / 1_000_000)
            await connection.execute(
                "insert into duly.migration(number, name, digest) values ($1, $2, $3)",
                step.number,
                step.name,
                step.digest,
            )
        await connection.execute("insert into duly.shard values ($1) on conflict do nothing", shard)
        return missing

    steps = await pool.transact("begin", work, writes=True)
    try:
        await make_weeks(pool)
    except Unavailable as problem:  # someone reads history for long; the next prune makes them
        log.info("the coming weeks of history were not made yet: %s", problem)
    return steps


async def make_weeks(pool: Pool) -> int:
    """Make the partitions of history for last week and the weeks ahead that there are none for; returns how many."""
    rows = await pool.read("select duly.clock()")
    this_week = rows[0][0] // WEEK
    weeks = [week * WEEK for week in range(this_week - WEEKS_BACK, this_week + WEEKS_AHEAD)]
    [(made,)] = await pool.write(SQL["make_weeks"], weeks, WEEK)
    return int(made)
