"""Group commit: what a batch is, and how one call's trouble stays its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from duly.adapters import sqlite_writer
from duly.adapters.sqlite_writer import Transaction, Writer
from duly.core.errors import Conflict, OutcomeUnknown, Overloaded, Unavailable

Work = Callable[[Transaction], Any]


class Bench:
    """A writer on a file with two small tables, and a way to hold it up."""

    def __init__(self, path: Path) -> None:
        self.db = apsw.Connection(str(path))
        self.db.pragma("journal_mode", "wal")
        self.db.execute("create table t(x integer primary key); create table tally(name text primary key, n integer)")
        self.commits = 0
        self.db.set_commit_hook(self._count)
        self.writer = Writer(self.db, inline=False, name="writer")
        self.gate = threading.Event()
        self.held = threading.Event()

    def _count(self) -> bool:
        self.commits += 1
        return False

    def hold(self, _: Transaction) -> None:
        """A call that waits in the writer's thread for the gate."""
        self.held.set()
        self.gate.wait(20)

    def rows(self) -> list[int]:
        """What the table holds."""
        return [x for (x,) in self.db.execute("select x from t order by x")]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Opened, and closed after."""
    made = Bench(tmp_path / "x.db")
    yield made
    made.gate.set()
    made.writer.refuse(Unavailable("closed"))
    made.writer.drain()
    made.db.close()


def insert(x: int) -> Work:
    """A call that inserts a number and answers it."""

    def work(tx: Transaction) -> int:
        tx.db.execute("insert into t values (?)", (x,))
        tx.tally["rows"] += 1
        return x

    return work


async def together(bench: Bench, *calls: Work) -> list[Any]:
    """The answers of calls that the writer takes as one batch."""
    first = asyncio.ensure_future(bench.writer.submit(bench.hold))
    await asyncio.to_thread(bench.held.wait, 20)
    tasks = [asyncio.ensure_future(bench.writer.submit(call)) for call in calls]
    await asyncio.wait(tasks, timeout=0)
    bench.gate.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_calls_that_wait_share_a_commit(bench: Bench) -> None:
    """A hundred calls, one sync."""
    assert await together(bench, *(insert(i) for i in range(100))) == list(range(100))
    assert bench.commits == 2
    assert bench.rows() == list(range(100))
    assert bench.db.execute("select n from tally").get == 100


async def test_a_batch_is_bounded_by_calls(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the first is not kept waiting by the last."""
    monkeypatch.setattr(sqlite_writer, "MAX_CALLS", 10)
    await together(bench, *(insert(i) for i in range(100)))
    assert bench.commits == 11


async def test_a_refusal_is_its_callers_alone(bench: Bench) -> None:
    """A call that raises an error of ours has written nothing: the batch goes on."""

    def refuse(_: Transaction) -> None:
        raise Conflict("no")

    answers = await together(bench, insert(1), refuse, insert(2))
    assert answers[0] == 1
    assert isinstance(answers[1], Conflict)
    assert answers[2] == 2
    assert bench.commits == 2
    assert bench.rows() == [1, 2]


async def test_a_call_that_breaks_does_not_spoil_its_batch(bench: Bench) -> None:
    """The others are carried out again, each by itself; what the broken one had written is gone."""

    def broken(tx: Transaction) -> None:
        tx.db.execute("insert into t values (77)")
        tx.tally["rows"] += 1
        tx.db.execute("insert into t values (1)")

    answers = await together(bench, insert(1), broken, insert(2))
    assert answers[0] == 1
    assert isinstance(answers[1], apsw.ConstraintError)
    assert answers[2] == 2
    assert bench.rows() == [1, 2]
    assert bench.db.execute("select n from tally").get == 2


async def test_what_follows_a_commit_comes_in_order_and_before_the_answer(bench: Bench) -> None:
    """On the writer's thread; not for a call that failed."""
    told: list[object] = []

    def refuse(_: Transaction) -> None:
        raise Conflict("no")

    await bench.writer.submit(insert(1), committed=told.append)
    assert told == [1]
    with pytest.raises(Conflict):
        await bench.writer.submit(refuse, committed=told.append)
    await bench.writer.submit(insert(2), committed=told.append)
    assert told == [1, 2]


async def test_trouble_after_a_commit_leaves_nobody_waiting(bench: Bench) -> None:
    """The call is written, its caller is told that it cannot know, and the writer takes nothing more."""

    def trouble(_: object) -> None:
        raise RuntimeError("oh dear")

    with pytest.raises(OutcomeUnknown, match="oh dear"):
        await bench.writer.submit(insert(1), committed=trouble)
    with pytest.raises(Unavailable, match="oh dear"):
        await bench.writer.submit(insert(2))
    assert bench.rows() == [1]


async def test_too_many_rows_waiting_is_overloaded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until they have been written. One call may be larger than the queue if it is alone."""
    monkeypatch.setattr(sqlite_writer, "MAX_QUEUED_ROWS", 10)
    first = asyncio.ensure_future(bench.writer.submit(bench.hold, rows=50))
    await asyncio.to_thread(bench.held.wait, 20)
    with pytest.raises(Overloaded):
        await bench.writer.submit(insert(1))
    bench.gate.set()
    await first
    assert await bench.writer.submit(insert(1)) == 1
    assert bench.writer.queued_rows == 0


async def test_a_writer_that_refuses_still_carries_out_what_is_queued(bench: Bench) -> None:
    """The order of a shutdown."""
    first = asyncio.ensure_future(bench.writer.submit(bench.hold))
    await asyncio.to_thread(bench.held.wait, 20)
    queued = asyncio.ensure_future(bench.writer.submit(insert(1)))
    await asyncio.wait([queued], timeout=0)
    bench.writer.refuse(Unavailable("closing"))
    with pytest.raises(Unavailable, match="closing"):
        await bench.writer.submit(insert(2))
    bench.gate.set()
    await first
    assert await queued == 1
