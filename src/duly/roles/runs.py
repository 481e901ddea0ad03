"""Runs: read, waited for, cancelled, run again, explained; with their output files and logs."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from duly.core import contract, policy, views
from duly.core.contract import BlobView, ExplainView, RunList, RunView
from duly.core.errors import Conflict, NotFound
from duly.core.explain import explain
from duly.core.instants import SECOND
from duly.core.machine import CancelAsked, Refusal, step
from duly.core.messages import Cancel, inbox
from duly.core.model import Job, Run, RunKey, RunState, parse_run_id
from duly.ports import RunQuery
from duly.roles.desk import TRIES, Desk
from duly.roles.outputs import OutputReader


class RunDesk(Desk):
    """The use-cases of runs."""

    outputs: OutputReader
    max_blob_bytes: int

    def _run_view(self, run: Run) -> RunView:
        return views.run_view(run, progress=self.event_log.progress.get(run.key))

    async def _pair(self, run_id: str, namespace: str | None) -> tuple[Run, Job]:
        key = parse_run_id(run_id)
        found = None if key is None else (await self._store.load([key]))[0]
        if found is None or (namespace is not None and found[1].namespace != namespace):
            raise NotFound(f"there is no run {run_id[:120]!r}")
        return found

    async def list_runs(self, query: RunQuery) -> RunList:
        """A page of runs."""
        page = await self._store.page_runs(query)
        return RunList(
            items=[self._run_view(run) for run in page.items],
            next=page.next,
            partial=bool(page.missing),
            missing_shards=list(page.missing),
        )

    async def get_run(self, run_id: str, *, namespace: str | None = None) -> RunView:
        """One run. Raises NotFound."""
        run, _ = await self._pair(run_id, namespace)
        return self._run_view(run)

    async def wait_run(self, run_id: str, *, namespace: str | None = None, timeout: int) -> RunView:
        """The run once it has ended, or as it is after `timeout` µs.

        This servicer wakes the caller when it commits the end itself; once a second it looks in the store, in
        case another servicer did.
        """
        deadline = self._clock.monotonic() + timeout
        run, _ = await self._pair(run_id, namespace)
        ended = self.event_log.waiter(run.key)
        try:
            while True:
                run, _ = await self._pair(run_id, namespace)
                left = deadline - self._clock.monotonic()
                if run.state.terminal or left <= 0:
                    return self._run_view(run)
                await self._clock.wait(ended, min(left, SECOND))
        finally:
            self.event_log.forget(run.key, ended)

    async def cancel_run(self, run_id: str, *, namespace: str | None = None) -> RunView:
        """End a waiting run at once; ask for the end of one that is out. Raises Conflict when it has ended."""
        run, _ = await self._pair(run_id, namespace)
        if run.state.terminal and run.state != RunState.CANCELLED:
            raise Conflict(f"the run has ended as {run.state.word}")
        run = await self._ask_cancel(run.key, "cancelled by request")
        if run.state.terminal and run.state != RunState.CANCELLED:
            raise Conflict(f"the run has just ended as {run.state.word}")
        return self._run_view(run)

    async def _ask_cancel(self, key: RunKey, reason: str) -> Run:
        for _ in range(TRIES):
            found = (await self._store.load([key]))[0]
            if found is None:
                raise NotFound
            run, job = found
            now = await self._store.now(self._store.shard_of(job.id))
            outcome = step(run, job, CancelAsked(reason), now)
            if isinstance(outcome, Refusal):
                if run.state.active:
                    await self._send_cancel(run, reason)
                return run
            if await self._store.apply([outcome]):
                continue
            after = outcome.run
            if after.state.terminal:
                self.telemetry.runs_ended([after])
                self.event_log.runs("run.finished", [(after, job)], now)
                self.event_log.committed("run.finished", [(after, job)], now)
                await self._hint([(opened, job) for opened in outcome.opened], now, changed=[])
            else:
                await self._send_cancel(after, reason)
            return after
        raise Conflict("the run is changing; try again")

    async def _send_cancel(self, run: Run, reason: str) -> None:
        await self._broker.publish(inbox(run.worker), Cancel(key=run.key, attempt=run.attempt, reason=reason))

    async def retry_run(self, run_id: str, *, namespace: str | None = None) -> RunView:
        """Run it again, as a new run of the job as it is now. Raises Conflict while the run has not ended."""
        run, job = await self._pair(run_id, namespace)
        if not run.state.terminal:
            raise Conflict(f"the run is {run.state.word}; only one that has ended can be run again")
        return self._run_view(await self._open_manual(job, retry_of=run.scheduled_at))

    async def explain_run(self, run_id: str, *, namespace: str | None = None) -> ExplainView:
        """Why the run is where it is."""
        run, job = await self._pair(run_id, namespace)
        now = await self._store.now(self._store.shard_of(job.id))
        stats = [shard for shard in await self._store.stats() if shard.shard == self._store.shard_of(job.id)]
        workers = stats[0].workers if stats else ()
        active = await self._active_runs(job.id) if run.state == RunState.WAITING else ()
        return explain(run, job, now, workers=workers, active=active)

    async def _open_manual(self, job: Job, retry_of: int | None = None) -> Run:
        now = await self._store.now(self._store.shard_of(job.id))
        for _ in range(TRIES):
            if job.state == "deleted":
                raise Conflict("the job is deleted")
            run = policy.manual_run(job, now, retry_of=retry_of)
            if (await self._store.load([run.key]))[0] is not None:
                now += 1  # another run has this very instant
                continue
            written = await self._store.change(job, job.version, [run], keep_waiting=True)
            if isinstance(written, Job):
                await self._hint([(run, job)], now)
                return run
            if written is None:
                job = (await self._row(job.id, None)).job
        raise Conflict("the job is being changed by others; try again")

    # -- files and logs -------------------------------------------------------------------------------------

    async def open_output(
        self, run_id: str, path: str, *, namespace: str | None = None
    ) -> tuple[contract.OutputView, AsyncIterator[bytes]]:
        """One file that the run left, streamed. Raises NotFound."""
        run, _ = await self._pair(run_id, namespace)
        return self.outputs.open(run, path)

    async def read_log(
        self, run_id: str, *, namespace: str | None = None, stream: str = "all", attempt: int | None = None
    ) -> AsyncIterator[bytes]:
        """What an attempt wrote so far; the last attempt, unless one is named."""
        run, _ = await self._pair(run_id, namespace)
        return self.outputs.log(run, stream, attempt)

    def follow_log(
        self, run_id: str, *, namespace: str | None = None, stream: str = "all", attempt: int | None = None
    ) -> AsyncIterator[contract.LogPiece]:
        """What an attempt writes, as it comes, until it ends. A waiting run is waited for."""
        return self._follow(run_id, namespace, stream, attempt)

    async def _follow(
        self, run_id: str, namespace: str | None, stream: str, attempt: int | None
    ) -> AsyncIterator[contract.LogPiece]:
        run, _ = await self._pair(run_id, namespace)
        while not run.state.terminal and run.state != RunState.RUNNING and (attempt or run.attempt + 1) > run.attempt:
            news = self.event_log.waiter(run.key)
            try:
                await self._clock.wait(news, SECOND // 5)
            finally:
                self.event_log.forget(run.key, news)
            run, _ = await self._pair(run_id, namespace)

        async def reload() -> Run:
            return (await self._pair(run_id, namespace))[0]

        async for piece in self.outputs.follow(run, stream, attempt, reload):
            yield piece

    async def put_blob(
        self, data: AsyncIterable[bytes] | bytes, *, limit: int | None = None, expected: str | None = None
    ) -> BlobView:
        """Store bytes under their sha256. Raises TooLarge, InvalidInput when they are not `expected`."""
        most = self.max_blob_bytes if limit is None else min(limit, self.max_blob_bytes)
        digest, size = await self._blobs.put(data, limit=most, expected=expected)
        return BlobView(digest=digest, size=size)

    def open_blob(self, digest: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """A blob's bytes, or a range of them. Raises NotFound at the first chunk."""
        return self._blobs.get(digest, start=start, end=end)

    async def blob_size(self, digest: str) -> int | None:
        """Its size, None if there is no such blob."""
        return await self._blobs.size(digest)
