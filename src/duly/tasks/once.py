"""`current_run.once(connection)`: a run's effect in a user's own database, committed at most once.

    with current_run.once(connection) as first:       # sqlite3, psycopg
    async with current_run.once(connection) as first: # psycopg's AsyncConnection, asyncpg
        if first:
            connection.execute("update account set …")

The block is one transaction. The run's id is inserted in table `duly_once` first, in that same transaction, so of
two attempts that overlap only one commits its effect: the other waits for it, then gets `first = False`. What a
block writes although it is not the first is rolled back, so forgetting the `if` is safe too. An exception rolls
back effect and key together, and the next attempt is the first again.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol

_TABLE = "create table if not exists duly_once (run_id text primary key, attempt integer not null, at {at})"
_SQLITE_TABLE = _TABLE.format(at="text not null default current_timestamp")
_POSTGRES_TABLE = _TABLE.format(at="timestamptz not null default now()")
_POSTGRES_HAS = "select to_regclass('duly_once') is not null"
# Two sessions that create a table at the same moment collide in the catalogue even with "if not exists".
_POSTGRES_LOCK = "select pg_advisory_xact_lock(hashtext('duly_once'))"
_INSERT = "insert into duly_once (run_id, attempt) values ({}, {}) on conflict do nothing"


class _Ended(Exception):
    """Rolls back a transaction of a block that was not the first."""


class _Session(Protocol):
    """One driver's way of doing it, synchronously."""

    def begin(self, run_id: str, attempt: int) -> bool: ...
    def end(self, *, commit: bool) -> None: ...


class _AsyncSession(Protocol):
    async def begin(self, run_id: str, attempt: int) -> bool: ...
    async def end(self, *, commit: bool) -> None: ...


class Once:
    """The context manager. Raises TypeError for a connection it does not know, or one used the wrong way
    (`with` for sync drivers, `async with` for async ones), and RuntimeError when a transaction is already open:
    the block must be the whole transaction, or its commit would not be its own."""

    def __init__(self, connection: Any, run_id: str, attempt: int) -> None:
        self._connection = connection
        self._run_id = run_id
        self._attempt = attempt
        self._session: _Session | _AsyncSession | None = None
        self._first = False

    def __enter__(self) -> bool:
        """True if the effect is this block's to make, False if another attempt has made it."""
        kind = _kind(self._connection)
        session: _Session
        if kind == "sqlite3":
            session = _Sqlite(self._connection)
        elif kind == "psycopg":
            session = _Psycopg(self._connection)
        else:
            raise TypeError(f"a {kind} connection needs `async with current_run.once(connection)`")
        self._first = session.begin(self._run_id, self._attempt)
        self._session = session
        return self._first

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session = self._session
        if session is not None:
            session.end(commit=error is None and self._first)

    async def __aenter__(self) -> bool:
        """As `__enter__`."""
        kind = _kind(self._connection)
        session: _AsyncSession
        if kind == "asyncpg":
            session = _Asyncpg(self._connection)
        elif kind == "psycopg async":
            session = _PsycopgAsync(self._connection)
        else:
            raise TypeError(f"a {kind} connection needs `with current_run.once(connection)`")
        self._first = await session.begin(self._run_id, self._attempt)
        self._session = session
        return self._first

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session = self._session
        if session is not None:
            await session.end(commit=error is None and self._first)  # type: ignore[misc]  # set by __aenter__


def _kind(connection: Any) -> str:
    """Which driver a connection is of; drivers are recognised by name, never imported."""
    for cls in type(connection).__mro__:
        package = cls.__module__.partition(".")[0]
        if package in ("sqlite3", "_sqlite3"):
            return "sqlite3"
        if package == "asyncpg":
            return "asyncpg"
        if package == "psycopg":
            return "psycopg async" if cls.__name__.startswith("Async") else "psycopg"
    raise TypeError(
        f"current_run.once() knows connections of sqlite3, psycopg and asyncpg, not {type(connection).__name__}"
    )


def _refuse_open_transaction(is_open: bool) -> None:
    if is_open:
        raise RuntimeError("a transaction is open on this connection: commit it before current_run.once()")


class _Sqlite:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def begin(self, run_id: str, attempt: int) -> bool:
        connection = self._connection
        _refuse_open_transaction(connection.in_transaction)
        connection.execute("begin immediate")  # waits here for an overlapping attempt
        try:
            connection.execute(_SQLITE_TABLE)
            return bool(connection.execute(_INSERT.format("?", "?"), (run_id, attempt)).rowcount == 1)
        except BaseException:
            connection.execute("rollback")
            raise

    def end(self, *, commit: bool) -> None:
        if self._connection.in_transaction:
            self._connection.execute("commit" if commit else "rollback")
        elif commit:
            raise RuntimeError("the block ended current_run.once()'s transaction itself")


class _Psycopg:
    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._transaction: Any = None

    def begin(self, run_id: str, attempt: int) -> bool:
        connection = self._connection
        _refuse_open_transaction(connection.info.transaction_status != 0)
        with connection.transaction():
            if not connection.execute(_POSTGRES_HAS).fetchone()[0]:
                connection.execute(_POSTGRES_LOCK)
                connection.execute(_POSTGRES_TABLE)
        self._transaction = connection.transaction()
        self._transaction.__enter__()
        try:
            return bool(connection.execute(_INSERT.format("%s", "%s"), (run_id, attempt)).rowcount == 1)
        except BaseException:
            self.end(commit=False)
            raise

    def end(self, *, commit: bool) -> None:
        error = None if commit else _Ended()
        self._transaction.__exit__(error and _Ended, error, None)


class _PsycopgAsync:
    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._transaction: Any = None

    async def begin(self, run_id: str, attempt: int) -> bool:
        connection = self._connection
        _refuse_open_transaction(connection.info.transaction_status != 0)
        async with connection.transaction():
            row = await (await connection.execute(_POSTGRES_HAS)).fetchone()
            if not row[0]:
                await connection.execute(_POSTGRES_LOCK)
                await connection.execute(_POSTGRES_TABLE)
        self._transaction = connection.transaction()
        await self._transaction.__aenter__()
        try:
            cursor = await connection.execute(_INSERT.format("%s", "%s"), (run_id, attempt))
            return bool(cursor.rowcount == 1)
        except BaseException:
            await self.end(commit=False)
            raise

    async def end(self, *, commit: bool) -> None:
        error = None if commit else _Ended()
        await self._transaction.__aexit__(error and _Ended, error, None)


class _Asyncpg:
    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._transaction: Any = None

    async def begin(self, run_id: str, attempt: int) -> bool:
        connection = self._connection
        _refuse_open_transaction(connection.is_in_transaction())
        if not await connection.fetchval(_POSTGRES_HAS):
            async with connection.transaction():
                await connection.execute(_POSTGRES_LOCK)
                await connection.execute(_POSTGRES_TABLE)
        self._transaction = connection.transaction()
        await self._transaction.start()
        try:
            tag = await connection.execute(_INSERT.format("$1", "$2"), run_id, attempt)
            return bool(tag == "INSERT 0 1")
        except BaseException:
            await self.end(commit=False)
            raise

    async def end(self, *, commit: bool) -> None:
        if commit:
            await self._transaction.commit()
        else:
            await self._transaction.rollback()
