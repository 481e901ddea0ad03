"""The Python client, in coroutines; `client.py` puts the face for ordinary code before it.

    AsyncClient ──▶ Transport ──▶ servicer        the one implementation of what a client does

Durations are text such as "30s" or timedeltas; timeouts may be seconds, too. Errors are those of duly.core.errors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import msgspec

from duly.core.contract import (
    BlobView,
    BulkFilter,
    BulkSpec,
    BulkView,
    CommandSpec,
    EventView,
    HttpSpec,
    JobList,
    JobStateName,
    JobVersionList,
    JobVersionView,
    JobView,
    PreviewSpec,
    PreviewView,
    RunningJob,
    RunView,
    ShardView,
    StatsView,
    TaskSpec,
    VersionView,
    WebhookView,
    WorkerView,
)
from duly.core.definition import convert
from duly.core.errors import DulyError, InvalidInput
from duly.core.instants import parse_instant
from duly.core.model import Dst, JobId, run_id
from duly.faces.handles import AsyncHandle, batch_outcome
from duly.faces.registration import Registrations, register
from duly.faces.run_calls import RunCalls
from duly.faces.specs import (
    Duration,
    JobOptions,
    Time,
    checked_key,
    function_spec,
    instant,
    job_spec,
    microseconds,
    plain_options,
    schedule_text,
    task_spec,
)
from duly.faces.submission import BATCH, Call, SubmitOptions, batch_specs, submit_spec
from duly.faces.transport import JobFilter, Transport
from duly.faces.uploads import FileLike, blob_source, uploaded
from duly.faces.wire_errors import as_error

T = TypeVar("T")


class AsyncClient(RunCalls):
    """What a client can do, over any transport. Usable from any number of event loops and tasks."""

    def __init__(self, transport: Transport, registrations: Registrations | None = None) -> None:
        super().__init__(transport)
        self.registrations = Registrations() if registrations is None else registrations

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Lets go of the connections of this event loop."""
        await self.transport.close()

    # -- functions ------------------------------------------------------------------------------------------

    @overload
    async def submit(
        self, function: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, at: Time | None = None, **options: Any
    ) -> AsyncHandle[T]: ...
    @overload
    async def submit(
        self, function: Callable[..., T], /, *args: Any, at: Time | None = None, **options: Any
    ) -> AsyncHandle[T]: ...
    @overload
    async def submit(
        self, function: str, /, *args: Any, at: Time | None = None, **options: Any
    ) -> AsyncHandle[Any]: ...
    async def submit(
        self,
        function: Callable[..., Any] | str,
        /,
        *args: Any,
        at: Time | None = None,
        key: str | None = None,
        **options: Any,
    ) -> AsyncHandle[Any]:
        """Run a function once on a worker: now, or `at` a time ("in 5m", an aware datetime, a timedelta from now).

        Keywords that SubmitOptions names are options, all others go to the function, as JSON. Options not given are
        those of the function's decorator. The same `key` again gives the same run. For a function with a keyword
        that is an option's name, see `submit_many`.
        Raises TypeError for arguments that it does not take, InvalidInput, IdempotencyKeyReused, Unavailable.
        """
        spec = submit_spec(self.registrations, function, args, at, options)
        job, _ = await self.transport.create_job(spec, key=checked_key(key))
        first = None
        if job.next_run_at is not None and job.last_run is None and spec.jitter == "0s":
            first = run_id(JobId(job.id), parse_instant(job.next_run_at))
        return AsyncHandle(self.transport, job.id, first)

    @overload
    async def submit_many(
        self,
        function: Callable[..., Coroutine[Any, Any, T]],
        calls: Iterable[Call],
        *,
        at: Time | Sequence[Time | None] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> list[AsyncHandle[T]]: ...
    @overload
    async def submit_many(
        self,
        function: Callable[..., T],
        calls: Iterable[Call],
        *,
        at: Time | Sequence[Time | None] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> list[AsyncHandle[T]]: ...
    @overload
    async def submit_many(
        self,
        function: str,
        calls: Iterable[Call],
        *,
        at: Time | Sequence[Time | None] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> list[AsyncHandle[Any]]: ...
    async def submit_many(
        self,
        function: Callable[..., Any] | str,
        calls: Iterable[Call],
        *,
        at: Time | Sequence[Time | None] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> list[AsyncHandle[Any]]:
        """Run a function once for each of `calls`: tuples of arguments, or pairs of such a tuple and a dict.

        `at` is one time for all or a list with one each. Few requests for any number; the handles cost none.
        Raises BatchRefused when some were refused (the others are created), and what `submit` raises. Not repeated
        when a connection breaks off: whether the jobs were created is then unknown (OutcomeUnknown).
        """
        specs = batch_specs(self.registrations, function, list(calls), at, options)
        ids: list[str | None] = []
        errors: dict[int, DulyError] = {}
        for start in range(0, len(specs), BATCH):
            view = await self.transport.create_jobs(specs[start : start + BATCH])
            for position, item in enumerate(view.results, start):
                ids.append(item.id if item.error is None else None)
                if item.error is not None:
                    errors[position] = as_error(item.error)
        return [AsyncHandle(self.transport, job_id) for job_id in batch_outcome(ids, errors)]

    async def register(self) -> list[JobView]:
        """The jobs of the functions that are decorated with a schedule, created or brought up to date."""
        jobs = [await register(self.transport, registration) for registration in self.registrations]
        return [job for job in jobs if job is not None]

    # -- jobs -----------------------------------------------------------------------------------------------

    async def create(
        self,
        *,
        schedule: Time,
        code: FileLike | None = None,
        argv: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        inputs: Mapping[str, FileLike] | None = None,
        stdin: str | None = None,
        url: str | None = None,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        expect: str = "2xx",
        function: Callable[..., Any] | str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        task: TaskSpec | Mapping[str, Any] | None = None,
        key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> JobView:
        """Create a job of one of these kinds:

        a command: `code` (an executable file, uploaded) or `argv` (a program of the worker's), or both, where argv
        begins with "./task"; `inputs` are files by their path below input/, uploaded; a function: `function`, `args`,
        `kwargs`; a request: `url`, `method`, `headers`, `body` (JSON, or text), `expect`; or a `task` as in the API.
        The same `key` again gives the same job. Raises InvalidInput (with pointers), IdempotencyKeyReused, TooLarge.
        """
        command = code is not None or bool(argv)
        if (command, url is not None, function is not None, task is not None).count(True) != 1:
            raise InvalidInput.at("/task", "give one of code or argv, url, function, or task")
        built: TaskSpec
        if function is not None:
            built = function_spec(function, args, kwargs)
        elif url is not None:
            given = {"kind": "http", "url": url, "method": method, "headers": dict(headers or {}), "expect": expect}
            built = msgspec.structs.replace(convert(given, HttpSpec), body=body)
        elif command:
            built = await self._command(code, argv, env or {}, inputs or {}, stdin)
        else:
            assert task is not None
            built = task_spec(task) if isinstance(task, Mapping) else task
        return (await self.transport.create_job(job_spec(built, schedule, options), key=checked_key(key)))[0]

    async def _command(
        self,
        code: FileLike | None,
        argv: Sequence[str],
        env: Mapping[str, str],
        inputs: Mapping[str, FileLike],
        stdin: str | None,
    ) -> CommandSpec:
        digest = None if code is None else await uploaded(self.transport, code, "/task/code")
        files = {path: await uploaded(self.transport, file, f"/task/inputs/{path}") for path, file in inputs.items()}
        given = {"argv": list(argv), "env": dict(env), "inputs": files, "code": digest, "stdin": stdin}
        return convert({"kind": "command", **given}, CommandSpec)

    async def get(self, job_id: str) -> JobView:
        """The job as it is now. Raises NotFound."""
        return await self.transport.get_job(job_id)

    async def update(
        self, job_id: str, /, *, if_version: int | None = None, schedule: Time | None = None, **changes: Any
    ) -> JobView:
        """Change fields of a job: `priority=9`, `task={"args": [1]}`; None puts a field back to its default.

        Raises PreconditionFailed when it is no longer at `if_version`, Conflict when it is deleted, InvalidInput.
        """
        task = {"task": msgspec.to_builtins(changes.pop("task"))} if "task" in changes else {}
        patch = {**plain_options(changes), **task}
        if schedule is not None:
            patch["schedule"] = schedule_text(schedule)
        return await self.transport.update_job(job_id, patch, if_version=if_version)

    async def versions(self, job_id: str, /, *, limit: int | None = None, cursor: str | None = None) -> JobVersionList:
        """A page of the definitions that a job has had, newest first, the present one among them. Raises NotFound."""
        return await self.transport.list_versions(job_id, limit=limit, cursor=cursor)

    async def get_version(self, job_id: str, version: int, /) -> JobVersionView:
        """The definition that was in force at a version of the job. Raises NotFound, also if it is no longer kept."""
        return await self.transport.get_version(job_id, version)

    async def restore(self, job_id: str, version: int, /, *, if_version: int | None = None) -> JobView:
        """Define a job again as it was at a version of it; paused or not, it stays so. Raises as `update`."""
        return await self.transport.restore_version(job_id, version, if_version=if_version)

    async def delete(self, job_id: str) -> None:
        """Waiting runs go, an active one is cancelled; history stays. Raises NotFound."""
        await self.transport.delete_job(job_id)

    async def jobs(
        self,
        *,
        name: str | None = None,
        label: str | Sequence[str] = (),
        state: JobStateName | None = None,
        task: Literal["function", "command", "http"] | None = None,
        schedule: str | None = None,
        q: str | None = None,
        order: Literal["created", "-created", "name", "-name"] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> JobList:
        """One page of jobs; the next one is at `cursor=page.next`. Labels are written `key:value`."""
        labels = [label] if isinstance(label, str) else label
        return await self.transport.list_jobs(
            JobFilter(
                name=name,
                label=labels,
                state=state,
                task=task,
                schedule=schedule,
                q=q,
                order=order,
                limit=limit,
                cursor=cursor,
            )
        )

    async def running(self) -> list[RunningJob]:
        """Jobs that have a running run, with those runs."""
        return (await self.transport.running_jobs()).items

    async def trigger(self, job_id: str, *, wait: float | Duration = 0) -> RunView:
        """Run it now, besides its schedule; waits at most `wait` for the end. Raises Conflict for a deleted job."""
        return await self.transport.trigger_job(job_id, wait=microseconds(wait))

    async def pause(self, job_id: str) -> JobView:
        """No run starts until it is resumed."""
        return await self.transport.pause_job(job_id)

    async def resume(self, job_id: str) -> JobView:
        """Undo a pause; what fell due meanwhile is not made up for."""
        return await self.transport.resume_job(job_id)

    async def bulk(
        self,
        action: Literal["pause", "resume", "delete", "trigger"],
        /,
        *,
        dry_run: bool = False,
        **which: Any,
    ) -> BulkView:
        """One action on all jobs that a filter finds: name=, label=, state=, task=, schedule=, q=, ids=."""
        found = convert(which, BulkFilter)
        return await self.transport.bulk_jobs(BulkSpec(filter=found, action=action, dry_run=dry_run))

    # -- the rest -------------------------------------------------------------------------------------------

    async def preview(
        self,
        schedule: str,
        *,
        timezone: str = "UTC",
        dst: Dst = "cron",
        since: str | datetime | None = None,
        count: int = 10,
        start: str | datetime | None = None,
        end: str | datetime | None = None,
        calendar: Sequence[str] = (),
        job_id: str = "",
    ) -> PreviewView:
        """The next `count` times of a schedule after `since` (now, if left out). Raises ScheduleError for a bad one."""
        return await self.transport.preview(
            PreviewSpec(
                schedule=schedule,
                timezone=timezone,
                dst=dst,
                from_=None if since is None else instant(since, "/from"),
                count=count,
                start=None if start is None else instant(start, "/start"),
                end=None if end is None else instant(end, "/end"),
                calendar=list(calendar),
                job_id=job_id,
            )
        )

    async def stats(self) -> StatsView:
        """Counts over all shards, and the lateness of what has run."""
        return await self.transport.stats()

    async def webhooks(self) -> list[WebhookView]:
        """The webhooks of the server that answers, and whether they are delivered."""
        return (await self.transport.webhooks()).items

    async def workers(self) -> list[WorkerView]:
        """All workers."""
        return (await self.transport.workers()).items

    async def shards(self) -> list[ShardView]:
        """All shards."""
        return (await self.transport.shards()).items

    async def version(self) -> VersionView:
        """What answers."""
        return await self.transport.version()

    async def upload(self, source: FileLike) -> BlobView:
        """Store a file (its path, bytes, or a file open for reading), to be named by its digest. Raises TooLarge."""
        return await self.transport.put_blob(blob_source(source))

    def events(self, *, after: str | None = None) -> AsyncIterator[EventView]:
        """What happens, from now on or from the event after that id, until the caller stops."""
        return self.transport.events(after=after)
