"""What one PostgreSQL shard takes, on this machine, with every commit synced: python bench/postgres_store.py

Each figure is rows per second of one process with `--flight` calls under way, of `--batch` rows each.

    create     jobs with their first run                      dispatch   columns only, fenced
    dispatch+  each dispatch opens the next run               finish     a success, with its document, into history
    due, load  what a scheduler and a servicer read before    lone       ms for one dispatch alone, p50 and p99

--stored N puts N other jobs with waiting runs there first. --drivers asks the same two functions through asyncpg and
through psycopg 3, one connection each, in turn (decision 0013).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from conformance.samples import T0, dispatch, job, run, succeed
from duly.adapters.postgres_changes import application, call
from duly.adapters.postgres_store import PostgresStore
from duly.adapters.system_clock import SystemClock
from duly.core.machine import Transition
from duly.core.model import Run
from postgres_server import postgres_server

SYNCED = ("fsync=on", "synchronous_commit=on", "full_page_writes=on")
SIZED = ("shared_buffers=256MB", "max_wal_size=4GB", "checkpoint_timeout=15min")


async def in_flight(batches: Sequence[Any], flight: int, one: Callable[[Any], Awaitable[object]]) -> float:
    """Carry out all, so many at a time; returns the seconds."""
    waiting = list(reversed(batches))

    async def worker() -> None:
        while waiting:
            await one(waiting.pop())

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(flight)))
    return time.perf_counter() - started


def split(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """In batches."""
    return [items[at : at + size] for at in range(0, len(items), size)]


class Server:
    """The processes of the server, those that live."""

    def __init__(self, url: str) -> None:
        with psycopg.connect(url) as db:
            [(backend,)] = db.execute("select pg_backend_pid()")
            self.parent = int(self._stat(backend)[1])

    @staticmethod
    def _stat(pid: int) -> list[str]:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()

    def cpu(self) -> float:
        """Seconds of CPU that they have used."""
        ticks = 0
        for directory in Path("/proc").iterdir():
            if directory.name.isdecimal():
                with contextlib.suppress(OSError):
                    fields = self._stat(int(directory.name))
                    if int(fields[1]) == self.parent:
                        ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


class Bench:
    """A migrated shard, with the term held."""

    def __init__(self, store: PostgresStore, server: Server, fence: int, args: argparse.Namespace) -> None:
        self.store, self.server, self.fence = store, server, fence
        self.rows, self.batch, self.flight = args.rows, args.batch, args.flight
        self.spent = (time.process_time(), server.cpu())

    def say(self, what: str, rows: int, seconds: float) -> None:
        """One line, with the CPU time that the client's process and the server's have used since the last one."""
        client, server = time.process_time(), self.server.cpu()
        spent = (client - self.spent[0], server - self.spent[1])
        self.spent = (client, server)
        print(
            f"{what:12} {rows / seconds:10,.0f} rows/s   CPU each: client {1e6 * spent[0] / rows:5.1f} µs,"
            f" server {1e6 * spent[1] / rows:5.1f} µs",
            flush=True,
        )

    def begin(self) -> None:
        """What was spent up to here is nobody's."""
        self.spent = (time.process_time(), self.server.cpu())

    async def apply(self, what: str, transitions: list[Transition]) -> None:
        """Carry out transitions, which must all win."""
        self.begin()

        async def one(batch: Sequence[Transition]) -> None:
            losers = await self.store.apply(batch, shard="s0", fence=self.fence)
            assert not losers, losers

        self.say(what, len(transitions), await in_flight(split(transitions, self.batch), self.flight, one))

    async def round(self, name: str, *, opening: bool, report: bool = True) -> None:
        """Create, read, dispatch, load and finish as many runs."""
        names = [f"{name}-{i:07}" for i in range(self.rows)]
        jobs = [(job(one), [run(one)]) for one in names]
        self.begin()
        seconds = await in_flight(split(jobs, 2 * self.batch), self.flight, self.store.create)
        self.say("create", self.rows, seconds)
        after = None
        started = time.perf_counter()
        found: list[Run] = []
        while page := await self.store.due("s0", T0, after, 4_096):
            found += [one for one, _ in page]
            after = (found[-1].due_at, found[-1].job_id, found[-1].scheduled_at)
        self.say("due", len(found), time.perf_counter() - started)
        dispatches = [dispatch(one, opened=(run(one.job_id, 10**12),) if opening else ()) for one in found]
        await self.apply("dispatch+" if opening else "dispatch", dispatches)
        out = [one.run for one in dispatches]
        self.begin()
        seconds = await in_flight(split([one.key for one in out], self.batch), self.flight, self.store.load)
        self.say("load", len(out), seconds)
        await self.apply("finish", [succeed(one) for one in out])

    async def lone(self) -> None:
        """One at a time."""
        names = [f"lone-{i:04}" for i in range(500)]
        await self.store.create([(job(one), [run(one, 10**9)]) for one in names])
        took = []
        for one in names:
            started = time.perf_counter()
            await self.store.apply([dispatch(run(one, 10**9))], shard="s0", fence=self.fence)
            took.append(1e3 * (time.perf_counter() - started))
        p50, p99 = statistics.median(took), statistics.quantiles(took, n=100)[98]
        print(f"{'lone':12} {p50:10.2f} ms p50   {p99:.2f} ms p99", flush=True)


@contextlib.asynccontextmanager
async def opened(url: str, args: argparse.Namespace) -> AsyncIterator[Bench]:
    """A bench over a store."""
    store = PostgresStore(f"{url}?statement_cache_size={args.statement_cache}", shard="s0", clock=SystemClock())
    await store.migrate()
    fence = (await store.hold("s0", "bench", 3_600_000_000)).fence
    yield Bench(store, Server(url), fence, args)
    await store.close()


async def stored(bench: Bench, count: int) -> None:
    """Other jobs, whose runs wait for a later time, among the keys of those to come."""
    for at in range(0, count, 20_000):
        jobs = [(job(f"{i % 97:02}-{i}"), [run(f"{i % 97:02}-{i}", 10**12 + i)]) for i in range(at, at + 20_000)]
        await in_flight(split(jobs, 1_000), 2, bench.store.create)
    print(f"{'stored':12} {count:10,}", flush=True)


async def compare_drivers(url: str, rows: int, batch: int) -> None:
    """Dispatch and finish by hand, with prepared statements, one connection each; in turn, three times."""
    store = PostgresStore(url, shard="s0", clock=SystemClock())
    await store.migrate()
    with_asyncpg = await asyncpg.connect(url)
    with_psycopg = await psycopg.AsyncConnection.connect(url, autocommit=True, prepare_threshold=0)

    async def by_asyncpg(args: list[object]) -> object:
        return await with_asyncpg.fetchval(call("apply_runs_1", args), *args)

    async def by_psycopg(args: list[object]) -> object:
        casts = ", ".join(f"%s::{kind}" for kind in kinds)
        found = await with_psycopg.execute(f"select duly.apply_runs_1({casts})", args, binary=True, prepare=True)
        row = await found.fetchone()
        return row and row[0]

    kinds = await with_asyncpg.fetchval(
        "select array_agg(t::regtype::text order by i) from pg_proc p,"
        " unnest(p.proargtypes::oid[]) with ordinality x(t, i) where p.proname = 'apply_runs_1'"
    )
    for turn in range(3):
        for name, ask in (("asyncpg", by_asyncpg), ("psycopg", by_psycopg)):
            names = [f"{name}-{turn}-{i:06}" for i in range(rows)]
            for part in split([(job(one), [run(one)]) for one in names], 1_000):
                await store.create(part)
            dispatches = [dispatch(run(one)) for one in names]
            finishes = [succeed(one.run) for one in dispatches]
            for what, transitions in (("dispatch", dispatches), ("finish", finishes)):
                cpu, started = time.process_time(), time.perf_counter()
                for part in split(transitions, batch):
                    assert not await ask([None, *application(part, range(len(part)), T0)])
                seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
                print(
                    f"{name:8} {what:9} {rows / seconds:9,.0f} rows/s   client {1e6 * cpu / rows:5.2f} µs", flush=True
                )
    await with_asyncpg.close()
    await with_psycopg.close()
    await store.close()


async def main(args: argparse.Namespace) -> None:
    """Print the figures."""
    with postgres_server(*SYNCED, *SIZED) as url:
        if args.drivers:
            await compare_drivers(url, args.rows, args.batch)
            return
        async with opened(url, args) as bench:
            if args.stored:
                await stored(bench, args.stored)
            await bench.round("first", opening=False)
            await bench.round("second", opening=True)
            await bench.lone()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--flight", type=int, default=2)
    parser.add_argument("--stored", type=int, default=0)
    parser.add_argument("--statement-cache", type=int, default=100)
    parser.add_argument("--drivers", action="store_true")
    uvloop.run(main(parser.parse_args()))
