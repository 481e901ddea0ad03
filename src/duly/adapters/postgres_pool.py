"""Connections to one PostgreSQL database: few, bounded, without session state, and with a limit to every wait.

    caller ──▶ at most MAX_WAITING wait ──▶ a connection ──▶ one statement = one transaction (functions: 0002_functions)
                                                       └──▶ or begin … commit, for what needs one snapshot or commit

Nothing is left behind on a connection (no SET, LISTEN, session lock or temporary table), so a transaction pooler may
stand between; then the URL says `?statement_cache_size=0`. Some connections are kept for what cannot wait behind bulk
work: leases, terms and the clock.

What a failure means: refused, or lost before anything was sent: Unavailable. Lost, or no answer in time, while a
statement that writes or a commit was under way: OutcomeUnknown. An error that the server names: nothing was written.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from duly.core.errors import DulyError, Fenced, InvalidInput, OutcomeUnknown, Overloaded, StorageFull, Unavailable

CONNECTIONS: Final = 8
URGENT: Final = 2  # of them, kept for leases, terms and the clock
MAX_WAITING: Final = 1_000  # calls that wait for a connection; beyond these one is refused, an urgent one at twice
ACQUIRE_WITHIN: Final = 10.0  # seconds
CONNECT_WITHIN: Final = 5.0
ANSWER_WITHIN: Final = 15.0
IDLE_FOR: Final = 60.0  # a connection that was not used for so long is closed
# Of a transaction of several statements, so that a client that vanishes in the middle holds no lock for long.
BEGIN: Final = "begin; set local idle_in_transaction_session_timeout = '15s'; set local lock_timeout = '10s'"
TRIES: Final = 4  # of a call that met a deadlock or a serialization failure

LOOK_AGAIN: Final = "DU002"  # raised by the functions that judge leases
STALE_MAP: Final = "DU003"  # raised by the function that creates jobs
_FENCED: Final = "DU001"
_NOT_MIGRATED: Final = ("3F000", "42P01", "42883")  # no such schema, table, function
_UNSURE: Final = ("57P01", "57P02", "57P05")  # a backend that is told to end may have committed just before

_ARRAYS: Final = {1000: ("_bool", 16), 1005: ("_int2", 21), 1007: ("_int4", 23), 1016: ("_int8", 20)}

T = TypeVar("T")
Row = Any  # asyncpg's Record


class LookAgain(DulyError):
    """The database's clock, or what is known of its steps, is not what the caller believes."""


class StaleMap(DulyError):
    """Another slot map is in force than the one that the caller knows."""


class _Connection(asyncpg.Connection):
    def get_reset_query(self) -> str:
        """Nothing to reset, which halves the cost of a short call: connections carry no state here."""
        return ""

    async def _introspect_types(self, typeoids: Collection[int], timeout: float) -> Any:
        """The arrays that are passed here are known; asking the server would change settings of the session."""
        if not set(typeoids) <= _ARRAYS.keys():
            return await super()._introspect_types(typeoids, timeout)  # type: ignore[misc]  # private there
        return [_array_type(oid, *_ARRAYS[oid]) for oid in typeoids], SimpleNamespace(name="none was needed")


def _array_type(oid: int, name: str, element: int) -> dict[str, object]:
    unset = dict.fromkeys(("basetype", "range_subtype", "attrtypoids", "attrnames"))
    return {"oid": oid, "ns": "pg_catalog", "name": name, "kind": "b", "elemtype": element, "elemdelim": ",", **unset}


class Options(NamedTuple):
    """What a URL says of the pool, besides what libpq knows: `?connections=4&statement_cache_size=0`."""

    url: str
    connections: int
    statement_cache_size: int

    @classmethod
    def of(cls, url: str) -> Options:
        """Raises InvalidInput for a number that is none, or out of bounds."""
        parts = urlsplit(url)
        found = {"connections": (CONNECTIONS, URGENT + 1, 1_000), "statement_cache_size": (100, 0, 10_000)}
        values, rest = {}, []
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name in found:
                values[name] = value
            else:
                rest.append((name, value))
        numbers = {}
        for name, (default, least, most) in found.items():
            text = values.get(name, str(default))
            if not text.isdecimal() or not least <= int(text) <= most:
                raise InvalidInput.at("/stores", f"{name} of a shard's URL is a number from {least} to {most}")
            numbers[name] = int(text)
        return cls(urlunsplit(parts._replace(query=urlencode(rest))), **numbers)


class Pool:
    """Bounded access to one database. Nothing connects before the first call."""

    def __init__(self, url: str) -> None:
        options = Options.of(url)
        self._url = options.url
        self._connections = options.connections
        self._statement_cache_size = options.statement_cache_size
        self._general = asyncio.Semaphore(self._connections - URGENT)
        self._waiting = 0
        self._pool: asyncpg.Pool[Row] | None = None
        self._closed = False

    # -- calls ----------------------------------------------------------------------------------------------

    async def read(self, sql: str, *args: object, urgent: bool = False, within: float = ANSWER_WITHIN) -> list[Row]:
        """The rows of one statement that writes nothing."""
        return await self._statement(sql, lambda: args, writes=False, urgent=urgent, within=within)

    async def write(self, sql: str, *args: object, within: float = ANSWER_WITHIN) -> list[Row]:
        """The rows of one statement that is a transaction by itself; carried out again after a deadlock."""
        return await self._statement(sql, lambda: args, writes=True, urgent=False, within=within)

    async def judge(self, sql: str, args: Callable[[], Sequence[object]], *, writes: bool = True) -> list[Row]:
        """As `write` (or `read`), ahead of others, with arguments that are made once there is a connection."""
        return await self._statement(sql, args, writes=writes, urgent=True, within=ANSWER_WITHIN)

    async def _statement(
        self, sql: str, args: Callable[[], Sequence[object]], *, writes: bool, urgent: bool, within: float
    ) -> list[Row]:
        async def call() -> list[Row]:
            async with self._connection(urgent=urgent) as connection:
                try:
                    return await connection.fetch(sql, *args(), timeout=within)
                except Exception as problem:
                    _drop_if_stuck(connection, problem)
                    raise translated(problem, unsure=writes) from problem

        return await _again_after_deadlock(call)

    async def transact(
        self, begin: str, work: Callable[[asyncpg.Connection], Awaitable[T]], *, writes: bool = False
    ) -> T:
        """Carry out `work` between `begin` and a commit; again from the beginning after a deadlock."""

        async def call() -> T:
            async with self._connection(urgent=False) as connection:
                try:
                    await connection.execute(begin)
                    result = await work(connection)
                except BaseException as problem:
                    _drop_if_stuck(connection, problem)
                    await _roll_back(connection)
                    if isinstance(problem, Exception):
                        raise translated(problem, unsure=False) from problem
                    raise
                try:
                    await connection.execute("commit")
                except Exception as problem:
                    _drop_if_stuck(connection, problem)
                    raise translated(problem, unsure=writes) from problem
                return result

        return await _again_after_deadlock(call)

    # -- connections ----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _connection(self, *, urgent: bool) -> AsyncIterator[asyncpg.Connection]:
        if self._closed:
            raise Unavailable("the store is closed")
        if self._waiting >= (2 * MAX_WAITING if urgent else MAX_WAITING):
            raise Overloaded("the store has more calls waiting than it takes")
        self._waiting += 1
        try:
            if not urgent:
                await _within(ACQUIRE_WITHIN, self._general.acquire())
            try:
                connection = await self._acquire()
            except BaseException:
                if not urgent:
                    self._general.release()
                raise
        finally:
            self._waiting -= 1
        try:
            yield connection
        finally:
            try:
                await self._release(connection)
            finally:
                if not urgent:
                    self._general.release()

    async def _acquire(self) -> asyncpg.Connection:
        if self._pool is None:
            self._pool = asyncpg.create_pool(
                self._url,
                min_size=0,
                max_size=self._connections,
                max_inactive_connection_lifetime=IDLE_FOR,
                connection_class=_Connection,
                timeout=CONNECT_WITHIN,
                command_timeout=ANSWER_WITHIN,
                statement_cache_size=self._statement_cache_size,
            )
        pool = self._pool
        try:
            await pool
            connection = await pool.acquire(timeout=ACQUIRE_WITHIN)
        except Exception as problem:
            if self._closed:
                raise Unavailable("the store is closed") from problem
            raise translated(problem, unsure=False) from problem
        return connection  # type: ignore[return-value]  # a proxy that has all of it

    async def _release(self, connection: asyncpg.Connection) -> None:
        if self._pool is not None:
            # One that cannot be brought into order is closed, and a new one is opened by the next call.
            with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await self._pool.release(connection, timeout=CONNECT_WITHIN)  # type: ignore[arg-type]  # its proxy

    async def close(self) -> None:
        """Wait for calls under way, then close all connections."""
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                async with asyncio.timeout(ANSWER_WITHIN):
                    await pool.close()
            except TimeoutError:
                pool.terminate()


async def _within(seconds: float, wait: Awaitable[object]) -> None:
    try:
        async with asyncio.timeout(seconds):
            await wait
    except TimeoutError:
        raise Overloaded("the store had no connection free in time") from None


def _drop_if_stuck(connection: asyncpg.Connection, problem: BaseException) -> None:
    """A connection that was cut while a statement was cancelled may still count as busy: nobody shall get it again."""
    if isinstance(problem, asyncpg.InternalClientError):
        connection.terminate()


async def _roll_back(connection: asyncpg.Connection) -> None:
    # A connection that is lost rolls back by itself, and a pool has taken it back already.
    with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        if connection.is_in_transaction():
            await connection.execute("rollback")


class _Deadlock(Unavailable):
    """Two transactions got in each other's way; nothing of this one was written."""


async def _again_after_deadlock(call: Callable[[], Awaitable[T]]) -> T:
    for _ in range(TRIES - 1):
        try:
            return await call()
        except _Deadlock:
            continue
    return await call()


def translated(problem: Exception, *, unsure: bool) -> Exception:
    """An error of the driver's as one of ours; what is neither stays as it is. `unsure`: it may have been committed."""
    if isinstance(problem, asyncpg.PostgresError):
        return _of_server(problem, getattr(problem, "sqlstate", None) or "", unsure=unsure)
    if isinstance(problem, (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError, EOFError)):
        what = str(problem) or type(problem).__name__
        if unsure:
            return OutcomeUnknown(f"the connection to PostgreSQL was lost, or gave no answer in time: {what}")
        return Unavailable(f"PostgreSQL does not answer: {what}")
    return problem


def _of_server(problem: asyncpg.PostgresError, state: str, *, unsure: bool) -> Exception:
    if state == LOOK_AGAIN:
        return LookAgain()
    if state == STALE_MAP:
        return StaleMap()
    if state == _FENCED:
        return Fenced(str(problem))
    if state in ("40P01", "40001"):
        return _Deadlock(f"PostgreSQL: {problem}")
    if state == "53100":
        return StorageFull()
    if state in _NOT_MIGRATED:
        return Unavailable(f"the schema of the database is not up to date: run `duly migrate` ({problem})")
    if state == "22021":
        return InvalidInput("text that is stored by itself (names, labels) cannot contain NUL")
    if unsure and (state in _UNSURE or state.startswith("08")):
        return OutcomeUnknown(f"the connection to PostgreSQL was lost: {problem}")
    # No connection; resources; an operator's doing; a standby; not let in: all of them pass, or are someone's to mend.
    if state[:2] in ("08", "53", "57", "25", "28", "58") or state in ("55P03", "3D000"):
        return Unavailable(f"PostgreSQL: {problem}")
    return problem
