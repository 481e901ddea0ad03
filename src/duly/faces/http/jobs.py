"""Jobs over HTTP: create, read, change, delete, list, and act on one."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from duly.core.badge import badge
from duly.core.contract import (
    JobList,
    JobSpec,
    JobStateName,
    JobView,
    RunningList,
    RunView,
)
from duly.core.errors import NotFound, PreconditionFailed
from duly.core.job_ids import is_job_id
from duly.core.model import RunState
from duly.core.tokens import Scope
from duly.faces.http.answers import Answer, Reply, json_reply
from duly.faces.http.call import Call
from duly.faces.http.conditions import idempotency_key, unchanged, versions_wanted, wait_wanted
from duly.faces.http.multipart import read_job_form
from duly.faces.http.operation import Operation, Returns, Takes
from duly.faces.http.problems import Headers
from duly.faces.http.query import NO_CONTROLS, Cursor, Limit, Query, next_link, parse_query
from duly.ports import JobQuery

MERGE_PATCH: Final = "application/merge-patch+json"
FORM: Final = "multipart/form-data"


class JobsAsked(Query, frozen=True, kw_only=True):
    """Which jobs."""

    name: Annotated[str, Meta(pattern=NO_CONTROLS, max_length=200, description="the whole name")] | None = None
    label: Annotated[
        tuple[Annotated[str, Meta(pattern="^[^:\\x00-\\x1f\\x7f]{1,63}:[^\\x00-\\x1f\\x7f]{0,255}$")], ...],
        Meta(max_length=64, description="`key:value`; repeat it for several, all must hold"),
    ] = ()
    state: JobStateName | UnsetType = UNSET
    task: Literal["function", "command", "http"] | UnsetType = UNSET
    schedule: Annotated[str, Meta(pattern=NO_CONTROLS, max_length=16_384, description="the whole schedule")] | None = (
        None
    )
    q: Annotated[str, Meta(pattern=NO_CONTROLS, max_length=200, description="a part of the name or the id")] | None = (
        None
    )
    order: Annotated[
        Literal["created", "-created", "name", "-name"],
        Meta(
            description="`created` is the order of ids, which begin with the time; a job made with an Idempotency-Key "
            "that is no UUIDv7 has an id that the key decides, and stands anywhere among the others"
        ),
    ] = "created"
    limit: Limit = 100
    cursor: Cursor | None = None


class RunningAsked(Query, frozen=True, kw_only=True):
    """Which page of the jobs that run."""

    limit: Limit = 100
    cursor: Cursor | None = None


# -- creating -----------------------------------------------------------------------------------------------


async def create_job(call: Call) -> Answer:
    """One job, from JSON or from a form with its files."""
    key = idempotency_key(call.header(b"idempotency-key"))
    if call.media_type == FORM:
        spec = await read_job_form(call)
    else:
        spec = await call.json(JobSpec, also=(FORM,))
    job, made = await call.context.servicer.create_job(
        spec, namespace=call.one_namespace, key=key, body_digest=_digest(spec) if key else "", by=call.by
    )
    headers: Headers = [etag(job), (b"location", f"/v1/jobs/{job.id}".encode())]
    return json_reply(job, status=201 if made else 200, headers=headers)


def _digest(spec: JobSpec) -> str:
    """Of what was meant, not how it was written: defaults filled in, names sorted, files by their digests."""
    return hashlib.sha256(msgspec.json.encode(spec, order="sorted")).hexdigest()


# -- one job ------------------------------------------------------------------------------------------------


async def get_job(call: Call) -> Answer:
    """One job, or 304 for a client that has this version."""
    job = await call.context.servicer.get_job(job_id_of(call), namespace=call.namespace)
    if unchanged(call.header(b"if-none-match"), str(job.version)):
        return Reply(status=304, headers=[etag(job)])
    return json_reply(job, headers=[etag(job)])


async def job_badge(call: Call) -> Answer:
    """One job's status as an image; its ETag is that of the image, which changes less often than the job."""
    job = await call.context.servicer.get_job(job_id_of(call), namespace=call.namespace)
    image = badge(job).encode()
    tag = hashlib.sha256(image).hexdigest()[:32]
    headers: Headers = [(b"etag", f'"{tag}"'.encode()), (b"cache-control", b"private, max-age=30")]
    if unchanged(call.header(b"if-none-match"), tag):
        return Reply(status=304, headers=headers)
    headers += [(b"content-type", b"image/svg+xml"), (b"content-security-policy", b"default-src 'none'")]
    return Reply(image, headers=headers)


async def update_job(call: Call) -> Answer:
    """A merge patch on one job."""
    job_id = job_id_of(call)
    patch = await call.json(dict[str, Any], also=(MERGE_PATCH,))
    version = await version_wanted(call, job_id)
    job = await call.context.servicer.update_job(
        job_id, patch, namespace=call.namespace, if_version=version, by=call.by
    )
    return json_reply(job, headers=[etag(job)])


async def delete_job(call: Call) -> Answer:
    """End one job."""
    job_id = job_id_of(call)
    version = await version_wanted(call, job_id)
    await call.context.servicer.delete_job(job_id, namespace=call.namespace, if_version=version)
    return Reply(status=204)


async def pause_job(call: Call) -> Answer:
    """Let no run start."""
    job = await call.context.servicer.pause_job(job_id_of(call), namespace=call.namespace)
    return json_reply(job, headers=[etag(job)])


async def resume_job(call: Call) -> Answer:
    """Let runs start again."""
    job = await call.context.servicer.resume_job(job_id_of(call), namespace=call.namespace)
    return json_reply(job, headers=[etag(job)])


async def trigger_job(call: Call) -> Answer:
    """A run now; with `Prefer: wait`, its end if that comes in time (200, else 202)."""
    run = await call.context.servicer.trigger_job(job_id_of(call), namespace=call.namespace)
    return await answer_with_run(call, run, pending=202)


async def answer_with_run(call: Call, run: RunView, *, pending: int) -> Answer:
    """The run, after waiting for its end as the client prefers; `pending` is the status if it has not ended."""
    headers: Headers = [(b"location", f"/v1/runs/{run.id}".encode())] if pending == 202 else []
    wait = wait_wanted(call.header(b"prefer"), call.context.settings.longest_wait)
    if wait is not None:
        waiting = call.context.servicer.wait_run(run.id, namespace=call.namespace, timeout=wait)
        run = await call.unless_gone(waiting) or run
        headers.append((b"preference-applied", f"wait={wait // 1_000_000}".encode()))
    ended = RunState[run.state.upper()].terminal
    return json_reply(run, status=200 if ended else pending, headers=headers or None)


def job_id_of(call: Call) -> str:
    """The job that the path names. Raises NotFound for what no id looks like."""
    job_id = call.path["job_id"]
    if not is_job_id(job_id):
        raise NotFound(f"there is no job {job_id[:80]!r}")
    return job_id


def etag(job: JobView) -> tuple[bytes, bytes]:
    """The header that names the job's version."""
    return b"etag", f'"{job.version}"'.encode()


async def version_wanted(call: Call, job_id: str) -> int | None:
    """The version that `If-Match` asks for, None for any. Raises PreconditionFailed."""
    versions = versions_wanted(call.header(b"if-match"))
    if versions is None or len(versions) == 1:
        return versions[0] if versions else None
    present = await call.context.servicer.get_job(job_id, namespace=call.namespace)
    if present.version not in versions:
        raise PreconditionFailed(f"the job is at version {present.version}")
    return present.version


# -- lists --------------------------------------------------------------------------------------------------


async def list_jobs(call: Call) -> Answer:
    """A page of jobs."""
    asked = call.query(JobsAsked)
    page = await call.context.servicer.list_jobs(
        JobQuery(
            namespace=call.namespace,
            name=asked.name,
            labels=tuple(_label(text) for text in asked.label),
            state=asked.state or None,
            task=asked.task or None,
            schedule=asked.schedule,
            q=asked.q,
            order=asked.order,
            cursor=asked.cursor,
            limit=asked.limit,
        )
    )
    return json_reply(page, headers=link(call, page.next))


async def running_jobs(call: Call) -> Answer:
    """A page of the jobs that run, with their runs."""
    asked = call.query(RunningAsked)
    query = JobQuery(namespace=call.namespace, cursor=asked.cursor, limit=asked.limit, running=True)
    page = await call.context.servicer.running_jobs(query)
    return json_reply(page, headers=link(call, page.next))


def link(call: Call, cursor: str | None) -> Headers | None:
    """The Link header of a page, if there is a next one."""
    if cursor is None:
        return None
    return [(b"link", next_link(call.scope["path"], parse_query(call.scope["query_string"]), cursor).encode())]


def _label(text: str) -> tuple[str, str]:
    key, _, value = text.partition(":")
    return key, value


# -- the table ----------------------------------------------------------------------------------------------

_JOB: Final = Returns("The job", JobView, headers=("ETag",))
_FORM_SCHEMA: Final = {
    "type": "object",
    "required": ["job"],
    "properties": {
        "job": {
            "allOf": [
                {"$ref": "#/components/schemas/JobSpec"},
                {"type": "object", "properties": {"task": {"$ref": "#/components/schemas/CommandSpec"}}},
            ]
        },
        "code": {"type": "string", "format": "binary", "description": "the executable, put at ./task"},
    },
    "patternProperties": {"^input/.": {"type": "string", "format": "binary", "description": "put below input/"}},
    "additionalProperties": False,
}
_PATCH_SCHEMA: Final = {"$ref": "#/components/schemas/JobPatch"}

OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/v1/jobs",
        id="createJob",
        summary="Create a job",
        description="With an Idempotency-Key, the same key and body find the first job again (200).",
        tag="jobs",
        scope=Scope.SUBMIT,
        namespace="one",
        headers=("Idempotency-Key",),
        body=Takes({"application/json": JobSpec, FORM: _FORM_SCHEMA}),
        returns={
            201: Returns("Created", JobView, headers=("ETag", "Location")),
            200: Returns("Created before, with the same key and body", JobView, headers=("ETag", "Location")),
        },
        problems=(409, 413, 415, 422),
        handler=create_job,
    ),
    Operation(
        method="GET",
        path="/v1/jobs/running",
        id="getRunningJobs",
        summary="Jobs that have a running run, with those runs",
        tag="jobs",
        scope=Scope.READ,
        namespace="any",
        query=RunningAsked,
        returns={200: Returns("A page", RunningList, headers=("Link",))},
        problems=(422,),
        handler=running_jobs,
    ),
    Operation(
        method="GET",
        path="/v1/jobs",
        id="listJobs",
        summary="List jobs",
        tag="jobs",
        scope=Scope.READ,
        namespace="any",
        query=JobsAsked,
        returns={200: Returns("A page", JobList, headers=("Link",))},
        problems=(422,),
        handler=list_jobs,
    ),
    Operation(
        method="GET",
        path="/v1/jobs/{job_id}",
        id="getJobById",
        summary="Read a job",
        tag="jobs",
        scope=Scope.READ,
        namespace="any",
        headers=("If-None-Match",),
        returns={200: _JOB, 304: Returns("The client has this version", headers=("ETag",))},
        problems=(404, 422),
        handler=get_job,
    ),
    Operation(
        method="GET",
        path="/v1/jobs/{job_id}/badge.svg",
        id="getJobBadge",
        summary="How a job's last run ended and how late it was, as an SVG image",
        tag="jobs",
        scope=Scope.READ,
        namespace="any",
        headers=("If-None-Match",),
        returns={
            200: Returns("The image", {"type": "string"}, media=("image/svg+xml",), headers=("ETag", "Cache-Control")),
            304: Returns("The client has this image", headers=("ETag", "Cache-Control")),
        },
        problems=(404, 422),
        handler=job_badge,
    ),
    Operation(
        method="PATCH",
        path="/v1/jobs/{job_id}",
        id="updateJobById",
        summary="Change a job",
        tag="jobs",
        scope=Scope.OPERATE,
        namespace="any",
        headers=("If-Match",),
        body=Takes({MERGE_PATCH: _PATCH_SCHEMA, "application/json": _PATCH_SCHEMA}),
        returns={200: _JOB},
        problems=(404, 409, 412, 413, 415, 422),
        handler=update_job,
    ),
    Operation(
        method="DELETE",
        path="/v1/jobs/{job_id}",
        id="deleteJobById",
        summary="Delete a job",
        description="Waiting runs go, an active one is cancelled; history stays until its retention ends.",
        tag="jobs",
        scope=Scope.OPERATE,
        namespace="any",
        headers=("If-Match",),
        returns={204: Returns("Deleted")},
        problems=(404, 409, 412, 422),
        handler=delete_job,
    ),
    Operation(
        method="POST",
        path="/v1/jobs/{job_id}/trigger",
        id="triggerJob",
        summary="Run a job now, besides its schedule",
        tag="jobs",
        scope=Scope.SUBMIT,
        namespace="any",
        headers=("Prefer",),
        returns={
            202: Returns("The new run", RunView, headers=("Location", "Preference-Applied")),
            200: Returns("The run, ended while waited for", RunView, headers=("Location", "Preference-Applied")),
        },
        problems=(404, 409, 422),
        handler=trigger_job,
    ),
    Operation(
        method="POST",
        path="/v1/jobs/{job_id}/pause",
        id="pauseJob",
        summary="Let no run of a job start",
        tag="jobs",
        scope=Scope.OPERATE,
        namespace="any",
        returns={200: _JOB},
        problems=(404, 409, 422),
        handler=pause_job,
    ),
    Operation(
        method="POST",
        path="/v1/jobs/{job_id}/resume",
        id="resumeJob",
        summary="Undo a pause",
        tag="jobs",
        scope=Scope.OPERATE,
        namespace="any",
        returns={200: _JOB},
        problems=(404, 409, 422),
        handler=resume_job,
    ),
)
