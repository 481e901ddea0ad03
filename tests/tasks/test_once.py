"""`current_run.once`: two attempts that overlap commit an effect once, whatever the driver."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from duly.tasks.once import Once
from postgres_server import postgres_server

RUN = "job@20261201T010000.000000Z"
Connect = Callable[[], contextlib.AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server("fsync=off") as address:
        yield address


@pytest.fixture(params=["sqlite3", "psycopg", "psycopg autocommit"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Connect:
    """Connections of a synchronous driver to a database with an empty table `effect`."""
    if request.param == "sqlite3":
        path = tmp_path / "user.db"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("create table effect (attempt integer)")
        return lambda: contextlib.closing(sqlite3.connect(path, check_same_thread=False, timeout=30))
    address = request.getfixturevalue("postgres")
    _fresh(address)
    autocommit = request.param == "psycopg autocommit"
    return lambda: contextlib.closing(psycopg.connect(address, autocommit=autocommit))


def _fresh(address: str) -> None:
    with psycopg.connect(address) as connection:
        connection.execute("drop table if exists effect, duly_once")
        connection.execute("create table effect (attempt integer)")


def effects(connect: Connect) -> list[int]:
    with connect() as connection:
        return [row[0] for row in connection.execute("select attempt from effect order by attempt").fetchall()]


def test_an_attempt_that_overlaps_waits_and_finds_the_effect_made(connect: Connect) -> None:
    inside, finish = threading.Event(), threading.Event()
    told: dict[int, bool] = {}

    def attempt(number: int) -> None:
        with connect() as connection, Once(connection, RUN, number) as first:
            told[number] = first
            if number == 1:
                inside.set()
                assert finish.wait(20)
            if first:
                connection.execute(f"insert into effect values ({number})")

    one = threading.Thread(target=attempt, args=(1,))
    two = threading.Thread(target=attempt, args=(2,))
    one.start()
    assert inside.wait(20)
    two.start()
    two.join(0.2)
    assert two.is_alive(), "the second attempt must wait for the first"
    assert 2 not in told
    finish.set()
    one.join(20)
    two.join(20)
    assert told == {1: True, 2: False}
    assert effects(connect) == [1]


def test_when_the_first_attempt_fails_the_overlapping_one_makes_the_effect(connect: Connect) -> None:
    inside, finish = threading.Event(), threading.Event()
    told: dict[int, bool] = {}

    def attempt(number: int) -> None:
        with (
            contextlib.suppress(ZeroDivisionError),
            connect() as connection,
            Once(connection, RUN, number) as first,
        ):
            told[number] = first
            connection.execute(f"insert into effect values ({number})")
            if number == 1:
                inside.set()
                assert finish.wait(20)
                raise ZeroDivisionError

    threads = [threading.Thread(target=attempt, args=(number,)) for number in (1, 2)]
    threads[0].start()
    assert inside.wait(20)
    threads[1].start()
    finish.set()
    for thread in threads:
        thread.join(20)
    assert told == {1: True, 2: True}
    assert effects(connect) == [2]


def test_what_a_block_writes_although_it_is_not_the_first_is_rolled_back(connect: Connect) -> None:
    for number in (1, 2):
        with connect() as connection, Once(connection, RUN, number):
            connection.execute(f"insert into effect values ({number})")
    assert effects(connect) == [1]


def test_another_run_has_an_effect_of_its_own(connect: Connect) -> None:
    for number, run in enumerate((RUN, RUN + "2")):
        with connect() as connection, Once(connection, run, 1) as first:
            assert first
            connection.execute(f"insert into effect values ({number})")
    assert effects(connect) == [0, 1]


def test_an_open_transaction_is_refused(connect: Connect) -> None:
    with connect() as connection:
        connection.execute("begin")
        connection.execute("insert into effect values (0)")
        with pytest.raises(RuntimeError, match="a transaction is open"), Once(connection, RUN, 1):
            raise AssertionError
        connection.execute("rollback")


async def test_a_sync_connection_needs_with_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as connection:
        once = Once(connection, RUN, 1)
        with pytest.raises(TypeError, match="needs `with"):
            await once.__aenter__()
    with pytest.raises(TypeError, match="not object"), Once(object(), RUN, 1):
        raise AssertionError


@pytest.fixture(params=["asyncpg", "psycopg"])
async def connect_async(
    request: pytest.FixtureRequest, postgres: str
) -> Callable[[], contextlib.AbstractAsyncContextManager[Any]]:
    await asyncio.to_thread(_fresh, postgres)

    @contextlib.asynccontextmanager
    async def connecting() -> AsyncIterator[Any]:
        if request.param == "asyncpg":
            connection: Any = await asyncpg.connect(postgres)
        else:
            connection = await psycopg.AsyncConnection.connect(postgres)
        try:
            yield connection
        finally:
            await connection.close()

    return connecting


async def test_coroutines_that_overlap_make_the_effect_once(connect_async: Any, postgres: str) -> None:
    inside, finish = asyncio.Event(), asyncio.Event()
    told: dict[int, bool] = {}

    async def attempt(number: int) -> None:
        async with connect_async() as connection, Once(connection, RUN, number) as first:
            told[number] = first
            if number == 1:
                inside.set()
                await finish.wait()
            await connection.execute(f"insert into effect values ({number})")

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(attempt(1))
        await inside.wait()
        group.create_task(attempt(2))
        await asyncio.to_thread(_until_somebody_waits, postgres)
        assert 2 not in told
        finish.set()
    assert told == {1: True, 2: False}
    assert await asyncio.to_thread(effects, lambda: contextlib.closing(psycopg.connect(postgres))) == [1]


async def test_a_coroutine_that_fails_leaves_the_effect_to_the_next(connect_async: Any, postgres: str) -> None:
    async with connect_async() as connection:
        with contextlib.suppress(ZeroDivisionError):
            async with Once(connection, RUN, 1) as first:
                assert first
                await connection.execute("insert into effect values (1)")
                raise ZeroDivisionError
        async with Once(connection, RUN, 2) as first:
            assert first
            await connection.execute("insert into effect values (2)")
        with pytest.raises(TypeError, match="needs `async with"), Once(connection, RUN, 3):
            raise AssertionError
    assert await asyncio.to_thread(effects, lambda: contextlib.closing(psycopg.connect(postgres))) == [2]


def _until_somebody_waits(address: str) -> None:
    """Until a session of the server waits for another's lock."""
    with psycopg.connect(address, autocommit=True) as connection:
        while not connection.execute("select 1 from pg_stat_activity where wait_event_type = 'Lock'").fetchone():
            threading.Event().wait(0.005)
