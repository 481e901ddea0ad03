"""What a client asks about runs: their lists, ends, logs and files. A part of AsyncClient."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

from duly.core.contract import ExplainView, LogPiece, OutputView, RunList, RunStateName, RunView
from duly.faces.handles import ended_run
from duly.faces.specs import Duration, instant
from duly.faces.transport import LogStream, RunFilter, Transport
from duly.faces.uploads import saved


class RunCalls:
    """Calls on runs, which are named by their ids."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    async def runs(
        self,
        *,
        job_id: str | None = None,
        state: RunStateName | Sequence[RunStateName] = (),
        since: str | datetime | None = None,
        until: str | datetime | None = None,
        late: bool | None = None,
        worker: str | None = None,
        order: Literal["-scheduled", "scheduled"] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> RunList:
        """One page of runs, newest first unless `order` says otherwise; `since` and `until` bound `scheduled_at`."""
        return await self.transport.list_runs(
            RunFilter(
                job_id=job_id,
                state=[state] if isinstance(state, str) else state,
                since=None if since is None else instant(since, "/since"),
                until=None if until is None else instant(until, "/until"),
                late=late,
                worker=worker,
                order=order,
                limit=limit,
                cursor=cursor,
            )
        )

    async def get_run(self, run_id: str) -> RunView:
        """The run as it is now. Raises NotFound."""
        return await self.transport.get_run(run_id)

    async def wait(self, run_id: str, timeout: float | Duration | None = None) -> RunView:
        """The run once it has ended, however. Raises TimedOut after `timeout` (seconds, or a duration)."""
        return await ended_run(self.transport, run_id, timeout)

    async def cancel(self, run_id: str) -> RunView:
        """End a waiting run at once, ask for the end of one that is out. Raises Conflict once it has ended."""
        return await self.transport.cancel_run(run_id)

    async def retry(self, run_id: str) -> RunView:
        """Run it again, as a new run of its job. Raises Conflict while it has not ended."""
        return await self.transport.retry_run(run_id)

    async def explain(self, run_id: str) -> ExplainView:
        """Why it is where it is, in sentences."""
        return await self.transport.explain_run(run_id)

    async def log(self, run_id: str, *, stream: LogStream = "all", attempt: int | None = None) -> str:
        """What an attempt (the last, unless one is named) has written so far; stdout, then stderr, for "all"."""
        pieces = [piece async for piece in self.transport.read_log(run_id, stream=stream, attempt=attempt)]
        return b"".join(pieces).decode(errors="replace")

    def read_log(self, run_id: str, *, stream: LogStream = "all", attempt: int | None = None) -> AsyncIterator[bytes]:
        """As `log`, piece by piece."""
        return self.transport.read_log(run_id, stream=stream, attempt=attempt)

    def follow_log(
        self, run_id: str, *, stream: LogStream = "all", attempt: int | None = None
    ) -> AsyncIterator[LogPiece]:
        """What an attempt writes, as it comes, until it ends."""
        return self.transport.follow_log(run_id, stream=stream, attempt=attempt)

    async def outputs(self, run_id: str) -> list[OutputView]:
        """The files that the run left."""
        return (await self.transport.get_run(run_id)).outputs

    async def output(self, run_id: str, path: str) -> bytes:
        """The bytes of one file that the run left; for large ones there is `save_output`. Raises NotFound."""
        return b"".join([piece async for piece in self.transport.open_output(run_id, path)])

    def open_output(self, run_id: str, path: str) -> AsyncIterator[bytes]:
        """As `output`, piece by piece."""
        return self.transport.open_output(run_id, path)

    async def save_output(
        self, run_id: str, path: str, to: str | Path, *, progress: Callable[[int], object] | None = None
    ) -> Path:
        """Write one file that the run left to `to`, piece by piece; replaces what is there only once it is whole.

        `progress` is called, on any thread, with the number of bytes of each piece that was written.
        """
        return await saved(self.transport.open_output(run_id, path), Path(to), progress)
