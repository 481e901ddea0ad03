"""The calls of the contract over HTTP: one method, one request. How requests are sent is in `exchange.py`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx2
import msgspec

from duly.core import errors
from duly.core.contract import (
    BatchItem,
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
from duly.core.errors import OutcomeUnknown, Unavailable
from duly.core.job_ids import mint_job_id
from duly.faces.exchange import Exchange, Params
from duly.faces.transport import DEFAULT_URL, BlobSource, JobFilter, LogStream, RunFilter

LONGEST_WAIT: Final = 25_000_000  # µs that one request waits for a run's end, below any proxy's patience
BATCH_BYTES: Final = 8 << 20  # of one request; servers take four times as much
SILENCE: Final = 60.0  # seconds without even a comment after which a stream is given up

T = TypeVar("T")


class HttpTransport:
    """Reaches one servicer, or several that stand side by side."""

    def __init__(self, urls: str | Sequence[str] = DEFAULT_URL, *, token: str | None = None, **how: Any) -> None:
        """`how` goes to Exchange."""
        self._exchange = Exchange(urls, token=token, **how)
        self.urls = self._exchange.urls

    async def close(self) -> None:
        await self._exchange.close()

    # -- jobs -----------------------------------------------------------------------------------------------

    async def create_job(self, spec: JobSpec, *, key: str | None) -> tuple[JobView, bool]:
        def renew() -> dict[str, str]:
            # A key of our own makes the call safe to repeat. Its job may belong to a shard that is down: then
            # nothing was done, and another key finds another shard.
            if key is not None:
                return {"Idempotency-Key": key}
            now = time.time_ns() // 1_000  # noqa: TID251 - a client has no Clock port
            return {"Idempotency-Key": mint_job_id(now, secrets.token_bytes(10))}

        status, content = await self._exchange.send("POST", "/v1/jobs", body=_encode(spec), renew=renew)
        return _decode(content, JobView), status == 201

    async def create_jobs(self, specs: Sequence[JobSpec]) -> BatchView:
        results: list[BatchItem] = []
        for body in _batches(specs):
            view = await self._call(BatchView, "POST", "/v1/jobs/batch", body=body, repeat=False)
            results.extend(view.results)
        failed = sum(item.error is not None for item in results)
        return BatchView(results=results, created=len(results) - failed, failed=failed)

    async def get_job(self, job_id: str) -> JobView:
        return await self._call(JobView, "GET", f"/v1/jobs/{_part(job_id)}")

    async def update_job(self, job_id: str, patch: dict[str, Any], *, if_version: int | None) -> JobView:
        headers = {"Content-Type": "application/merge-patch+json"}
        if if_version is not None:
            headers["If-Match"] = f'"{if_version}"'
        path, repeat = f"/v1/jobs/{_part(job_id)}", if_version is None
        return await self._call(JobView, "PATCH", path, body=_encode(patch), headers=headers, repeat=repeat)

    async def delete_job(self, job_id: str) -> None:
        await self._exchange.send("DELETE", f"/v1/jobs/{_part(job_id)}", gone=True)

    async def list_jobs(self, which: JobFilter) -> JobList:
        return await self._call(JobList, "GET", "/v1/jobs", params=_params(which))

    async def running_jobs(self) -> RunningList:
        return await self._call(RunningList, "GET", "/v1/jobs/running")

    async def trigger_job(self, job_id: str, *, wait: int) -> RunView:
        path = f"/v1/jobs/{_part(job_id)}/trigger"
        return await self._call(RunView, "POST", path, headers=_prefer(wait), repeat=False)

    async def pause_job(self, job_id: str) -> JobView:
        return await self._call(JobView, "POST", f"/v1/jobs/{_part(job_id)}/pause")

    async def resume_job(self, job_id: str) -> JobView:
        return await self._call(JobView, "POST", f"/v1/jobs/{_part(job_id)}/resume")

    async def list_versions(self, job_id: str, *, limit: int | None, cursor: str | None) -> JobVersionList:
        asked = {"limit": limit, "cursor": cursor}
        params: Params = [(name, str(value)) for name, value in asked.items() if value is not None]
        return await self._call(JobVersionList, "GET", f"/v1/jobs/{_part(job_id)}/versions", params=params)

    async def get_version(self, job_id: str, version: int) -> JobVersionView:
        return await self._call(JobVersionView, "GET", f"/v1/jobs/{_part(job_id)}/versions/{version}")

    async def restore_version(self, job_id: str, version: int, *, if_version: int | None) -> JobView:
        headers = {} if if_version is None else {"If-Match": f'"{if_version}"'}
        path, repeat = f"/v1/jobs/{_part(job_id)}/versions/{version}/restore", if_version is None
        return await self._call(JobView, "POST", path, headers=headers, repeat=repeat)

    async def bulk_jobs(self, spec: BulkSpec) -> BulkView:
        repeat = spec.dry_run or spec.action in ("pause", "resume")
        return await self._call(BulkView, "POST", "/v1/jobs/bulk", body=_encode(spec), repeat=repeat)

    # -- runs -----------------------------------------------------------------------------------------------

    async def list_runs(self, which: RunFilter) -> RunList:
        return await self._call(RunList, "GET", "/v1/runs", params=_params(which))

    async def get_run(self, run_id: str) -> RunView:
        return await self._call(RunView, "GET", f"/v1/runs/{_part(run_id)}")

    async def wait_run(self, run_id: str, *, timeout: int) -> RunView:
        return await self._call(RunView, "GET", f"/v1/runs/{_part(run_id)}", headers=_prefer(timeout))

    async def cancel_run(self, run_id: str) -> RunView:
        return await self._call(RunView, "POST", f"/v1/runs/{_part(run_id)}/cancel")

    async def retry_run(self, run_id: str) -> RunView:
        return await self._call(RunView, "POST", f"/v1/runs/{_part(run_id)}/retry", repeat=False)

    async def explain_run(self, run_id: str) -> ExplainView:
        return await self._call(ExplainView, "GET", f"/v1/runs/{_part(run_id)}/explain")

    def open_output(self, run_id: str, path: str) -> AsyncIterator[bytes]:
        return self._stream(f"/v1/runs/{_part(run_id)}/output/{quote(path, safe='/')}")

    def read_log(self, run_id: str, *, stream: LogStream, attempt: int | None) -> AsyncIterator[bytes]:
        return self._stream(f"/v1/runs/{_part(run_id)}/log", _log_params(stream, attempt))

    async def follow_log(self, run_id: str, *, stream: LogStream, attempt: int | None) -> AsyncIterator[LogPiece]:
        params: Params = [*_log_params(stream, attempt), ("follow", "true")]
        async with aclosing(self._events(f"/v1/runs/{_part(run_id)}/log", params=params)) as events:
            async for event in events:
                if event.event == "end":
                    return
                if event.event in ("stdout", "stderr"):
                    yield LogPiece(stream=event.event, data=event.data.encode())
        raise OutcomeUnknown("the server ended the stream before the log ended")

    # -- the rest -------------------------------------------------------------------------------------------

    async def preview(self, spec: PreviewSpec) -> PreviewView:
        return await self._call(PreviewView, "POST", "/v1/schedules/preview", body=_encode(spec))

    async def stats(self) -> StatsView:
        return await self._call(StatsView, "GET", "/v1/stats")

    async def workers(self) -> WorkerList:
        return await self._call(WorkerList, "GET", "/v1/workers")

    async def shards(self) -> ShardList:
        return await self._call(ShardList, "GET", "/v1/shards")

    async def webhooks(self) -> WebhookList:
        return await self._call(WebhookList, "GET", "/v1/webhooks")

    async def version(self) -> VersionView:
        return await self._call(VersionView, "GET", "/version")

    async def put_blob(self, source: BlobSource) -> BlobView:
        headers = {"Content-Type": "application/octet-stream"}
        try:
            return await self._call(BlobView, "POST", "/v1/blobs", body=source, headers=headers)
        except OutcomeUnknown as error:
            hint = "a server also breaks off what is larger than it takes (max_blob_bytes)"
            raise OutcomeUnknown(f"{error.detail}; {hint}") from error

    def open_blob(self, digest: str) -> AsyncIterator[bytes]:
        return self._stream(f"/v1/blobs/{_part(digest)}")

    async def events(self, *, after: str | None) -> AsyncIterator[EventView]:
        headers = {} if after is None else {"Last-Event-ID": after}
        async with aclosing(self._events("/v1/events", headers=headers)) as events:
            async for event in events:
                if event.data:  # else it only tells how long to wait before connecting again
                    yield _decode(event.data.encode(), EventView)

    async def server_time(self) -> float | None:
        """The server's clock by its `Date` header, seconds since 1970 to the second; None if it sends none."""
        async with self._exchange.open("/version") as response:
            date = response.headers.get("date")
        return None if date is None else parsedate_to_datetime(date).timestamp()

    # -- shapes ---------------------------------------------------------------------------------------------

    async def _call(self, shape: type[T], method: str, path: str, **how: Any) -> T:
        _, content = await self._exchange.send(method, path, **how)
        return _decode(content, shape)

    async def _stream(self, path: str, params: Params | None = None) -> AsyncIterator[bytes]:
        async with self._exchange.open(path, params=params, headers={"Accept": "*/*"}) as response:
            async for piece in response.aiter_bytes():
                yield piece

    async def _events(
        self, path: str, *, params: Params | None = None, headers: dict[str, str] | None = None
    ) -> AsyncGenerator[httpx2.ServerSentEvent, None]:
        """Whoever iterates closes it: one that is left to the garbage is closed by the loop, and a loop that ends
        meanwhile complains."""
        headers = {"Accept": "text/event-stream", **(headers or {})}
        async with self._exchange.open(path, params=params, headers=headers, read_timeout=SILENCE) as response:
            async for event in httpx2.EventSource(response):
                yield event


def _encode(value: object) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise errors.InvalidInput(f"cannot be sent as JSON: {error}") from None


def _batches(specs: Sequence[JobSpec]) -> Iterator[bytes]:
    """Bodies of at most BATCH_BYTES, unless a single job is larger."""
    jobs: list[bytes] = []
    size = 0
    for spec in specs:
        job = _encode(spec)
        if jobs and size + len(job) > BATCH_BYTES:
            yield b'{"jobs":[' + b",".join(jobs) + b"]}"
            jobs, size = [], 0
        jobs.append(job)
        size += len(job) + 1
    if jobs:
        yield b'{"jobs":[' + b",".join(jobs) + b"]}"


def _decode(content: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unavailable(f"the server answers in a way that this client does not know: {error}") from None


def _params(which: JobFilter | RunFilter) -> Params:
    found: Params = []
    for name, value in msgspec.to_builtins(which).items():
        values = value if isinstance(value, list | tuple) else [value]
        found.extend((name, str(one).lower() if isinstance(one, bool) else str(one)) for one in values)
    return found


def _log_params(stream: LogStream, attempt: int | None) -> Params:
    return [("stream", stream)] if attempt is None else [("stream", stream), ("attempt", str(attempt))]


def _prefer(wait: int) -> dict[str, str]:
    return {"Prefer": f"wait={max(1, round(min(wait, LONGEST_WAIT) / 1_000_000))}"} if wait > 0 else {}


def _part(text: str) -> str:
    return quote(text, safe="@:")
