"""The client's calls, made to the servicer of this process: no socket, no copy, the same answers.

The servicer lives on the loop of a LoopThread; a call from any other loop is carried over to it. It is started by
the first call, so that making a `Duly` costs nothing.
"""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from importlib import metadata
from typing import Any, Final, Protocol, TypeVar

import msgspec

from duly.core.contract import (
    BatchView,
    BlobView,
    BulkSpec,
    BulkView,
    EventView,
    ExplainView,
    JobList,
    JobSpec,
    JobVersionList,
    JobVersionView,
    JobView,
    LogPiece,
    PreviewSpec,
    PreviewView,
    RunList,
    RunningList,
    RunView,
    ShardList,
    StatsView,
    VersionView,
    WebhookList,
    WorkerList,
)
from duly.core.instants import parse_instant
from duly.core.model import JobId, RunState, WorkerId
from duly.faces.transport import BlobSource, JobFilter, LogStream, RunFilter
from duly.ports import JobQuery, RunQuery
from duly.roles.servicer import Servicer

T = TypeVar("T")
NAMESPACE: Final = "default"
_END: Final = object()


class Place(Protocol):
    """Where the servicer's loop runs: a LoopThread, or `Here`."""

    async def reach(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result; it runs on that loop."""
        ...


class Here:
    """The caller's own loop."""

    async def reach(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result."""
        return await coroutine


class ServicerTransport:
    """`start` gives the running servicer; it is awaited on the place's loop before every call."""

    def __init__(self, thread: Place, start: Callable[[], Awaitable[Servicer]]) -> None:
        self._thread = thread
        self._start = start

    async def _call(self, call: Callable[[Servicer], Awaitable[T]]) -> T:
        async def there() -> T:
            return await call(await self._start())

        return await self._thread.reach(there())

    async def _each(self, make: Callable[[Servicer], Awaitable[AsyncIterator[T]]]) -> AsyncIterator[T]:
        items = await self._call(make)

        async def following() -> Any:
            return await anext(items, _END)

        async def close() -> None:
            ending = getattr(items, "aclose", None)
            if ending is not None:
                await ending()

        try:
            while (item := await self._thread.reach(following())) is not _END:
                yield item
        finally:
            await self._thread.reach(close())

    # -- jobs -----------------------------------------------------------------------------------------------

    async def create_job(self, spec: JobSpec, *, key: str | None) -> tuple[JobView, bool]:
        """See Transport."""
        digest = msgspec.json.encode(spec, order="deterministic").decode() if key else ""
        return await self._call(lambda s: s.create_job(spec, namespace=NAMESPACE, key=key, body_digest=digest))

    async def create_jobs(self, specs: Sequence[JobSpec]) -> BatchView:
        """See Transport."""
        return await self._call(lambda s: s.create_specs(specs, namespace=NAMESPACE))

    async def get_job(self, job_id: str) -> JobView:
        """See Transport."""
        return await self._call(lambda s: s.get_job(job_id))

    async def update_job(self, job_id: str, patch: dict[str, Any], *, if_version: int | None) -> JobView:
        """See Transport."""
        return await self._call(lambda s: s.update_job(job_id, patch, if_version=if_version))

    async def delete_job(self, job_id: str) -> None:
        """See Transport."""
        await self._call(lambda s: s.delete_job(job_id))

    async def list_jobs(self, which: JobFilter) -> JobList:
        """See Transport."""
        fields = {name: value for name, value in msgspec.structs.asdict(which).items() if value is not None}
        labels = tuple(label.partition(":")[::2] for label in fields.pop("label", ()))
        query = msgspec.convert({**fields, "labels": labels}, JobQuery)
        return await self._call(lambda s: s.list_jobs(query))

    async def running_jobs(self) -> RunningList:
        """See Transport."""
        return await self._call(lambda s: s.running_jobs(JobQuery(limit=1000)))

    async def trigger_job(self, job_id: str, *, wait: int) -> RunView:
        """See Transport."""

        async def trigger(servicer: Servicer) -> RunView:
            run = await servicer.trigger_job(job_id)
            return await servicer.wait_run(run.id, timeout=wait) if wait else run

        return await self._call(trigger)

    async def pause_job(self, job_id: str) -> JobView:
        """See Transport."""
        return await self._call(lambda s: s.pause_job(job_id))

    async def resume_job(self, job_id: str) -> JobView:
        """See Transport."""
        return await self._call(lambda s: s.resume_job(job_id))

    async def list_versions(self, job_id: str, *, limit: int | None, cursor: str | None) -> JobVersionList:
        """See Transport."""
        return await self._call(lambda s: s.list_versions(job_id, limit=limit or 100, cursor=cursor))

    async def get_version(self, job_id: str, version: int) -> JobVersionView:
        """See Transport."""
        return await self._call(lambda s: s.get_version(job_id, version))

    async def restore_version(self, job_id: str, version: int, *, if_version: int | None) -> JobView:
        """See Transport."""
        return await self._call(lambda s: s.restore_version(job_id, version, if_version=if_version))

    async def bulk_jobs(self, spec: BulkSpec) -> BulkView:
        """See Transport."""
        return await self._call(lambda s: s.bulk(spec))

    # -- runs -----------------------------------------------------------------------------------------------

    async def list_runs(self, which: RunFilter) -> RunList:
        """See Transport."""
        query = RunQuery(
            job_id=None if which.job_id is None else JobId(which.job_id),
            states=tuple(RunState[name.upper()] for name in which.state),
            since=None if which.since is None else parse_instant(which.since, pointer="/since"),
            until=None if which.until is None else parse_instant(which.until, pointer="/until"),
            late=which.late,
            worker=None if which.worker is None else WorkerId(which.worker),
            oldest_first=which.order == "scheduled",
            limit=which.limit or 100,
            cursor=which.cursor,
        )
        return await self._call(lambda s: s.list_runs(query))

    async def get_run(self, run_id: str) -> RunView:
        """See Transport."""
        return await self._call(lambda s: s.get_run(run_id))

    async def wait_run(self, run_id: str, *, timeout: int) -> RunView:
        """See Transport."""
        return await self._call(lambda s: s.wait_run(run_id, timeout=timeout))

    async def cancel_run(self, run_id: str) -> RunView:
        """See Transport."""
        return await self._call(lambda s: s.cancel_run(run_id))

    async def retry_run(self, run_id: str) -> RunView:
        """See Transport."""
        return await self._call(lambda s: s.retry_run(run_id))

    async def explain_run(self, run_id: str) -> ExplainView:
        """See Transport."""
        return await self._call(lambda s: s.explain_run(run_id))

    def open_output(self, run_id: str, path: str) -> AsyncIterator[bytes]:
        """See Transport."""

        async def opened(servicer: Servicer) -> AsyncIterator[bytes]:
            return (await servicer.open_output(run_id, path))[1]

        return self._each(opened)

    def read_log(self, run_id: str, *, stream: LogStream, attempt: int | None) -> AsyncIterator[bytes]:
        """See Transport."""
        return self._each(lambda s: s.read_log(run_id, stream=stream, attempt=attempt))

    def follow_log(self, run_id: str, *, stream: LogStream, attempt: int | None) -> AsyncIterator[LogPiece]:
        """See Transport."""

        async def follow(servicer: Servicer) -> AsyncIterator[LogPiece]:
            return servicer.follow_log(run_id, stream=stream, attempt=attempt)

        return self._each(follow)

    # -- the rest -------------------------------------------------------------------------------------------

    async def preview(self, spec: PreviewSpec) -> PreviewView:
        """See Transport."""

        async def preview(servicer: Servicer) -> PreviewView:
            return servicer.preview(spec)

        return await self._call(preview)

    async def stats(self) -> StatsView:
        """See Transport."""
        return await self._call(lambda s: s.stats())

    async def workers(self) -> WorkerList:
        """See Transport."""
        return await self._call(lambda s: s.workers())

    async def shards(self) -> ShardList:
        """See Transport."""
        return await self._call(lambda s: s.shards())

    async def webhooks(self) -> WebhookList:
        """See Transport."""

        async def webhooks(servicer: Servicer) -> WebhookList:
            return WebhookList(items=servicer.webhook_views())

        return await self._call(webhooks)

    async def version(self) -> VersionView:
        """See Transport."""
        return VersionView(
            version=metadata.version("duly"), python=platform.python_version(), tzdata=metadata.version("tzdata")
        )

    async def put_blob(self, source: BlobSource) -> BlobView:
        """See Transport."""
        return await self._call(lambda s: s.put_blob(source()))

    def open_blob(self, digest: str) -> AsyncIterator[bytes]:
        """See Transport."""

        async def opened(servicer: Servicer) -> AsyncIterator[bytes]:
            return servicer.open_blob(digest)

        return self._each(opened)

    def events(self, *, after: str | None) -> AsyncIterator[EventView]:
        """See Transport."""

        async def follow(servicer: Servicer) -> AsyncIterator[EventView]:
            return servicer.events(after)

        return self._each(follow)

    async def close(self) -> None:
        """See Transport: there is no connection to let go of."""
