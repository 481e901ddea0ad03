"""Tests of a program's jobs on a clock that is moved by hand: no waiting, no files, the same scheduler.

    from duly.testing import manual
    from shop import duly, close_of_day              # the program's own Duly and functions

    def test_close_of_day():
        with manual(duly, start="2027-01-15T17:00:00Z") as time:
            time.advance("24h")
            assert [run.state for run in time.runs(close_of_day)] == ["succeeded"]

Functions run in this process, at once, when the clock reaches their instant. Commands and requests do not run.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import inspect
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from duly.core.contract import RunView
from duly.core.instants import DAY, HOUR, format_instant, parse_duration, parse_instant
from duly.core.model import Failure, FunctionTask
from duly.ports import Waitable
from duly.program import Duly, Embedded
from duly.tasks.attempt import Held, Sink
from duly.tasks.context import RunContext, running
from duly.tasks.executor import Staged, encoded, fault_of
from duly.tasks.registry import FunctionRegistry, name_of
from duly.tasks.wire import Item

if TYPE_CHECKING:
    from duly.boot import Node

START: Final = 1_800_000_000_000_000  # 2027-01-15T08:00:00Z


class ManualClock:
    """The Clock port, moved by hand: `advance` wakes sleepers in the order of their times.

    `skew` sets the wall clock apart from the monotonic one, as an operator or NTP does.
    """

    def __init__(self, start: int = START) -> None:
        self.skew = start
        self._monotonic = 0
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def wall(self) -> int:
        """Microseconds UTC."""
        return self._monotonic + self.skew

    def monotonic(self) -> int:
        """Microseconds that were moved so far."""
        return self._monotonic

    async def sleep(self, duration: int) -> None:
        """Returns when the clock was moved on by `duration` µs."""
        if duration <= 0:
            await settle(1)
        else:
            await self._timer(duration)

    def _timer(self, duration: int) -> asyncio.Future[None]:
        """A future that is done once so much time has passed."""
        timer = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + max(0, duration), next(self._order), timer))
        return timer

    async def wait(self, event: Waitable, timeout: int | None) -> bool:
        """Waits for the event, or until the clock was moved on by `timeout` µs."""
        if timeout is None or event.is_set():
            return await event.wait()
        timer = self._timer(timeout)
        waiting = asyncio.ensure_future(event.wait())
        try:
            either: set[asyncio.Future[Any]] = {timer, waiting}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
        return event.is_set()

    @property
    def next_wake(self) -> int | None:
        """When the next sleeper wakes, by the monotonic clock; None if all are awake."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    async def advance(self, duration: int) -> None:
        """Move time on by `duration` µs, stopping at each sleeper's time to let it run until it waits again."""
        until = self._monotonic + duration
        await settle()
        while (wake := self.next_wake) is not None and wake <= until:
            _, _, woken = heapq.heappop(self._sleepers)
            self._monotonic = max(self._monotonic, wake)
            woken.set_result(None)
            await settle()
        self._monotonic = until
        await settle()


async def settle(turns: int = 20) -> None:
    """Let what can run without time passing, run: so many turns of the loop."""
    loop = asyncio.get_running_loop()
    for _ in range(turns):
        turn = loop.create_future()
        loop.call_soon(turn.set_result, None)
        await turn


class InlineFunctions:
    """A runner of function tasks on any clock: each is called in the event loop when its instant has come."""

    def __init__(self, clock: ManualClock, functions: FunctionRegistry, folder: str) -> None:
        self.sink: Sink | None = None
        self._clock = clock
        self._functions = functions
        self._folder = folder
        self._tasks: dict[Held, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Nothing to get ready."""

    def stage(self, batch: Sequence[Held]) -> None:
        """Each gets a task that sleeps until its instant."""
        for held in batch:
            self._tasks[held] = asyncio.get_running_loop().create_task(self._run(held))

    async def _run(self, held: Held) -> None:
        assert self.sink is not None
        await self._clock.sleep(held.due - self._clock.monotonic())
        held.started = self._clock.monotonic()
        self.sink.started(held, held.started)
        task, run = held.job.task, held.run
        if not isinstance(task, FunctionTask):
            error = Failure(kind="input", message="only functions run in duly.testing")
            self._tasks.pop(held, None)
            self.sink.failed(held, held.started, error, started=held.started, retryable=False)
            return
        item = Item(
            ticket=0,
            due=held.due,
            name=task.name,
            args=bytes(task.args),
            kwargs=bytes(task.kwargs),
            job_id=run.job_id,
            scheduled_at=run.scheduled_at,
            due_at=run.due_at,
            attempt=run.attempt,
            offset=held.offset,
            barred=False,
        )
        context = RunContext(item, self._folder, lambda _, fraction, message: self._progress(held, fraction, message))
        context.started = held.started
        running.set(context)
        staged = Staged(item, self._functions)
        result, fault = None, staged.fault
        if staged.function is not None and fault is None:
            try:
                value = staged.function(*staged.args, **staged.kwargs)
                if inspect.isawaitable(value):
                    value = await value
                result, fault = encoded(value)
            except Exception as error:  # noqa: BLE001 - whatever a function raises is the run's outcome
                fault = fault_of(error, error.__traceback__)
        context.finish()
        self._tasks.pop(held, None)
        finished = self._clock.monotonic()
        if fault is None:
            self.sink.succeeded(held, held.started, finished, result)
        else:
            failure = Failure(kind=fault.kind, message=fault.message, detail=fault.detail)
            self.sink.failed(held, finished, failure, started=held.started, retryable=fault.retryable)

    def _progress(self, held: Held, fraction: float, message: str) -> None:
        assert self.sink is not None
        self.sink.progress(held, fraction, message)

    def stop(self, held: Held, *, unless_started: bool = False) -> None:
        """One that sleeps is withdrawn; one that has begun is cancelled, if it is a coroutine."""
        assert self.sink is not None
        task = self._tasks.get(held)
        if task is None or (unless_started and held.started):
            return
        task.cancel()
        self._tasks.pop(held, None)
        self.sink.withdrawn(held)

    def log_path(self, held: Held, stream: str) -> str | None:
        """Logs of running functions are not followed here."""
        return None

    def occupied(self) -> int:
        """No slot is ever taken for long."""
        return 0

    async def close(self) -> None:
        """Cancel what still sleeps."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()


class ManualTime:
    """The hand on the clock of a `Duly` under test."""

    def __init__(self, duly: Duly, clock: ManualClock) -> None:
        self._duly = duly
        self._clock = clock

    @property
    def now(self) -> str:
        """The time by the clock, RFC 3339."""
        return format_instant(self._clock.wall())

    def advance(self, duration: str) -> None:
        """Move on by `30s`, `1h30m`, `2d`; everything that falls due on the way runs, in order."""
        self._duly.thread.wait(self._clock.advance(parse_duration(duration)))

    def advance_to(self, instant: str) -> None:
        """Move on to an RFC 3339 instant."""
        self._duly.thread.wait(self._clock.advance(max(0, parse_instant(instant) - self._clock.wall())))

    def runs(self, function: Callable[..., Any] | None = None) -> list[RunView]:
        """The finished runs so far, oldest first; of one function only, if one is given."""
        found = self._duly.runs(limit=1000).items
        ended = [run for run in reversed(found) if run.finished_at is not None]
        if function is None:
            return ended
        name = name_of(function)
        jobs = {job.id for job in self._duly.jobs(limit=1000).items if getattr(job.task, "name", None) == name}
        return [run for run in ended if run.job_id in jobs]


@contextlib.contextmanager
def manual(duly: Duly, *, start: str = format_instant(START)) -> Iterator[ManualTime]:
    """`duly` on a clock of its own and a store in memory, until the block ends; its scheduled functions are registered.

    Whatever scheduler the Duly had started before is left as it is, and is back afterwards.
    """
    clock = ManualClock(parse_instant(start))
    with tempfile.TemporaryDirectory(prefix="duly-testing-") as folder:
        embedded = Embedded(lambda: _node(clock, duly.functions, Path(folder)))
        with duly.embedded_as(embedded):
            try:
                duly.thread.wait(embedded.servicer())
                duly.register()
                yield ManualTime(duly, clock)
            finally:
                duly.thread.wait(embedded.stop())


def _node(clock: ManualClock, functions: FunctionRegistry, folder: Path) -> Node:
    """Everything real but the clock, the disk and the processes. Leases are long: nothing fails by itself here."""
    from duly.adapters.obstore_blobs import ObstoreBlobs
    from duly.adapters.sqlite_store import SqliteStore
    from duly.boot import connect
    from duly.roles.scheduler import SchedulerSettings
    from duly.roles.worker import WorkerSettings
    from duly.settings import Settings

    runner = InlineFunctions(clock, functions, str(folder))
    node = connect(
        Settings(retention_interval=DAY),
        functions,
        clock,
        SqliteStore(":memory:", clock=clock),
        ObstoreBlobs(folder / "blobs", clock=clock),
        SchedulerSettings(window=2 * HOUR, refill=HOUR, term_ttl=3650 * DAY, worker_ttl=3650 * DAY),
        WorkerSettings(scratch=str(folder), beat_every=HOUR, lease_margin=4 * HOUR),
        {"function": runner, "command": runner, "http": runner},
    )
    runner.sink = node.worker.attempts
    node.servicer.hint_horizon = 4 * HOUR
    return node
