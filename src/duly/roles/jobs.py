"""Jobs: read, changed, paused, deleted, triggered, one by one or in bulk. How they are created: creation.py.

change   read ─▶ decide ─▶ store.change (job + waiting runs, one commit) ─▶ hint, recall what is not started
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from duly.core import policy, views
from duly.core.contract import (
    BatchItem,
    BulkSpec,
    BulkView,
    JobList,
    JobView,
    RunningJob,
    RunningList,
    RunView,
)
from duly.core.definition import patch_job
from duly.core.errors import (
    Conflict,
    DulyError,
    InvalidInput,
    PreconditionFailed,
    Unavailable,
)
from duly.core.messages import Cancel, inbox
from duly.core.model import Job, JobId, Run, RunState
from duly.core.versions import follow
from duly.ports import Collision, JobQuery, JobRow, RunQuery
from duly.roles.behind import noted, unbegun_runs
from duly.roles.creation import CreationDesk, job_view
from duly.roles.desk import TRIES

BULK_PAGE: Final = 500
PAGES_AHEAD: Final = 50  # of a thousand runs that have ended before their time
NOT_OUT: Final = tuple(state for state in RunState if not state.active)
BULK_ERRORS: Final = 100
SCHEDULE_FIELDS: Final = ("schedule", "timezone", "dst", "start", "end", "max_runs", "jitter", "calendar")


class JobDesk(CreationDesk):
    """The use-cases of jobs."""

    # -- reading jobs ---------------------------------------------------------------------------------------

    async def get_job(self, job_id: str, *, namespace: str | None = None) -> JobView:
        """The job as clients read it. Raises NotFound."""
        return job_view(await self._row(job_id, namespace))

    async def list_jobs(self, query: JobQuery) -> JobList:
        """A page of jobs; deleted ones only when they are asked for."""
        page = await self._store.page_jobs(replace(query, with_deleted=query.state == "deleted"))
        return JobList(
            items=[job_view(row) for row in page.items],
            next=page.next,
            partial=bool(page.missing),
            missing_shards=list(page.missing),
        )

    async def running_jobs(self, query: JobQuery) -> RunningList:
        """Jobs that have a run in state running, with those runs."""
        page = await self._store.page_jobs(replace(query, running=True))
        missing = list(page.missing)
        items = []
        for row in page.items:
            shard = self._store.shard_of(row.job.id)
            if shard in missing:  # it has stopped answering since
                continue
            try:
                runs = await self._store.page_runs(RunQuery(job_id=row.job.id, states=(RunState.RUNNING,), limit=1000))
            except Unavailable:
                missing.append(shard)
                continue
            if runs.items:
                views = [self._run_view(run) for run in runs.items]
                items.append(RunningJob(job=job_view(row), runs=views))
        return RunningList(items=items, next=page.next, partial=bool(missing), missing_shards=missing)

    # -- changing jobs --------------------------------------------------------------------------------------

    async def update_job(
        self, job_id: str, patch: object, *, namespace: str | None = None, if_version: int | None = None, by: str = ""
    ) -> JobView:
        """Apply a JSON merge patch; `by` is the key id of the token that asks for it.

        Raises PreconditionFailed, Conflict (deleted), InvalidInput, CodeMissing, NotFound.
        """

        def change(job: Job, now: int) -> Job:
            return patch_job(job, patch, now=now)

        return await self._redefine(job_id, namespace, if_version, change, by)

    async def _redefine(
        self,
        job_id: str,
        namespace: str | None,
        if_version: int | None,
        change: Callable[[Job, int], Job],
        by: str,
    ) -> JobView:
        row = await self._row(job_id, namespace)
        if row.job.state != "deleted":
            await self._require_blobs(views.job_spec(change(row.job, self._clock.wall())))
        await self._change(job_id, namespace, if_version, change, "job.updated", by)
        return await self.get_job(job_id)

    async def pause_job(self, job_id: str, *, namespace: str | None = None) -> JobView:
        """No further occurrence starts until it is resumed; what has started goes on, retries included."""
        return await self._set_state(job_id, namespace, "paused", "job.paused")

    async def resume_job(self, job_id: str, *, namespace: str | None = None) -> JobView:
        """Go on from now: what fell due while paused is not made up for; a one-time run that waited is due."""
        return await self._set_state(job_id, namespace, "active", "job.resumed")

    async def _set_state(self, job_id: str, namespace: str | None, state: str, kind: str) -> JobView:
        row = await self._row(job_id, namespace)
        if row.job.state != state:

            def change(job: Job, now: int) -> Job:
                return msgspec.structs.replace(job, state=state, version=job.version + 1, updated_at=now)

            await self._change(job_id, namespace, None, change, kind)
        return await self.get_job(job_id)

    async def delete_job(self, job_id: str, *, namespace: str | None = None, if_version: int | None = None) -> None:
        """Waiting runs go, a dispatched or running one is cancelled, history stays. Repeating it is harmless."""
        row = await self._row(job_id, namespace)
        if row.job.state == "deleted":
            return

        def change(job: Job, now: int) -> Job:
            return replace(job, state="deleted", version=job.version + 1, updated_at=now)

        await self._change(job_id, namespace, if_version, change, "job.deleted")
        for run in await self._active_runs(row.job.id):
            await self._ask_cancel(run.key, "job deleted")

    async def _change(
        self,
        job_id: str,
        namespace: str | None,
        if_version: int | None,
        change: Callable[[Job, int], Job],
        kind: str,
        by: str = "",
    ) -> Job:
        """Read, decide, compare-and-set; again when another change or a dispatch came between."""
        for _ in range(TRIES):
            row = await self._row(job_id, namespace)
            before = row.job
            if if_version is not None and before.version != if_version:
                raise PreconditionFailed(f"the job is at version {before.version}, not {if_version}")
            if before.state == "deleted":
                raise Conflict("the job is deleted")
            now = await self._store.now(self._store.shard_of(before.id))
            job, replaced = follow(before, change(before, now), by)
            begun = await self._begun_runs(job.id)
            job, unbegun = await noted(self._store, before, job, now)
            job, opened = await self._reopened(before, job, now, begun)
            seen = frozenset(run.scheduled_at for run in begun)
            written = await self._store.change(
                job, before.version, opened, begun=seen, unbegun=unbegun, replaced=replaced
            )
            if written is None or isinstance(written, Collision):
                continue
            await self._hint([(run, job) for run in opened], now, changed=[job.id])
            await self._recall(job)
            self.event_log.job(kind, job, now)
            return job
        raise Conflict("the job is being changed by others; try again")

    async def _begun_runs(self, job_id: JobId) -> list[Run]:
        """The unfinished runs of the schedule that have had an attempt: out, or waiting to be tried again."""
        unfinished = (RunState.WAITING, RunState.DISPATCHED, RunState.RUNNING)
        page = await self._store.page_runs(RunQuery(job_id=job_id, states=unfinished, limit=1000))
        return [run for run in page.items if run.attempt and not run.manual]

    async def _reopened(self, before: Job, job: Job, now: int, begun: Sequence[Run]) -> tuple[Job, list[Run]]:
        """The waiting runs that a changed job shall have in place of its present ones; the job, with `since`."""
        if job.state != "active":
            return job, []
        schedule = policy.schedule_of(job)
        same_times = before.state == "active" and all(
            getattr(before, name) == getattr(job, name) for name in SCHEDULE_FIELDS
        )
        if same_times:
            waiting = await unbegun_runs(self._store, job.id)
            return job, [replace(run, priority=job.priority, job_version=job.version) for run in waiting]
        ordinal = await self._next_ordinal(job)
        if schedule.kind == "once":
            first = policy.once_run(job)
            if first is not None and first.scheduled_at == job.spent:
                return job, []
            known = first and (await self._store.load([first.key]))[0]
            waits = known is None or (known and known[0].state == RunState.WAITING)
            return job, [first] if first is not None and waits else []
        if schedule.kind == "delay":
            # The end of a run that has begun opens the next one.
            return job, [] if begun else await self._on_from(job, now - 1, ordinal)
        reached = max(job.reached, job.ahead if job.ahead <= now else 0)
        reached = max([reached, *(run.scheduled_at for run in begun if run.state.active)])
        after = max(now, reached)
        return replace(job, since=after, reached=reached), await self._on_from(job, after, ordinal)

    async def _on_from(self, job: Job, after: int, ordinal: int) -> list[Run]:
        """The first occurrence after an instant, and after each that has been already the one that follows it.

        Occurrences ahead may have ended (cancelled before their time, run before the clock was set back) or wait to be
        tried again. A run that exists stays as it is, and only a first attempt opens the next one, so the schedule,
        which goes on from run to run, would come to its end there.
        """
        been: set[int] = set()
        cursor: str | None = None
        for _ in range(PAGES_AHEAD):
            query = RunQuery(job_id=job.id, states=NOT_OUT, since=after + 1, limit=1_000, cursor=cursor)
            page = await self._store.page_runs(query)
            been.update(run.scheduled_at for run in page.items if run.attempt or run.state.terminal)
            cursor = page.next
            if cursor is None:
                break
        schedule = policy.schedule_of(job)
        if schedule.kind == "delay":
            following = policy.first_run(job, after, ordinal)
            while following is not None and following.scheduled_at in been:
                following = policy.first_run(job, following.scheduled_at, ordinal)
            return [] if following is None else [following]
        before = [after, *sorted(at for at in been if schedule.next_after(at - 1) == at)]
        coming = [policy.first_run(job, instant, ordinal) for instant in before]
        return list({run.key: run for run in coming if run is not None and run.scheduled_at not in been}.values())

    async def _next_ordinal(self, job: Job) -> int:
        """One more than the occurrences of the job that were started, for `max_runs`."""
        if job.max_runs is None:
            return 1
        cursor: str | None = None
        for _ in range(TRIES):
            page = await self._store.page_runs(RunQuery(job_id=job.id, limit=500, cursor=cursor))
            for run in page.items:
                if run.attempt and not run.manual:
                    return run.ordinal + 1
            cursor = page.next
            if cursor is None:
                break
        return 1

    async def _recall(self, job: Job) -> None:
        """Ask workers to hand back what they hold of this job and have not started."""
        for run in await self._active_runs(job.id):
            if run.state == RunState.DISPATCHED and not run.manual:
                cancel = Cancel(key=run.key, attempt=run.attempt, reason="changed", unless_started=True)
                await self._broker.publish(inbox(run.worker), cancel)

    # -- acting on jobs -------------------------------------------------------------------------------------

    async def trigger_job(self, job_id: str, *, namespace: str | None = None) -> RunView:
        """Open a run now, outside the schedule. A paused job can be triggered, a deleted one not (Conflict)."""
        row = await self._row(job_id, namespace)
        return self._run_view(await self._open_manual(row.job))

    async def bulk(self, spec: BulkSpec, *, namespace: str | None = None) -> BulkView:
        """Do one thing to every job that the filter finds; a job that refuses does not stop the others."""
        rows = [row async for row in self._matching(spec, namespace)]
        ids = [row.job.id for row in rows]
        if spec.dry_run:
            return BulkView(action=spec.action, dry_run=True, matched=len(ids), changed=0, ids=list(ids[:1000]))
        changed = 0
        errors: list[BatchItem] = []
        for job_id in ids:
            try:
                match spec.action:
                    case "pause":
                        await self.pause_job(job_id, namespace=namespace)
                    case "resume":
                        await self.resume_job(job_id, namespace=namespace)
                    case "delete":
                        await self.delete_job(job_id, namespace=namespace)
                    case "trigger":
                        await self.trigger_job(job_id, namespace=namespace)
                changed += 1
            except DulyError as error:
                if len(errors) < BULK_ERRORS:
                    errors.append(BatchItem(status=error.status, id=job_id, error=views.problem(error)))
        return BulkView(
            action=spec.action,
            dry_run=False,
            matched=len(ids),
            changed=changed,
            ids=list(ids[:1000]),
            errors=errors,
        )

    async def _matching(self, spec: BulkSpec, namespace: str | None) -> AsyncIterator[JobRow]:
        wanted = spec.filter
        if wanted.ids:
            for row in await self._store.get([JobId(job_id) for job_id in wanted.ids]):
                if row is not None and namespace in (None, row.job.namespace) and row.job.state != "deleted":
                    yield row
            return
        labels = tuple((key, value) for key, _, value in (label.partition(":") for label in wanted.label))
        query = JobQuery(
            namespace=namespace,
            name=wanted.name,
            labels=labels,
            state=wanted.state,
            task=wanted.task,
            schedule=wanted.schedule,
            q=wanted.q,
            with_deleted=False,
            limit=BULK_PAGE,
        )
        if query == JobQuery(namespace=namespace, with_deleted=False, limit=BULK_PAGE):
            raise InvalidInput.at("/filter", "name at least one filter; all jobs at once is never meant")
        while True:
            page = await self._store.page_jobs(query)
            for row in page.items:
                yield row
            if page.next is None:
                return
            query = replace(query, cursor=page.next)
