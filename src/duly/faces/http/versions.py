"""Versions of a job's definition over HTTP: listed, read one by one, restored."""

from __future__ import annotations

from typing import Final

from duly.core.contract import JobVersionList, JobVersionView, JobView
from duly.core.errors import NotFound
from duly.core.tokens import Scope
from duly.faces.http.answers import Answer, json_reply
from duly.faces.http.call import Call
from duly.faces.http.jobs import etag, job_id_of, link, version_wanted
from duly.faces.http.operation import Operation, Returns
from duly.faces.http.query import Cursor, Limit, Query


class VersionsAsked(Query, frozen=True, kw_only=True):
    """Which page of the versions."""

    limit: Limit = 100
    cursor: Cursor | None = None


async def list_versions(call: Call) -> Answer:
    """A page of definitions."""
    asked = call.query(VersionsAsked)
    page = await call.context.servicer.list_versions(
        job_id_of(call), namespace=call.namespace, limit=asked.limit, cursor=asked.cursor
    )
    return json_reply(page, headers=link(call, page.next))


async def get_version(call: Call) -> Answer:
    """The definition that was in force at a version."""
    found = await call.context.servicer.get_version(job_id_of(call), number_of(call.path), namespace=call.namespace)
    return json_reply(found)


async def restore_version(call: Call) -> Answer:
    """Define a job again as it was."""
    job_id = job_id_of(call)
    number = number_of(call.path)
    version = await version_wanted(call, job_id)
    job = await call.context.servicer.restore_version(
        job_id, number, namespace=call.namespace, if_version=version, by=call.by
    )
    return json_reply(job, headers=[etag(job)])


def number_of(path: dict[str, str]) -> int:
    """The version that a path names. Raises NotFound for what is no number of one."""
    text = path["version"]
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise NotFound(f"there is no version {text[:80]!r}")
    return int(text)


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/v1/jobs/{job_id}/versions",
        id="listJobVersions",
        summary="The definitions that a job has had, newest first",
        description="The present one and up to 50 that were replaced, 1 MiB of them in all. Pausing, resuming and "
        "triggering change no definition.",
        tag="jobs",
        scope=Scope.READ,
        namespace="any",
        query=VersionsAsked,
        returns={200: Returns("A page", JobVersionList, headers=("Link",))},
        problems=(404, 422),
        handler=list_versions,
    ),
    Operation(
        method="GET",
        path="/v1/jobs/{job_id}/versions/{version}",
        id="getJobVersion",
        summary="The definition that was in force at a version of a job",
        description="Any version that the job has had may be named, as entity tags do; `version` in the "
        "answer says since which one that definition was in force.",
        tag="jobs",
        scope=Scope.READ,
        namespace="any",
        returns={200: Returns("The definition", JobVersionView)},
        problems=(404, 422),
        handler=get_version,
    ),
    Operation(
        method="POST",
        path="/v1/jobs/{job_id}/versions/{version}/restore",
        id="restoreJobVersion",
        summary="Define a job again as it was at a version",
        description="A change like any other, with a version of its own. A paused job stays paused.",
        tag="jobs",
        scope=Scope.OPERATE,
        namespace="any",
        headers=("If-Match",),
        returns={200: Returns("The job", JobView, headers=("ETag",))},
        problems=(404, 409, 412, 422),
        handler=restore_version,
    ),
)
