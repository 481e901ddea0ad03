"""Runs sync functions one at a time, each at its instant: in the main thread of a child process, or in a thread.

    feeder thread: accept, retract, flush     (the child's inbox thread, or the worker's event loop)
    this thread:   heap of staged runs → wait with µs → spin → call → outcomes, in batches

The dictionary `_unstarted` says what may still be taken back: whoever pops a ticket there has the run, so a retract
and a start cannot both win. Outcomes are flushed when 256 have gathered, when the first is 1 ms old, and before
any wait; a worker that sees the executor stuck in a long run asks for the rest by a retract.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush, heapreplace
from types import CoroutineType, TracebackType
from typing import Any, Final

import msgspec

from duly.core.errors import DulyError
from duly.core.model import MAX_RESULT_BYTES
from duly.core.steps import TOLERANCE
from duly.tasks.attempt import MAX_DETAIL
from duly.tasks.context import RunContext, running
from duly.tasks.instant import short_of
from duly.tasks.registry import FunctionRegistry, not_registered
from duly.tasks.wire import Answer, Board, Done, Fault, Item, Outcomes, Progress

FLUSH_AT: Final = 256
FLUSH_AFTER: Final = 1_000  # µs

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Interrupted(BaseException):
    """Raised inside a function that is past its timeout or was cancelled. Not an Exception, so that
    `except Exception` in the function lets it through; `finally` blocks run."""


def microseconds() -> int:
    """CLOCK_MONOTONIC in µs."""
    return time.monotonic_ns() // 1_000


class Staged:
    """A run with its function found and its arguments decoded, ahead of its instant."""

    __slots__ = ("args", "fault", "function", "item", "kwargs", "mode")

    def __init__(self, item: Item, registry: FunctionRegistry) -> None:
        self.item = item
        self.fault: Fault | None = None
        self.function: Callable[..., Any] | None = None
        self.mode = "sync"
        self.args: list[Any] = []
        self.kwargs: dict[str, Any] = {}
        if item.barred:
            self.fault = Fault("input", not_registered(item.name).detail, "", False)
            return
        try:
            self.function, self.mode = registry.find(item.name)
            if item.args != b"[]":
                self.args = _decode(item.args)
            if item.kwargs != b"{}":
                self.kwargs = _decode(item.kwargs)
        except DulyError as error:
            self.fault = Fault("input", error.detail, "", False)
        except Exception as error:  # noqa: BLE001 - importing a user's module may raise anything
            self.fault = fault_of(error, error.__traceback__)


def fault_of(error: BaseException, trace: TracebackType | None) -> Fault:
    """What an exception becomes in the run's record."""
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    detail = "".join(traceback.format_exception(type(error), error, trace))
    return Fault("exception", message[:2_000], detail[-MAX_DETAIL:], True)


def encoded(value: Any) -> tuple[bytes | None, Fault | None]:
    """A function's return value as JSON, or why it cannot be kept."""
    if value is None:
        return None, None
    try:
        result = _encode(value)
    except Exception as error:  # noqa: BLE001 - a value's own code may raise while it is being encoded
        message = f"the function returned a {type(value).__name__} that is not JSON: {error}"
        return None, Fault("input", message[:2_000], "return None, JSON values, or write a file", False)
    if len(result) > MAX_RESULT_BYTES:
        message = f"the result is {len(result)} bytes as JSON; at most {MAX_RESULT_BYTES} are kept"
        return None, Fault("limit", message, "write it to a file in current_run.output instead", False)
    return result, None


class SyncExecutor:
    """The executor of sync functions. `emit` is called from the executor's thread and from the feeder's.
    `shares_clock`: the shards go by this machine's clock, so that it has the last word on when a run begins."""

    def __init__(
        self,
        registry: FunctionRegistry,
        board: Board,
        emit: Callable[[Answer], None],
        *,
        spin: int,
        folder: str,
        shares_clock: bool,
    ) -> None:
        self.current: RunContext | None = None
        self._registry = registry
        self._board = board
        self._emit = emit
        self._spin = spin
        self._folder = folder
        self._shares_clock = shares_clock
        self._inbox: deque[Item] = deque()
        self._unstarted: dict[int, Item] = {}
        self._pending: list[Done] = []
        self._closed = False
        self._asleep = False
        self._bell = threading.Lock()
        self._bell.acquire()

    # -- the feeder's side ----------------------------------------------------------------------------------

    def accept(self, items: list[Item]) -> None:
        """Take runs."""
        for item in items:
            self._unstarted[item.ticket] = item
        self._inbox.extend(items)
        self._ring()

    def retract(self, tickets: list[int] | None) -> list[int]:
        """Take back what has not been started, of these or of all; and let go of finished outcomes."""
        wanted = list(self._unstarted) if tickets is None else tickets
        taken = [ticket for ticket in wanted if self._unstarted.pop(ticket, None) is not None]
        self.flush()
        return taken

    def close(self) -> None:
        """End once what runs has ended; what has not been started never will be."""
        self._closed = True
        self._ring()

    def _ring(self) -> None:
        if self._asleep:
            self._asleep = False
            with contextlib.suppress(RuntimeError):  # it woke by itself at this very moment
                self._bell.release()

    # -- the executor's side --------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until closed."""
        heap: list[tuple[int, int, Staged]] = []
        inbox, spin = self._inbox, self._spin
        order = 0
        while True:
            while inbox:
                item = inbox.popleft()
                order += 1
                heappush(heap, (item.due, order, Staged(item, self._registry)))
            if self._closed:
                self.flush()
                return
            if not heap:
                self.flush()
                self._sleep(None)
                continue
            wait = heap[0][0] - microseconds()
            if wait > 0:
                self.flush()
                if wait > spin:
                    self._sleep(wait - spin)
                    continue
                due = heap[0][0] * 1_000
                while time.monotonic_ns() < due:
                    pass
            if self._shares_clock and wait > -TOLERANCE and (left := short_of(heap[0][2].item.due_at)):
                heapreplace(heap, (microseconds() + left, *heap[0][1:]))
                continue
            staged = heappop(heap)[2]
            if self._take(staged.item):
                self._call(staged)

    def _take(self, item: Item) -> bool:
        found = self._unstarted.pop(item.ticket, None)
        if found is item:
            return True
        if found is not None:  # its ticket was retracted and given to another run since
            self._unstarted[item.ticket] = found
        return False

    def _sleep(self, wait: int | None) -> None:
        self._asleep = True
        if not self._inbox and not self._closed:
            self._bell.acquire(timeout=-1 if wait is None else wait / 1_000_000)
        self._asleep = False

    def _call(self, staged: Staged) -> None:
        item, board = staged.item, self._board
        context = RunContext(item, self._folder, self._progress)
        token = running.set(context)
        board.flags[item.ticket] = 1
        result: bytes | None = None
        context.started = started = microseconds()
        board.words[1] = started
        fault = staged.fault
        try:
            try:
                # From here to the reset of `words[0]` a signal meant for this ticket raises Interrupted.
                self.current = context
                board.words[0] = item.ticket + 1
                if fault is None:
                    value = staged.function(*staged.args, **staged.kwargs)  # type: ignore[misc]  # no fault: found
                    if type(value) is CoroutineType:
                        value = _drive(value)
                    if value is not None:
                        result, fault = encoded(value)
            finally:
                board.words[0] = 0
        except BaseException as error:  # noqa: BLE001 - SystemExit and Interrupted too end the run, not the executor
            board.words[0] = 0  # the signal may have come inside the `finally`
            trace = error.__traceback__
            fault = fault_of(error, trace.tb_next if trace is not None else None)
        self.current = None
        running.reset(token)
        finished = microseconds()
        files, output = context.finish()
        self._pending.append(Done(item.ticket, started, finished, result, fault, files, output))
        pending = self._pending
        if len(pending) >= FLUSH_AT or finished - pending[0].finished > FLUSH_AFTER:
            self.flush()

    def _progress(self, ticket: int, fraction: float, message: str) -> None:
        self._emit(Progress(ticket, fraction, message))

    def flush(self) -> None:
        """Tell the outcomes so far."""
        pending = self._pending
        if pending:
            self._pending = []
            self._emit(Outcomes(pending))


def _drive(value: Any) -> Any:
    """A coroutine function that was not known to be one when it was sent here: it gets a loop of its own."""
    import asyncio

    return asyncio.run(value)
