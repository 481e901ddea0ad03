"""How a client reaches a scheduler: the calls of the contract, over HTTP or within the process.

    AsyncClient, Client ──▶ Transport ◀── HttpTransport        another process, over HTTP
                                      ◀── (program)            the servicer of this process, called directly

Every call may be made from any event loop. All raise the errors of `duly.core.errors`: NotFound for an id that
does not exist, InvalidInput for what cannot be taken, Unavailable when no servicer answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import Any, Final, Literal, Protocol

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
    JobStateName,
    JobVersionList,
    JobVersionView,
    JobView,
    LogPiece,
    PreviewSpec,
    PreviewView,
    RunList,
    RunningList,
    RunStateName,
    RunView,
    ShardList,
    StatsView,
    VersionView,
    WebhookList,
    WorkerList,
)

DEFAULT_URL: Final = "http://127.0.0.1:7350"

LogStream = Literal["stdout", "stderr", "all"]
BlobSource = Callable[[], AsyncIterable[bytes]]  # called again when an upload has to start over


class JobFilter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which jobs, as in `GET /v1/jobs`; every filter given must hold. A label is written `key:value`."""

    name: str | None = None
    label: Sequence[str] = ()
    state: JobStateName | None = None
    task: Literal["function", "command", "http"] | None = None
    schedule: str | None = None
    q: str | None = None
    order: Literal["created", "-created", "name", "-name"] | None = None
    limit: int | None = None
    cursor: str | None = None


class RunFilter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which runs, as in `GET /v1/runs`; `since` and `until` are RFC 3339 and bound `scheduled_at`."""

    state: Sequence[RunStateName] = ()
    job_id: str | None = None
    since: str | None = None
    until: str | None = None
    late: bool | None = None
    worker: str | None = None
    order: Literal["-scheduled", "scheduled"] | None = None  # newest first, unless asked otherwise
    limit: int | None = None
    cursor: str | None = None


class Transport(Protocol):
    """The calls. Durations are integer microseconds; iterators are closed by whoever stops iterating."""

    async def create_job(self, spec: JobSpec, *, key: str | None) -> tuple[JobView, bool]:
        """The job, and False if the key had already made it. IdempotencyKeyReused if it made another one."""
        ...

    async def create_jobs(self, specs: Sequence[JobSpec]) -> BatchView:
        """At most 10,000 jobs, one result each, in order; a bad one does not stop the others."""
        ...

    async def get_job(self, job_id: str) -> JobView:
        """The job as it is now."""
        ...

    async def update_job(self, job_id: str, patch: dict[str, Any], *, if_version: int | None) -> JobView:
        """The job after a JSON merge patch; PreconditionFailed if it has another version than `if_version`."""
        ...

    async def delete_job(self, job_id: str) -> None:
        """Its waiting runs go, an active one is cancelled."""
        ...

    async def list_jobs(self, which: JobFilter) -> JobList:
        """One page."""
        ...

    async def running_jobs(self) -> RunningList:
        """Jobs that have a running run, with those runs."""
        ...

    async def trigger_job(self, job_id: str, *, wait: int) -> RunView:
        """A run now, besides the schedule; waits at most `wait` µs for its end."""
        ...

    async def pause_job(self, job_id: str) -> JobView:
        """No run starts until it is resumed."""
        ...

    async def resume_job(self, job_id: str) -> JobView:
        """Undoes a pause."""
        ...

    async def list_versions(self, job_id: str, *, limit: int | None, cursor: str | None) -> JobVersionList:
        """A page of the definitions that it has had, newest first."""
        ...

    async def get_version(self, job_id: str, version: int) -> JobVersionView:
        """The definition that was in force at a version of the job."""
        ...

    async def restore_version(self, job_id: str, version: int, *, if_version: int | None) -> JobView:
        """The job, defined again as it was then; PreconditionFailed if it has another version than `if_version`."""
        ...

    async def bulk_jobs(self, spec: BulkSpec) -> BulkView:
        """One action on all jobs that a filter finds."""
        ...

    async def list_runs(self, which: RunFilter) -> RunList:
        """One page, newest scheduled first."""
        ...

    async def get_run(self, run_id: str) -> RunView:
        """The run as it is now."""
        ...

    async def wait_run(self, run_id: str, *, timeout: int) -> RunView:
        """The run once it has ended, or as it is after `timeout` µs; may answer earlier than asked."""
        ...

    async def cancel_run(self, run_id: str) -> RunView:
        """Asks for its end; Conflict if it has ended."""
        ...

    async def retry_run(self, run_id: str) -> RunView:
        """A new run of the same job for a run that has ended."""
        ...

    async def explain_run(self, run_id: str) -> ExplainView:
        """Why it is where it is."""
        ...

    def open_output(self, run_id: str, path: str) -> AsyncIterator[bytes]:
        """A file that the run left, in pieces."""
        ...

    def read_log(self, run_id: str, *, stream: LogStream, attempt: int | None) -> AsyncIterator[bytes]:
        """What an attempt has written so far, in pieces; the last attempt, unless one is named."""
        ...

    def follow_log(self, run_id: str, *, stream: LogStream, attempt: int | None) -> AsyncIterator[LogPiece]:
        """What an attempt writes, as it comes, until it ends."""
        ...

    async def preview(self, spec: PreviewSpec) -> PreviewView:
        """The next times of a schedule."""
        ...

    async def stats(self) -> StatsView:
        """Counts over all shards."""
        ...

    async def workers(self) -> WorkerList:
        """Those that beat."""
        ...

    async def shards(self) -> ShardList:
        """All of them, with their terms."""
        ...

    async def webhooks(self) -> WebhookList:
        """Those of the server that answers."""
        ...

    async def version(self) -> VersionView:
        """What answers."""
        ...

    async def put_blob(self, source: BlobSource) -> BlobView:
        """Stores the bytes under their digest; storing them again is cheap and changes nothing."""
        ...

    def open_blob(self, digest: str) -> AsyncIterator[bytes]:
        """Its bytes in pieces."""
        ...

    def events(self, *, after: str | None) -> AsyncIterator[EventView]:
        """What happens, from the event after that id on, until the caller stops."""
        ...

    async def close(self) -> None:
        """Lets go of connections of the running loop; the transport can be used again."""
        ...
