"""Jobs: created, one by one or in bulk.

    validate ─▶ mint id ─▶ store.create (job + first run, one commit) ─▶ hint the shard's scheduler
                  ▲                 │
                  └── took nothing ─┘      with an idempotency key there is but one id: it is the shard's 503

An id is chance, so a shard that is down, full or overloaded keeps no job from being created while another one takes
it. What may have been written is never written again under another id: OutcomeUnknown is the caller's to resolve.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

import msgspec

from duly.core import contract, policy, views
from duly.core.contract import BatchItem, BatchView, JobSpec, JobView
from duly.core.definition import decode, define_job
from duly.core.errors import (
    CodeMissing,
    DulyError,
    FieldError,
    IdempotencyKeyReused,
    OutcomeUnknown,
    Overloaded,
    StorageFull,
    Unavailable,
)
from duly.core.job_ids import keyed_job_id, mint_job_id
from duly.core.model import Job, JobId, Run
from duly.ports import JobRow
from duly.roles.runs import RunDesk

MINTS: Final = (
    256  # ids tried until one lies on a shard that may take it: one of 16 is missed once in ten million times
)
SLICE: Final = 1_000  # jobs in one commit of a batch


class _Made(NamedTuple):
    """A job of a batch, ready to be committed, and its place in the batch."""

    place: int
    job: Job
    opened: Sequence[Run]


class CreationDesk(RunDesk):
    """The use-cases of creating jobs."""

    async def create_job(
        self, spec: JobSpec, *, namespace: str = "default", key: str | None = None, body_digest: str = "", by: str = ""
    ) -> tuple[JobView, bool]:
        """Create a job; with a key, the same key and body find the first one. True if it was made now.

        `by` is the key id of the token that asks for it.

        Raises InvalidInput, CodeMissing, IdempotencyKeyReused, OutcomeUnknown, Unavailable (no live shard, or the
        key's own).
        """
        await self._require_blobs(spec)
        refused: set[str] = set()
        while True:
            job_id = keyed_job_id(namespace, key) if key else self._mint(self._clock.wall(), refused)
            shard = self._store.shard_of(job_id)
            try:
                now = await self._store.now(shard)
                job = define_job(
                    spec, job_id=job_id, now=now, namespace=namespace, body_digest=body_digest if key else "", by=by
                )
                opened = first_runs(job, now)
                existing = (await self._store.create([(job, opened)]))[0]
            except DulyError as error:
                refused.add(shard)
                if key or not _took_nothing(error) or refused.issuperset(self._store.shards):
                    raise
                continue
            if existing is None:
                await self._tell_created([(job, opened)], now)
                next_run_at = opened[0].due_at if opened else None
                row = JobRow(job, next_run_at, None, finished=not opened)
                return job_view(row), True
            if existing.body_digest != body_digest:
                raise IdempotencyKeyReused
            return job_view(await self._row(job_id, namespace)), False

    async def create_jobs(
        self, bodies: Sequence[msgspec.Raw], *, namespace: str = "default", by: str = ""
    ) -> BatchView:
        """Create many jobs from JSON; one result each, in order. One bad job does not spoil the others."""
        specs: list[JobSpec | DulyError] = []
        for index, body in enumerate(bodies):
            try:
                specs.append(decode(body, JobSpec, prefix=f"/jobs/{index}"))
            except DulyError as error:
                specs.append(error)
        return await self.create_specs(specs, namespace=namespace, by=by)

    async def create_specs(
        self, specs: Sequence[JobSpec | DulyError], *, namespace: str = "default", by: str = ""
    ) -> BatchView:
        """Create many jobs; an error among the specs is passed on as that item's result.

        They are committed a thousand at a time, while the next thousand is being made ready; what no shard takes is
        the result of those items alone.
        """
        results: list[BatchItem] = []
        commits: list[asyncio.Task[None]] = []
        known: set[str] = set()
        for start in range(0, len(specs), SLICE):
            chunk = range(start, min(start + SLICE, len(specs)))
            results += [BatchItem(status=201)] * len(chunk)
            try:
                now = await self._store.now()
            except DulyError as error:
                _all_failed(chunk, error, results)
                continue
            made = await self._define(specs, chunk, now, namespace, by, known, results)
            if made:
                commit = asyncio.get_running_loop().create_task(self._commit(made, specs, now, namespace, by, results))
                commits.append(commit)
                await self._clock.sleep(0)  # no wait: the commit's turn to begin
        for commit in commits:
            await commit
        created = sum(item.error is None for item in results)
        return BatchView(results=results, created=created, failed=len(results) - created)

    async def _define(
        self,
        specs: Sequence[JobSpec | DulyError],
        which: Sequence[int],
        now: int,
        namespace: str,
        by: str,
        known: set[str],
        results: list[BatchItem],
    ) -> list[_Made]:
        """What to commit for some items, with their results as they will be if it is; the errors of the others."""
        entropy = self._entropy(10 * len(which))
        made: list[_Made] = []
        for position, index in enumerate(which):
            spec = specs[index]
            try:
                if isinstance(spec, DulyError):
                    raise spec
                if isinstance(spec.task, contract.CommandSpec):
                    await self._require_blobs(spec, known)
                job_id = mint_job_id(now, entropy[10 * position : 10 * position + 10])
                job = define_job(spec, job_id=job_id, now=now, namespace=namespace, by=by)
                made.append(_Made(index, job, first_runs(job, now)))
                results[index] = BatchItem(status=201, id=job.id)
            except DulyError as error:
                results[index] = _failed(error, index)
        return made

    async def _commit(
        self,
        made: list[_Made],
        specs: Sequence[JobSpec | DulyError],
        now: int,
        namespace: str,
        by: str,
        results: list[BatchItem],
    ) -> None:
        """Write the jobs, those of each shard in one commit; what a shard did not take goes to the others."""
        refused: set[str] = set()
        while made:
            parts = self._by_shard(made)
            writes = [self._write(part, now) for part in parts.values()]
            outcomes = await asyncio.gather(*writes) if len(writes) > 1 else [await writes[0]]
            again: list[tuple[_Made, DulyError]] = []
            for (shard, part), error in zip(parts.items(), outcomes, strict=True):
                if error is None:
                    continue
                if _took_nothing(error):
                    refused.add(shard)
                    again += [(each, error) for each in part]
                else:
                    _all_failed([each.place for each in part], error, results)
            made = []
            for (place, _, _), error in again:
                spec = specs[place]
                try:
                    job_id = self._mint(now, refused)
                except Unavailable:
                    results[place] = _failed(error, place)
                    continue
                assert not isinstance(spec, DulyError)
                job = define_job(spec, job_id=job_id, now=now, namespace=namespace, by=by)
                made.append(_Made(place, job, first_runs(job, now)))
                results[place] = BatchItem(status=201, id=job.id)

    def _by_shard(self, made: list[_Made]) -> dict[str, list[_Made]]:
        if len(self._store.shards) == 1:
            return {self._store.shards[0]: made}
        parts: dict[str, list[_Made]] = {}
        for each in made:
            parts.setdefault(self._store.shard_of(each.job.id), []).append(each)
        return parts

    async def _write(self, part: list[_Made], now: int) -> DulyError | None:
        """Commit jobs of one shard with freshly minted ids; returns why that failed."""
        pairs = [(job, opened) for _, job, opened in part]
        try:
            await self._store.create(pairs)
        except DulyError as error:
            return error
        await self._tell_created(pairs, now)
        return None

    async def _tell_created(self, pairs: Sequence[tuple[Job, Sequence[Run]]], now: int) -> None:
        await self._hint([(run, job) for job, opened in pairs for run in opened], now)
        self.telemetry.jobs_created(len(pairs))
        self.event_log.jobs("job.created", [job for job, _ in pairs], now)

    def _mint(self, now: int, refused: Collection[str] = ()) -> JobId:
        """A new id, on none of these shards. Raises Unavailable if there is hardly another one."""
        for _ in range(MINTS):
            job_id = mint_job_id(now, self._entropy(10))
            if not refused or self._store.shard_of(job_id) not in refused:
                return job_id
        raise Unavailable("no shard takes new jobs at the moment")

    async def _require_blobs(self, spec: JobSpec, known: set[str] | None = None) -> None:
        task = spec.task
        if not isinstance(task, contract.CommandSpec) or not (task.code or task.inputs):
            return
        named = {f"/task/inputs/{path}": digest for path, digest in task.inputs.items()}
        if task.code is not None:
            named["/task/code"] = task.code
        known = set() if known is None else known
        wrong = []
        for pointer, digest in named.items():
            if digest in known:
                continue
            if await self._blobs.size(digest) is None:
                wrong.append(FieldError(pointer, f"there is no blob {digest}; upload it first"))
            known.add(digest)
        if wrong:
            raise CodeMissing(errors=tuple(wrong))


def first_runs(job: Job, now: int) -> Sequence[Run]:
    """The runs that a new job starts with: none while it is paused."""
    return (policy.opening_run(job, now),) if job.state == "active" else ()


def job_view(row: JobRow) -> JobView:
    """The job as clients read it."""
    return views.job_view(row.job, next_run_at=row.next_run_at, last_run=row.last_run, finished=row.finished)


def _took_nothing(error: DulyError) -> bool:
    """True if the shard certainly wrote nothing, and another one may."""
    return isinstance(error, Unavailable | Overloaded | StorageFull) and not isinstance(error, OutcomeUnknown)


def _failed(error: DulyError, index: int) -> BatchItem:
    return BatchItem(status=error.status, error=views.problem(error, prefix=f"/jobs/{index}"))


def _all_failed(indexes: Sequence[int], error: DulyError, results: list[BatchItem]) -> None:
    for index in indexes:
        results[index] = _failed(error, index)
