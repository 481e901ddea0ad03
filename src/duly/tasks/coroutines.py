"""Runs coroutine functions, many at a time, on one event loop whose timers neither round up nor fire early.

asyncio's own epoll timeout is rounded up to a millisecond, and uvloop's timers fire up to 0.3 ms before their
instant; `FineSelector` waits with microseconds, and the last stretch is spun, so a start is at its instant.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import select
import selectors
import time
from collections.abc import Callable
from heapq import heappop, heappush, heapreplace
from typing import Any, Final

from duly.core.steps import TOLERANCE
from duly.tasks.context import RunContext, running
from duly.tasks.executor import FLUSH_AT, Staged, encoded, fault_of, microseconds
from duly.tasks.instant import short_of
from duly.tasks.registry import FunctionRegistry
from duly.tasks.wire import Answer, Begun, Board, Done, Item, Outcomes, Progress

BEGUN_AFTER: Final = 0.002  # seconds; a run that ended by then needs no word of its start
COARSE: Final = 0.004  # seconds; a longer wait is made in steps
_AT_ONCE: Final = 64  # starts between two looks at everything else


class FineSelector(selectors.EpollSelector):
    """Epoll, waiting with the microseconds of `select` (whose own limit of 1024 descriptors is checked)."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As Selector.select."""
        if timeout is not None and timeout > 0 and self.fileno() < 1_024:
            self._wait(timeout)
            timeout = 0
        return super().select(timeout)

    def _wait(self, timeout: float) -> None:
        """Until a descriptor is ready or the time is up, in steps: the kernel may oversleep by a thousandth of the
        timeout that it is given (`select_estimate_accuracy` in fs/select.c), which is 0.5 ms in half a second."""
        end = time.monotonic() + timeout
        left = timeout
        while left > 0:
            if select.select([self.fileno()], [], [], left if left < COARSE else left * 0.995)[0]:
                return
            left = end - time.monotonic()


def fine_loop() -> asyncio.SelectorEventLoop:
    """An event loop for coroutines with instants."""
    return asyncio.SelectorEventLoop(FineSelector())


class AsyncExecutor:
    """The executor of coroutine functions. Everything but the constructor is called on its loop."""

    def __init__(
        self,
        registry: FunctionRegistry,
        board: Board,
        emit: Callable[[Answer], None],
        *,
        spin: int,
        folder: str,
        limit: int,
        shares_clock: bool,
    ) -> None:
        self._registry = registry
        self._board = board
        self._emit = emit
        self._spin = spin
        self._folder = folder
        self._limit = limit
        self._shares_clock = shares_clock
        self._order = 0
        self._heap: list[tuple[int, int, Staged]] = []
        self._unstarted: dict[int, Item] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._begun: dict[int, int] = {}
        self._pending: list[Done] = []
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = False
        self._announcing = False

    def accept(self, items: list[Item]) -> None:
        """Take runs."""
        for item in items:
            self._order += 1
            self._unstarted[item.ticket] = item
            heappush(self._heap, (item.due, self._order, Staged(item, self._registry)))
        self._look()

    def retract(self, tickets: list[int] | None) -> list[int]:
        """Take back what has not been started, of these or of all."""
        wanted = list(self._unstarted) if tickets is None else tickets
        taken = [ticket for ticket in wanted if self._unstarted.pop(ticket, None) is not None]
        self.flush()
        return taken

    def kill(self, ticket: int) -> None:
        """Cancel a run."""
        task = self._tasks.get(ticket)
        if task is None:
            return
        if self._board.flags[ticket]:
            task.cancel()
        else:  # a task that is cancelled before its first step never tells its outcome
            asyncio.get_running_loop().call_soon(self.kill, ticket)

    async def close(self) -> None:
        """Cancel what runs."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.flush()

    def _look(self) -> None:
        """Start what is due and set the timer for the next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop, heap, spin = asyncio.get_running_loop(), self._heap, self._spin
        for _ in range(_AT_ONCE):
            if not heap or len(self._tasks) >= self._limit:
                return  # the end of a run looks again
            due = heap[0][0]
            wait = due - microseconds()
            if wait > spin:
                self._timer = loop.call_at((due - spin) / 1_000_000, self._look)
                return
            if wait > 0:
                while time.monotonic_ns() < due * 1_000:
                    pass
            if self._shares_clock and wait > -TOLERANCE and (left := short_of(heap[0][2].item.due_at)):
                heapreplace(heap, (microseconds() + left, *heap[0][1:]))
                continue
            staged = heappop(heap)[2]
            ticket = staged.item.ticket
            if self._unstarted.get(ticket) is staged.item:
                del self._unstarted[ticket]
                self._tasks[ticket] = loop.create_task(self._run(staged))
        self._timer = loop.call_at(0, self._look)

    async def _run(self, staged: Staged) -> None:
        item = staged.item
        context = RunContext(item, self._folder, self._progress)
        running.set(context)
        self._board.flags[item.ticket] = 1
        context.started = started = microseconds()
        self._begun[item.ticket] = started
        if not self._announcing:
            self._announcing = True
            asyncio.get_running_loop().call_later(BEGUN_AFTER, self._announce)
        result, fault = None, staged.fault
        try:
            if fault is None:
                function = staged.function
                if staged.mode == "async":
                    value = await function(*staged.args, **staged.kwargs)  # type: ignore[misc]  # no fault: found
                else:
                    value = await asyncio.to_thread(function, *staged.args, **staged.kwargs)  # type: ignore[arg-type]  # found
                    if inspect.isawaitable(value):
                        value = await value
                result, fault = encoded(value)
        except BaseException as error:  # noqa: BLE001 - a cancel, SystemExit, too: it ends the run, not the loop
            trace = error.__traceback__
            fault = fault_of(error, trace.tb_next if trace is not None else None)
        finished = microseconds()
        files, output = context.finish()
        del self._tasks[item.ticket]
        self._begun.pop(item.ticket, None)
        self._pending.append(Done(item.ticket, started, finished, result, fault, files, output))
        if len(self._pending) >= FLUSH_AT:
            self.flush()
        elif not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self.flush)
        if self._heap and self._timer is None:
            self._look()

    def _announce(self) -> None:
        self._announcing = False
        if self._begun:
            begun, self._begun = list(self._begun.items()), {}
            self._emit(Begun(begun))

    def _progress(self, ticket: int, fraction: float, message: str) -> None:
        self._emit(Progress(ticket, fraction, message))

    def flush(self) -> None:
        """Tell the outcomes so far."""
        self._flushing = False
        if self._pending:
            pending, self._pending = self._pending, []
            self._emit(Outcomes(pending))


def serve(executor: AsyncExecutor, loop: asyncio.AbstractEventLoop, until: asyncio.Future[Any]) -> None:
    """Run the loop until the future is done, then cancel what still runs and close the loop."""
    asyncio.set_event_loop(loop)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(until)
        loop.run_until_complete(executor.close())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
