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


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time is `micros`; it moves only when nothing can run. Private parts of asyncio are used, and pinned by a test."""

    def __init__(self, dice: Random) -> None:
        self.micros = 0
        self.turns = 0
        self._dice = dice
        self._over = False
        super().__init__()

    def time(self) -> float:
        """Seconds."""
        return self.micros / SECOND

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        """As ever, but the task of a process is noted with it."""
        task = super().create_task(coro, name=name, context=context)  # type: ignore[call-arg, unused-ignore]
        task._log_destroy_pending = False  # type: ignore[attr-defined] # the killed are destroyed pending
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

    def later(self, delay: int, callback: Any, *args: Any) -> asyncio.TimerHandle:
        """Call back after so many µs, as nobody's."""
        return self.call_later(delay / SECOND, callback, *args, context=NOBODY)

    def thaw(self, life: Life) -> None:
        """A frozen process goes on, with all that has come due."""
        life.frozen = False
        self._ready.extend(life.stash)  # type: ignore[attr-defined]
        life.stash = []

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        """After the end of the world nothing is called any more."""
        if self._over:
            return asyncio.Handle(callback, args, self, context)
        return super().call_soon(callback, *args, context=context)

    def end(self) -> None:
        """Close, with everything that is still pending in it."""
        self._over = True
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]
        self.close()

    def _run_once(self) -> None:
        ready, timers = self._ready, self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
        if not ready:
            if not timers:
                raise Deadlock
            self.micros = max(self.micros, math.ceil(timers[0]._when * SECOND - 0.5))
        end = (self.micros + 0.5) / SECOND
        while timers and timers[0]._when < end:
            timer = heapq.heappop(timers)
            timer._scheduled = False
            ready.append(timer)
        batch = []
        for handle in ready:
            life = handle._context.get(LIFE)
            if life is None or (life.up and not life.frozen):
                batch.append(handle)
            elif life.up:
                life.stash.append(handle)
        ready.clear()
        if len(batch) > 1:
            self._dice.shuffle(batch)
        self.turns += len(batch)
        for handle in batch:
            life = handle._context.get(LIFE)
            if handle._cancelled or (life is not None and not life.up):
                continue  # killed a moment ago, in this very turn
            if life is not None and life.frozen:
                life.stash.append(handle)
            else:
                handle._run()


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
        timer = self._loop.call_later(max(0, duration) / SECOND, _wake, woken)
        try:
            await woken
        finally:
            timer.cancel()

    async def wait(self, event: Any, timeout: int | None) -> bool:
        if timeout is None or event.is_set():
            return bool(await event.wait())
        try:
            async with asyncio.timeout(max(0, timeout) / SECOND):
                return bool(await event.wait())
        except TimeoutError:
            return bool(event.is_set())


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
