"""Seats in threads of the worker's own process: for a user's own program, where functions run as they are.

A thread cannot be killed. A function in it that will not end is left behind and counted (`pool.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable

from duly.tasks.attempt import Held, Stage
from duly.tasks.coroutines import AsyncExecutor, fine_loop, serve
from duly.tasks.executor import SyncExecutor, microseconds
from duly.tasks.registry import FunctionRegistry
from duly.tasks.seat import Seat
from duly.tasks.wire import Answer, Board, Item, Retracted


class _InProcess(Seat):
    """A thread of this process; answers come to the event loop in one hop for many."""

    def __init__(self, tell: Callable[[Seat, Answer], None], gone: Callable[[Seat, int], None]) -> None:
        super().__init__(tell, gone)
        self.ready = True
        self.board = Board()
        self._loop = asyncio.get_running_loop()
        self._answers: deque[Answer] = deque()
        self._hop = False

    def _emit(self, answer: Answer) -> None:
        self._answers.append(answer)
        if not self._hop:
            self._hop = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for it any more
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._hop = False
        while self._answers:
            self._tell(self, self._answers.popleft())


class ThreadSeat(_InProcess):
    """A thread that runs sync functions one at a time. Daemonic: a function that never ends keeps no program up."""

    def __init__(
        self,
        tell: Callable[[Seat, Answer], None],
        gone: Callable[[Seat, int], None],
        registry: FunctionRegistry,
        stage: Stage,
        folder: str,
    ) -> None:
        super().__init__(tell, gone)
        self._executor = SyncExecutor(
            registry, self.board, self._emit, spin=stage.spin, folder=folder, shares_clock=stage.shares_clock
        )
        self._thread = threading.Thread(target=self._executor.run, name="duly-function", daemon=True)
        self._thread.start()

    def _work(self, items: list[Item]) -> None:
        self._executor.accept(items)

    def _retract(self, serial: int, tickets: list[int] | None) -> None:
        self._emit(Retracted(serial, self._executor.retract(tickets)))

    def abandon(self) -> None:
        """Its thread ends when the function does."""
        self._executor.close()

    async def close(self, grace: float) -> None:
        """Wait at most `grace` seconds for what runs; a function that takes longer is left behind."""
        self._executor.close()
        until = microseconds() + int(grace * 1_000_000)
        while self._thread.is_alive() and microseconds() < until and not self.left:
            await asyncio.to_thread(self._thread.join, 0.05)
        self._deliver()


class LoopSeat(_InProcess):
    """A thread with an event loop that runs coroutine functions."""

    wide = True

    def __init__(
        self,
        tell: Callable[[Seat, Answer], None],
        gone: Callable[[Seat, int], None],
        registry: FunctionRegistry,
        stage: Stage,
        folder: str,
        limit: int,
    ) -> None:
        super().__init__(tell, gone)
        self._executor = AsyncExecutor(
            registry,
            self.board,
            self._emit,
            spin=stage.spin,
            folder=folder,
            limit=limit,
            shares_clock=stage.shares_clock,
        )
        self._inner = fine_loop()
        self._until: asyncio.Future[None] = self._inner.create_future()
        self._thread = threading.Thread(
            target=serve, args=(self._executor, self._inner, self._until), name="duly-coroutines", daemon=True
        )
        self._thread.start()

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # closed
            self._inner.call_soon_threadsafe(function, *arguments)

    def _work(self, items: list[Item]) -> None:
        self._call(self._executor.accept, items)

    def _retract(self, serial: int, tickets: list[int] | None) -> None:
        def retract() -> None:
            self._emit(Retracted(serial, self._executor.retract(tickets)))

        self._call(retract)

    def interrupt(self, held: Held) -> None:
        """Cancel the coroutine."""
        self._call(self._executor.kill, held.ticket)

    async def close(self, grace: float) -> None:
        """Cancel what runs; wait at most `grace` seconds for it."""

        def end() -> None:
            if not self._until.done():
                self._until.set_result(None)

        self._call(end)
        until = microseconds() + int(grace * 1_000_000)
        while self._thread.is_alive() and microseconds() < until:
            await asyncio.to_thread(self._thread.join, 0.05)
        self._deliver()
