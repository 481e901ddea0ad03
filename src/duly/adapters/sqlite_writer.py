"""One writer for a SQLite file, with group commit: many calls, one transaction, one fsync.

    caller ── Call ──▶ queue ──▶ writer thread:  begin immediate · call · call · … · commit ──▶ resolve all futures

A call is a function of the open transaction, which may be run twice: a call that breaks the transaction spoils the
batch, so the batch is rolled back and each of its calls is run again in a transaction of its own. A call that raises
a DulyError must have written nothing by then; that error is its answer and the batch goes on.
Inline (for `:memory:` and for tests in virtual time) there is no thread: a call is its own batch, on the caller's.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections import Counter
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar, cast

import apsw

from duly.adapters.sqlite_bulk import in_bulk
from duly.core.errors import DulyError, OutcomeUnknown, Overloaded, StorageFull, Unavailable

MAX_CALLS: Final = 512  # in one commit
MAX_ROWS: Final = 4_096  # in one commit, unless a single call has more
MAX_QUEUED_ROWS: Final = 200_000  # beyond these a call is refused

T = TypeVar("T")

_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: of the process, or of the file system
_FSYNC: Final = (apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_DIR_FSYNC)


class Transaction:
    """What a call works on: the connection inside `begin immediate`, and counts to add to the tallies."""

    __slots__ = ("db", "tally")

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db
        self.tally: Counter[str] = Counter()

    def many(self, sql: str, rows: list[Any]) -> int:
        """Run a statement for each row; returns how many rows it changed in all."""
        before = self.db.total_changes()
        self.db.executemany(sql, rows)
        return self.db.total_changes() - before

    def one(self, sql: str, row: tuple[Any, ...]) -> bool:
        """Run a statement once; True if it changed a row."""
        before = self.db.total_changes()
        self.db.execute(sql, row)
        return self.db.total_changes() != before


class _Call:
    __slots__ = ("committed", "error", "future", "result", "rows", "work")

    def __init__(
        self,
        work: Callable[[Transaction], Any],
        rows: int,
        committed: Callable[[Any], None] | None,
        future: asyncio.Future[Any] | None,
    ) -> None:
        self.work = work
        self.rows = rows
        self.committed = committed
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None


class Writer:
    """The only connection that writes. What calls add to the tallies is written once, in each batch's transaction."""

    def __init__(self, db: apsw.Connection, *, inline: bool, name: str) -> None:
        self._db = db
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._queued_rows = 0
        self._counting = threading.Lock()
        self._refusal: Unavailable | None = None
        self._thread: threading.Thread | None = None
        if not inline:
            self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
            self._thread.start()

    @property
    def queued_rows(self) -> int:
        """Rows of the calls that wait for a commit."""
        return self._queued_rows

    async def submit(
        self,
        work: Callable[[Transaction], T],
        *,
        rows: int = 1,
        committed: Callable[[T], None] | None = None,
    ) -> T:
        """Run `work` inside a transaction and return its result after the commit.

        `committed` is called with it on the writer's thread, after the commit and in commit order, before the answer.
        Raises Overloaded, StorageFull, OutcomeUnknown, Unavailable, and what DulyError `work` raises.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._thread is None:
            call = _Call(work, rows, committed, None)
            self._batch([call])
            if call.error is not None:
                raise call.error
            return cast("T", call.result)
        with self._counting:
            if self._queued_rows and self._queued_rows + rows > MAX_QUEUED_ROWS:
                raise Overloaded("the store has more writes waiting than it takes")
            self._queued_rows += rows
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put(_Call(work, rows, committed, future))
        return await future

    def refuse(self, error: Unavailable) -> None:
        """From now on, refuse new calls with this error; those queued are still carried out."""
        if self._refusal is None:
            self._refusal = error

    def drain(self) -> None:
        """Commit what is queued and end the thread. Blocks; call `refuse` first."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    # -- on the writer's thread -----------------------------------------------------------------------------

    def _loop(self) -> None:
        last = False
        while not last:
            call = self._queue.get()
            if call is None:
                return
            calls = [call]
            rows = call.rows
            while len(calls) < MAX_CALLS and rows < MAX_ROWS:
                try:
                    call = self._queue.get_nowait()
                except Empty:
                    break
                if call is None:
                    last = True
                    break
                calls.append(call)
                rows += call.rows
            try:
                self._batch(calls)
            except Exception as problem:  # noqa: BLE001 - with this thread gone, callers would wait for ever
                self._give_up(calls, problem)
            with self._counting:
                self._queued_rows -= sum(call.rows for call in calls)
            _answer(calls)

    def _batch(self, calls: list[_Call]) -> None:
        """Carry out calls in one transaction; each ends with a result or an error."""
        db = self._db
        committing = False
        try:
            db.execute("begin immediate")
            transaction = Transaction(db)
            for call in calls:
                try:
                    call.result = call.work(transaction)
                except DulyError as refusal:
                    call.error = refusal
            counts = [(name, n) for name, n in transaction.tally.items() if n]
            in_bulk(db, "add_to_tally", counts)
            committing = True
            db.execute("commit")
        except Exception as problem:  # noqa: BLE001 - whatever a call raises is its caller's, not this thread's end
            self._spoilt(calls, problem, committing=committing)
            return
        for call in calls:
            if call.error is None and call.committed is not None:
                call.committed(call.result)

    def _spoilt(self, calls: list[_Call], problem: Exception, *, committing: bool) -> None:
        if self._db.in_transaction:
            self._db.execute("rollback")
        error = translated(problem, self._db)
        if committing and not isinstance(error, StorageFull):
            # After a failed fsync nobody knows what is on the disk, and a second fsync may lie: stop here.
            error = OutcomeUnknown(f"the commit failed: {problem}")
            self.refuse(Unavailable(f"the store was stopped after a failed commit: {problem}"))
        elif len(calls) > 1:
            for call in calls:
                call.error = None
                self._batch([call])
            return
        for call in calls:
            call.error = error

    def _give_up(self, calls: list[_Call], problem: Exception) -> None:
        """A rollback failed, or what follows a commit did: the state of this process is not to be trusted."""
        self.refuse(Unavailable(f"the store was stopped: {problem!r}"))
        for call in calls:
            call.error = OutcomeUnknown(f"the store was stopped: {problem!r}")


def _answer(calls: list[_Call]) -> None:
    loops: dict[asyncio.AbstractEventLoop, list[_Call]] = {}
    for call in calls:
        if call.future is not None:
            loops.setdefault(call.future.get_loop(), []).append(call)
    for loop, theirs in loops.items():
        try:
            loop.call_soon_threadsafe(_resolve, theirs)
        except RuntimeError:  # the loop was closed: nobody is left to be told
            continue


def _resolve(calls: list[_Call]) -> None:
    for call in calls:
        future = call.future
        if future is None or future.done():
            continue
        if call.error is None:
            future.set_result(call.result)
        else:
            future.set_exception(call.error)


def translated(problem: Exception, db: apsw.Connection) -> Exception:
    """An error of SQLite as one of ours; what is not SQLite's stays as it is."""
    if isinstance(problem, apsw.FullError):
        return StorageFull()
    if (
        isinstance(problem, apsw.IOError)
        and db.system_errno in _NO_SPACE
        and getattr(problem, "extendedresult", 0) not in _FSYNC  # whatever its reason, what is on the disk is unknown
    ):
        return StorageFull()
    if isinstance(problem, apsw.IOError | apsw.CorruptError | apsw.NotADBError | apsw.CantOpenError | apsw.BusyError):
        return Unavailable(f"SQLite: {problem}")
    return problem
