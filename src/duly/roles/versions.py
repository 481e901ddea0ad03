"""Versions of a job's definition: listed, read, restored.

The present definition is the job's own; those before it are what the store has kept of them (core/versions.py).
"""

from __future__ import annotations

from duly.core.contract import JobDefinition, JobSpec, JobVersionList, JobVersionView, JobView
from duly.core.definition import define_job
from duly.core.errors import NotFound
from duly.core.model import Job
from duly.core.paging import page_limit, version_cursor, version_position
from duly.core.versions import number, version_view
from duly.core.views import job_definition
from duly.roles.jobs import JobDesk


class VersionDesk(JobDesk):
    """The use-cases of versions."""

    async def list_versions(
        self, job_id: str, *, namespace: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> JobVersionList:
        """A page of definitions, newest first, the present one among them. Raises NotFound, Malformed."""
        below = None if cursor is None else version_position(cursor)
        limit = page_limit(limit)
        present = (await self._row(job_id, namespace)).job
        # One more than is shown, to tell what the last of them changed.
        found = await self._definitions(present, below, limit + 1)
        views = [
            version_view(job, before=before, current=job is present)
            for job, before in zip(found, [*found[1:], None], strict=True)
        ]
        page = views[:limit]
        return JobVersionList(items=page, next=version_cursor(page[-1].version) if len(views) > limit else None)

    async def get_version(self, job_id: str, version: int, *, namespace: str | None = None) -> JobVersionView:
        """The definition that was in force at a version of the job. Raises NotFound."""
        present = (await self._row(job_id, namespace)).job
        job, before = await self._in_force(present, version)
        return version_view(job, before=before, current=job is present)

    async def restore_version(
        self,
        job_id: str,
        version: int,
        *,
        namespace: str | None = None,
        if_version: int | None = None,
        by: str = "",
    ) -> JobView:
        """Define the job again as it was at a version, checked as any change; paused or not, it stays so.

        Raises as `update_job`, and NotFound for a version that is not kept.
        """
        was, _ = await self._in_force((await self._row(job_id, namespace)).job, version)
        definition = job_definition(was)

        def change(job: Job, now: int) -> Job:
            spec = _spec(definition, paused=job.state == "paused")
            return define_job(spec, job_id=job.id, now=now, namespace=job.namespace, before=job)

        return await self._redefine(job_id, namespace, if_version, change, by)

    async def _definitions(self, present: Job, below: int | None, limit: int) -> list[Job]:
        """At most `limit` definitions below a number, newest first, each as the job was when it had it last."""
        own = number(present)
        if below is not None and below <= own:
            return await self._store.versions(present.id, below, limit)
        return [present, *await self._store.versions(present.id, own, limit - 1)]

    async def _in_force(self, present: Job, version: int) -> tuple[Job, Job | None]:
        """The definition at a version of the job, and the one that it replaced, if that is kept."""
        found = [] if version > present.version else await self._definitions(present, version + 1, 2)
        if not found:
            raise NotFound(f"version {version} of the job is not there, or no longer kept")
        return found[0], found[1] if len(found) > 1 else None


def _spec(definition: JobDefinition, *, paused: bool) -> JobSpec:
    return JobSpec(**{name: getattr(definition, name) for name in JobDefinition.__struct_fields__}, paused=paused)
