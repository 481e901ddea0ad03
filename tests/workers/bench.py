"""A worker on real adapters with stand-ins for its scheduler and servicer, and the helpers that its tests share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from duly.adapters.local_broker import LocalBroker
from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.adapters.system_clock import SystemClock
from duly.core.messages import (
    NOTICES,
    AnyMessage,
    Assign,
    Assignment,
    Beat,
    BeatAnswer,
    Cancel,
    Failed,
    LogChunk,
    Notice,
    ReadLog,
    Released,
    Report,
    ReportAnswer,
    Started,
    Stopped,
    Succeeded,
    WorkerEvent,
    beats,
    inbox,
    logs,
    reports,
)
from duly.core.model import CommandTask, FunctionTask, HttpTask, Job, JobId, Run, RunKey, RunState, Task, WorkerId
from duly.roles.worker import Worker, WorkerSettings
from duly.tasks.registry import FunctionRegistry

SECOND = 1_000_000
SHARD = "s0"
WITHIN = 20.0  # seconds that a test waits for anything


class Bench:
    """One shard's scheduler and servicer, as far as a worker meets them."""

    def __init__(self, folder: Path) -> None:
        self.clock = SystemClock()
        self.broker = LocalBroker(clock=self.clock)
        self.blobs = ObstoreBlobs(folder / "blobs", clock=self.clock)
        self.scratch = folder / "scratch"
        self.beats: list[Beat] = []
        self.reports: list[Report] = []
        self.notices: list[Notice] = []
        self.events: dict[RunKey, list[WorkerEvent]] = {}
        self.lease = 5 * SECOND
        self.skew = 0  # µs by which the shard's clock is ahead of this machine's
        self.stale: tuple[tuple[RunKey, int], ...] = ()
        self.beating = True
        self.answering = asyncio.Event()  # beats wait for it, when they have been read
        self.answering.set()
        self.out: Callable[[Beat], tuple[Assignment, ...]] = lambda beat: ()  # what a servicer would list
        self.refuse: list[str] = []  # words for the next events, before "ok" again
        self.deaf = 0  # reports that are dropped unanswered
        self.number = 0
        self._serial = 0
        self._changed = asyncio.Event()
        self.worker: Worker

    async def open(self) -> None:
        await self.broker.subscribe(beats(SHARD), self._beaten)
        await self.broker.subscribe(reports(SHARD), self._reported)
        await self.broker.subscribe(NOTICES, self._noticed)

    def now(self) -> int:
        """The shard's clock."""
        return self.clock.wall() + self.skew

    async def _beaten(self, message: AnyMessage) -> AnyMessage | None:
        assert isinstance(message, Beat)
        self.beats.append(message)
        self._changed.set()
        if not self.beating:
            return None
        out = self.out(message)
        await self.answering.wait()
        now = self.now()
        return BeatAnswer(shard=SHARD, now=now, lease_until=now + self.lease, stale=self.stale, out=out)

    async def _reported(self, message: AnyMessage) -> AnyMessage | None:
        assert isinstance(message, Report)
        if self.deaf:
            self.deaf -= 1
            return None
        self.reports.append(message)
        words = []
        for key, event in message.events:
            word = self.refuse.pop(0) if self.refuse else "ok"
            words.append(word)
            if word == "ok":
                self.events.setdefault(key, []).append(event)
        self._changed.set()
        return ReportAnswer(words=tuple(words))

    async def _noticed(self, message: AnyMessage) -> AnyMessage | None:
        assert isinstance(message, Notice)
        self.notices.append(message)
        self._changed.set()
        return None

    async def until(self, condition: Callable[[], Any], what: str = "", within: float = WITHIN) -> None:
        """Wait until the condition holds; looked at whenever something came, and every few milliseconds."""
        end = time.monotonic() + within
        while not condition():
            assert time.monotonic() < end, f"still waiting for {what or condition}; events: {self.events}"
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.005)

    def make(self, task: Task, *, due: int = 0, attempt: int = 1, **fields: Any) -> Assignment:
        """An attempt at a new job's run, due `due` µs from now."""
        self._serial += 1
        now = self.now()
        job = Job(
            id=JobId(f"job-{self._serial}"),
            task=task,
            schedule="now",
            created_at=now,
            updated_at=now,
            anchored_at=now,
            **fields,
        )
        run = Run(
            job_id=job.id,
            scheduled_at=now + due,
            due_at=now + due,
            state=RunState.DISPATCHED,
            attempt=attempt,
            worker=self.worker.id,
            dispatched_at=now,
        )
        return Assignment(run, job)

    async def assign(self, *batch: Assignment, fence: int = 1) -> None:
        self.number += 1
        message = Assign(shard=SHARD, fence=fence, number=self.number, batch=batch)
        await self.broker.publish(inbox(batch[0].run.worker), message)

    async def give(self, task: Task, *, due: int = 0, **fields: Any) -> Run:
        """Assign one attempt; returns its run."""
        assignment = self.make(task, due=due, **fields)
        await self.assign(assignment)
        return assignment.run

    async def cancel(self, run: Run, *, unless_started: bool = False) -> None:
        cancel = Cancel(key=run.key, attempt=run.attempt, reason="asked", unless_started=unless_started)
        await self.broker.publish(inbox(run.worker), cancel)

    async def read_log(self, run: Run, stream: str = "stdout", offset: int = 0, wait: int = 0) -> LogChunk:
        question = ReadLog(key=run.key, attempt=run.attempt, stream=stream, offset=offset, wait=wait)
        answer = await self.broker.request(logs(run.worker), question, timeout=5 * SECOND)
        assert isinstance(answer, LogChunk)
        return answer

    def ending(self, run: Run) -> WorkerEvent | None:
        """The event that ended the attempt, if it was reported."""
        found = [event for event in self.events.get(run.key, []) if not isinstance(event, Started)]
        assert len(found) <= 1, found
        return found[0] if found else None

    async def started(self, run: Run) -> None:
        await self.until(lambda: self.events.get(run.key), "its start")

    async def ended(self, run: Run, within: float = WITHIN) -> WorkerEvent:
        await self.until(lambda: self.ending(run) is not None, f"the end of {run.id}", within)
        event = self.ending(run)
        assert event is not None
        return event

    async def succeeded(self, run: Run, within: float = WITHIN) -> Succeeded:
        event = await self.ended(run, within)
        assert isinstance(event, Succeeded), event
        return event

    async def failed(self, run: Run, within: float = WITHIN) -> Failed:
        event = await self.ended(run, within)
        assert isinstance(event, Failed), event
        return event

    async def stopped(self, run: Run) -> Stopped:
        event = await self.ended(run)
        assert isinstance(event, Stopped), event
        return event

    async def released(self, run: Run) -> Released:
        event = await self.ended(run)
        assert isinstance(event, Released), event
        return event

    async def text(self, digest: str) -> bytes:
        return b"".join([chunk async for chunk in self.blobs.get(digest)])


@contextlib.asynccontextmanager
async def working(
    folder: Path, *, functions: FunctionRegistry | None = None, ready: bool = True, **settings: Any
) -> AsyncIterator[Bench]:
    """A bench with its worker, answered once; stopped at the end."""
    bench = Bench(folder)
    await bench.open()
    options: dict[str, Any] = {"slots": 2, "grace": SECOND // 2, "scratch": str(bench.scratch), **settings}
    bench.worker = Worker(
        id=WorkerId("w"),
        broker=bench.broker,
        blobs=bench.blobs,
        clock=bench.clock,
        shards=[SHARD],
        functions=functions if functions is not None else FunctionRegistry("any"),
        settings=WorkerSettings(**options),
    )
    await bench.worker.start()
    try:
        if ready:
            await bench.until(lambda: bench.worker.attempts.shards[SHARD].offset.value is not None, "the first beat")
        yield bench
    finally:
        await bench.worker.stop()
        await bench.broker.close()


def call(name: str, *args: Any, mode: Any = None, **kwargs: Any) -> FunctionTask:
    """A task that calls a function of `workers.functions`."""
    return FunctionTask(
        name=name if ":" in name else f"workers.functions:{name}",
        args=msgspec.Raw(json.dumps(args).encode()),
        kwargs=msgspec.Raw(json.dumps(kwargs).encode()),
        mode=mode,
    )


def shell(script: str, **fields: Any) -> CommandTask:
    """A task that runs a shell script."""
    return CommandTask(argv=("sh", "-c", script), **fields)


def get(url: str, **fields: Any) -> HttpTask:
    """A task that makes a request."""
    return HttpTask(url=url, **{"method": "GET", **fields})
