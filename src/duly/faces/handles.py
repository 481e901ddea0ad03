"""Handles of submitted runs: ask how it is going, wait for its end, get its result.

duly.submit(…)      ─▶ Handle        .result(timeout=600)   .run   .status   blocks; can be awaited, too
duly.aio.submit(…)  ─▶ AsyncHandle   await handle           await handle.run()
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar, Final, Generic, TypeVar, cast

from duly.core.contract import RunStateName, RunView
from duly.core.errors import DulyError, NotFound, TimedOut, Unavailable
from duly.core.instants import SECOND, format_duration
from duly.core.model import RunState
from duly.faces.loop_thread import LoopThread
from duly.faces.specs import Duration, microseconds
from duly.faces.transport import RunFilter, Transport

T = TypeVar("T")
WAIT: Final = 25 * SECOND  # of one call; longer waits are several
PAUSE: Final = 0.5  # seconds before asking again a server that does not wait
OUTAGE: Final = 60.0  # seconds
ENDED: Final = frozenset(state.word for state in RunState if state.terminal)


class JobFailed(DulyError):
    """The run ended without success."""

    code: ClassVar[str] = "job_failed"
    title: ClassVar[str] = "Job failed"

    def __init__(self, run: RunView) -> None:
        self.run = run
        why = run.reason or ""
        if run.error is not None:
            why = f"{run.error.kind}: {run.error.message}"
        super().__init__(f"run {run.id} ended as {run.state}" + (f" ({why})" if why else ""))


class BatchRefused(DulyError):
    """Some jobs of a batch were refused; the others were created.

    `errors`: position → what was wrong. `job_ids`: position → the id of a job that was created.
    """

    code: ClassVar[str] = "batch_refused"
    title: ClassVar[str] = "Batch refused in part"

    def __init__(self, errors: Mapping[int, DulyError], job_ids: Mapping[int, str]) -> None:
        self.refused = dict(errors)
        self.job_ids = dict(job_ids)
        position, first = next(iter(errors.items()))
        total = len(errors) + len(job_ids)
        super().__init__(f"{len(errors):,} of {total:,} jobs were refused; the first, number {position}: {first}")


async def ended_run(transport: Transport, run_id: str, timeout: float | Duration | None = None) -> RunView:
    """The run once it has ended, however. Raises TimedOut after `timeout` (seconds, or a duration).

    Servers may be away meanwhile, for OUTAGE seconds at a time; then Unavailable.
    """
    loop = asyncio.get_running_loop()
    allowed = None if timeout is None else microseconds(timeout)
    answered = loop.time()
    deadline = None if allowed is None else loop.time() + allowed / 1_000_000
    while True:
        left = WAIT if deadline is None else round((deadline - loop.time()) * 1_000_000)
        asked = loop.time()
        try:
            run = await transport.wait_run(run_id, timeout=max(0, min(left, WAIT)))
        except Unavailable:
            if asked - answered > OUTAGE or (deadline is not None and asked >= deadline):
                raise
            await asyncio.sleep(PAUSE)  # noqa: TID251 - a client has no Clock port
            continue
        answered = loop.time()
        if run.state in ENDED:
            return run
        if deadline is not None and allowed is not None and loop.time() >= deadline:
            raise TimedOut(f"run {run_id} is {run.state} after {format_duration(allowed)}")
        rest = PAUSE - (loop.time() - asked)
        if deadline is not None:
            rest = min(rest, deadline - loop.time())
        if rest > 0:
            await asyncio.sleep(rest)  # noqa: TID251 - a client has no Clock port


class AsyncHandle(Generic[T]):
    """A submitted run, for asynchronous programs. Awaiting it gives the result."""

    def __init__(self, transport: Transport, job_id: str, run_id: str | None = None) -> None:
        """Without `run_id`, the job's first run is looked up when it is needed."""
        self.job_id = job_id
        self._transport = transport
        self._run_id = run_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._run_id or self.job_id}>"

    def __await__(self) -> Generator[Any, None, T]:
        return self.result().__await__()

    async def id(self) -> str:
        """The id of the run."""
        if self._run_id is None:
            page = await self._transport.list_runs(RunFilter(job_id=self.job_id, order="scheduled", limit=100))
            runs = [run for run in page.items if not run.manual]
            if not runs:
                raise NotFound(f"job {self.job_id} has no run")
            self._run_id = min(runs, key=lambda run: run.scheduled_at).id
        return self._run_id

    async def run(self) -> RunView:
        """The run as it is now."""
        return await self._transport.get_run(await self.id())

    async def status(self) -> RunStateName:
        """The state of the run now."""
        return (await self.run()).state

    async def wait(self, timeout: float | Duration | None = None) -> RunView:
        """The run once it has ended, however. Raises TimedOut after `timeout` (seconds, or a duration)."""
        return await ended_run(self._transport, await self.id(), timeout)

    async def result(self, timeout: float | Duration | None = None) -> T:
        """What the function returned, through JSON. Raises JobFailed, or TimedOut after `timeout`."""
        run = await self.wait(timeout)
        if run.state != "succeeded":
            raise JobFailed(run)
        return cast("T", run.result)

    async def cancel(self) -> RunView:
        """Ends a waiting run at once and asks for the end of one that runs. Raises Conflict once it has ended."""
        return await self._transport.cancel_run(await self.id())


class Handle(Generic[T]):
    """A submitted run. Its members block; `await handle` does not."""

    def __init__(self, aio: AsyncHandle[T], thread: LoopThread) -> None:
        self.aio = aio
        self._thread = thread

    def __repr__(self) -> str:
        return repr(self.aio).replace("Async", "", 1)

    def __await__(self) -> Generator[Any, None, T]:
        return self._thread.reach(self.aio.result()).__await__()

    @property
    def job_id(self) -> str:
        """The id of the job."""
        return self.aio.job_id

    @property
    def id(self) -> str:
        """The id of the run."""
        return self._thread.wait(self.aio.id())

    @property
    def run(self) -> RunView:
        """The run as it is now."""
        return self._thread.wait(self.aio.run())

    @property
    def status(self) -> RunStateName:
        """The state of the run now."""
        return self._thread.wait(self.aio.status())

    def wait(self, timeout: float | Duration | None = None) -> RunView:
        """The run once it has ended, however. Raises TimedOut after `timeout` (seconds, or a duration)."""
        return self._thread.wait(self.aio.wait(timeout))

    def result(self, timeout: float | Duration | None = None) -> T:
        """What the function returned, through JSON. Raises JobFailed, or TimedOut after `timeout`."""
        return self._thread.wait(self.aio.result(timeout))

    def cancel(self) -> RunView:
        """Ends a waiting run at once and asks for the end of one that runs. Raises Conflict once it has ended."""
        return self._thread.wait(self.aio.cancel())


def batch_outcome(job_ids: Sequence[str | None], errors: Mapping[int, DulyError]) -> list[str]:
    """All ids in order. Raises BatchRefused if there are errors."""
    made = {position: job_id for position, job_id in enumerate(job_ids) if job_id is not None}
    if errors:
        raise BatchRefused(errors, made)
    return list(made.values())
