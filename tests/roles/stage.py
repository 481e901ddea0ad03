"""A whole duly on a clock that is moved by hand: real roles, broker and SQLite store; only the tasks are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.adapters.sqlite_store import SqliteStore
from duly.boot import Node, connect
from duly.core.contract import FunctionSpec, JobSpec, JobView
from duly.core.definition import decode
from duly.core.instants import DAY, SECOND, parse_instant
from duly.core.model import Failure, JobId, Run
from duly.ports import Clock, RunQuery, Store
from duly.roles.events import Committed, nobody
from duly.roles.scheduler import Scheduler, SchedulerSettings
from duly.roles.worker import WorkerSettings
from duly.settings import Settings
from duly.tasks.attempt import Held, Sink
from duly.tasks.registry import FunctionRegistry
from duly.testing import ManualClock

START = parse_instant("2027-01-15T08:00:00Z")


class Script:
    """A runner whose tasks last and end as the test says; it keeps who started when."""

    def __init__(self, clock: ManualClock) -> None:
        self.sink: Sink | None = None
        self.lasts: Callable[[Held], int] = lambda held: 0
        self.fails: Callable[[Held], Failure | None] = lambda held: None
        self.starts: list[tuple[str, int, int]] = []  # job, attempt, µs after the start of the test
        self.staged: list[tuple[str, int]] = []  # job, µs after the start of the test
        self.clock = clock
        self._tasks: dict[Held, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Nothing to do."""

    def stage(self, batch: Sequence[Held]) -> None:
        for held in batch:
            self.staged.append((held.job.name, self.clock.wall() - START))
            self._tasks[held] = asyncio.get_running_loop().create_task(self._run(held))

    async def _run(self, held: Held) -> None:
        assert self.sink is not None
        await self.clock.sleep(held.due - self.clock.monotonic())
        held.started = self.clock.monotonic()
        self.starts.append((held.job.name, held.attempt, self.clock.wall() - START))
        self.sink.started(held, held.started)
        if lasts := self.lasts(held):
            await self.clock.sleep(lasts)
        self._tasks.pop(held, None)
        failure = self.fails(held)
        now = self.clock.monotonic()
        if failure is None:
            self.sink.succeeded(held, held.started, now, b'"done"')
        else:
            self.sink.failed(held, now, failure, started=held.started)

    def stop(self, held: Held, *, unless_started: bool = False) -> None:
        assert self.sink is not None
        task = self._tasks.get(held)
        if task is None or (unless_started and held.started):
            return
        del self._tasks[held]
        task.cancel()
        if held.started:
            failure = Failure(kind="signal", message="killed")
            self.sink.failed(held, self.clock.monotonic(), failure, started=held.started)
        else:
            self.sink.withdrawn(held)

    def log_path(self, held: Held, stream: str) -> str | None:
        return None

    def occupied(self) -> int:
        return 0

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


class Stage:
    """The node, the hand on its clock, and short ways to ask."""

    def __init__(self, folder: Path, *, slots: int = 4, store: Callable[[Clock], Store] | None = None) -> None:
        self.clock = ManualClock(START)
        self.script = Script(self.clock)
        self.node: Node = connect(
            Settings(retention_interval=DAY),
            FunctionRegistry("any"),
            self.clock,
            SqliteStore(":memory:", clock=self.clock) if store is None else store(self.clock),
            ObstoreBlobs(folder / "blobs", clock=self.clock),
            SchedulerSettings(),
            WorkerSettings(scratch=str(folder), slots=slots),
            {"function": self.script, "command": self.script, "http": self.script},
        )
        self.script.sink = self.node.worker.attempts
        self.servicer = self.node.servicer
        self.store = self.node.store

    async def __aenter__(self) -> Self:
        await self.node.start()
        await self.advance(1000)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.node.stop()

    async def advance(self, duration: int) -> None:
        """Move the clock on by so many µs."""
        await self.clock.advance(duration)

    async def until(self, offset: int) -> None:
        """Move the clock to so many µs after the start of the test."""
        await self.clock.advance(START + offset - self.clock.wall())

    async def create(self, name: str, schedule: str, **fields: Any) -> JobView:
        """A job of a scripted function; fields as in JSON."""
        body = {"task": {"kind": "function", "name": "m:f"}, "schedule": schedule, "name": name, **fields}
        spec = decode(msgspec.json.encode(body), JobSpec)
        assert isinstance(spec.task, FunctionSpec)
        return (await self.servicer.create_job(spec))[0]

    async def runs(self, job: JobView) -> list[Run]:
        """The job's runs, oldest first."""
        query = RunQuery(job_id=JobId(job.id), oldest_first=True, limit=1000)
        return list((await self.store.page_runs(query)).items)

    async def words(self, job: JobView) -> list[str]:
        """The states of the job's runs, oldest first."""
        return [run.state.word for run in await self.runs(job)]

    def started(self, name: str) -> list[float]:
        """The seconds after the start of the test at which a job's attempts began."""
        return [at / SECOND for job, _, at in self.script.starts if job == name]

    def scheduler(self, owner: str, committed: Committed = nobody) -> Scheduler:
        """Another scheduler of the same shard."""
        return Scheduler(
            shard="s0",
            owner=owner,
            store=self.store,
            broker=self.node.broker,
            clock=self.clock,
            telemetry=self.node.telemetry,
            dice=lambda: 0.5,
            committed=committed,
        )
