"""An event loop on virtual time: whatever sleeps is woken at once, in order, and the seed decides who goes first.

A callback belongs to the process (`Life`) in whose context it was made. Those of a process that is frozen are kept
for when it goes on; those of one that was killed are never run: no `finally`, no `except`, nothing. What was killed
is kept referenced to the end of the world, because Python would run its `finally` blocks while forgetting it.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import math
from collections import deque
from collections.abc import Coroutine
from random import Random  # noqa: TID251 - a simulation is made of chance, all of it from one seed
from typing import Any, Final

SECOND: Final = 1_000_000
START: Final = 1_800_000_000_000_000  # 2027-01-15T08:00:00Z
NOBODY: Final = contextvars.Context()  # what belongs to no process: the network, the weather


class Life:
    """One process from its start to its end. `boot` is where its monotonic clock began."""

    def __init__(self, name: str, number: int, boot: int) -> None:
        self.name = name
        self.number = number
        self.boot = boot
        self.up = True
        self.frozen = False
        self.context = contextvars.Context()
        self.context.run(LIFE.set, self)
        self.stash: list[asyncio.Handle] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.swept_at = 64

    def __str__(self) -> str:
        return f"{self.name}.{self.number}"


LIFE: contextvars.ContextVar[Life | None] = contextvars.ContextVar("LIFE", default=None)


class Deadlock(Exception):
    """Nothing is scheduled any more."""


class Call(asyncio.TimerHandle):
    """A callback and the process that it belongs to: the handle of asyncio, without what costs time there."""

    __slots__ = ("life",)

    def __init__(self, callback: Any, args: Any, loop: VirtualLoop, context: contextvars.Context) -> None:
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = context
        self._cancelled = False
        self._repr = None
        self._source_traceback = None
        self.life = context.get(LIFE)

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = self._args = None


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time is `micros`; it moves only when nothing can run. Private parts of asyncio are used, and pinned by a test."""

    _ready: deque[Call]  # of the loop that this is made from

    def __init__(self, dice: Random) -> None:
        self.micros = 0
        self.turns = 0
        self._dice = dice
        self._over = False
        self._timers: list[tuple[int, int, Call]] = []
        self._order = 0
        super().__init__()

    def time(self) -> float:
        """Seconds."""
        return self.micros / SECOND

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        """As ever, but the task of a process is noted with it."""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name or "-", context=context)
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # the killed are destroyed pending
        life = LIFE.get() if context is None else context.get(LIFE)
        if life is not None:
            life.tasks.add(task)
            if len(life.tasks) > life.swept_at:
                life.tasks = {task for task in life.tasks if not task.done()}
                life.swept_at = 2 * len(life.tasks) + 64
        return task

    def start(self, life: Life | None, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` as a part of a process (None: of the world)."""
        return self.create_task(work, context=NOBODY.copy() if life is None else life.context.copy())

    def later(self, delay: int, callback: Any, *args: Any) -> Call:
        """Call back after so many µs, as nobody's."""
        return self.wake(self.micros + delay, callback, args, NOBODY)

    def wake(self, at: int, callback: Any, args: Any, context: contextvars.Context | None = None) -> Call:
        """Call back at a time in µs."""
        call = Call(callback, args, self, contextvars.copy_context() if context is None else context)
        self._order += 1
        if not self._over:
            heapq.heappush(self._timers, (at, self._order, call))
        return call

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Call:
        """`when` is rounded to the µs."""
        return self.wake(math.ceil(when * SECOND - 0.5), callback, args, context)

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Call:
        """`delay` is rounded to the µs."""
        return self.wake(self.micros + math.ceil(delay * SECOND - 0.5), callback, args, context)

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Call:
        """After the end of the world nothing is called any more."""
        call = Call(callback, args, self, contextvars.copy_context() if context is None else context)
        if not self._over:
            self._ready.append(call)
        return call

    def thaw(self, life: Life) -> None:
        """A frozen process goes on, with all that has come due."""
        life.frozen = False
        self._ready.extend(life.stash)
        life.stash = []

    def end(self) -> None:
        """Close, with everything that is still pending in it."""
        self._over = True
        self._ready.clear()
        self._timers.clear()
        self.close()

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not ready:
            if not timers:
                raise Deadlock
            self.micros = max(self.micros, timers[0][0])
        now = self.micros
        while timers and timers[0][0] <= now:
            ready.append(heapq.heappop(timers)[2])
        batch = list(ready)
        ready.clear()
        if len(batch) > 1:
            self._dice.shuffle(batch)
        self.turns += len(batch)
        for call in batch:
            if call._cancelled:
                continue
            life = call.life
            if life is not None:
                if not life.up:
                    continue  # killed, maybe a moment ago, in this very turn
                if life.frozen:
                    life.stash.append(call)
                    continue
            try:
                call._context.run(call._callback, *call._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as problem:  # noqa: BLE001 - as asyncio's own handles do
                self.call_exception_handler({"message": "a callback failed", "exception": problem, "handle": call})


class NodeClock:
    """The Clock port of one process: a wall clock that may be off, a monotonic one that begins anywhere."""

    def __init__(self, loop: VirtualLoop, boot: int = 0) -> None:
        self.skew = 0
        self._loop = loop
        self._boot = boot

    def wall(self) -> int:
        return START + self._loop.micros + self.skew

    def monotonic(self) -> int:
        return self._boot + self._loop.micros

    async def sleep(self, duration: int) -> None:
        woken = self._loop.create_future()
        timer = self._loop.wake(self._loop.micros + max(0, duration), _wake, (woken,))
        try:
            await woken
        finally:
            timer.cancel()

    async def wait(self, event: Any, timeout: int | None) -> bool:
        if timeout is None or event.is_set():
            return bool(await event.wait())
        woken = self._loop.create_future()
        timer = self._loop.wake(self._loop.micros + max(0, timeout), _wake, (woken,))
        event._waiters.append(woken)  # an asyncio.Event wakes whoever is among them
        try:
            await woken
        finally:
            timer.cancel()
            event._waiters.remove(woken)
        return bool(event.is_set())


def _wake(sleeper: asyncio.Future[Any]) -> None:
    if not sleeper.done():
        sleeper.set_result(True)
