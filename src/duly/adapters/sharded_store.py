"""A Store made of Stores: each job's shard by the ring, pages merged from all of them.

    by job id        create  get  change  load  apply (without a fence)      to the shard of each, at the same time
    by shard name    now  due  active  beat  expired  hold  slots  apply (fenced)   to that one
    from all         page_jobs  page_runs  stats                             those that answer
                     prune  referred  migrate  close                         every one

A shard that does not answer is `missing` from a page and `down` in the stats. Writes that go to several shards are
one commit on each: if one of them fails, its error is raised once all have ended, and the others stand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from msgspec.structs import replace

from duly.core.errors import DulyError, NotFound, Unavailable
from duly.core.machine import Transition
from duly.core.model import Job, JobId, Run, RunKey, Term, Worker
from duly.core.paging import (
    JobPosition,
    RunPosition,
    job_cursor,
    job_position,
    merge,
    page_limit,
    run_cursor,
    run_position,
)
from duly.core.ring import Ring, SlotMap
from duly.ports import Collision, JobPage, JobQuery, JobRow, Pruned, RunPage, RunQuery, ShardStats, Store

T = TypeVar("T")
A = TypeVar("A")


class ShardedStore:
    """The Store port over several, by shard name. `ring` says which holds a job."""

    def __init__(self, stores: Mapping[str, Store], ring: Ring) -> None:
        unknown = set(ring.table) - set(stores)
        if unknown:
            raise NotFound(f"the ring names shards that have no store: {', '.join(sorted(unknown))}")
        self.shards: tuple[str, ...] = tuple(stores)
        self._stores = dict(stores)
        self._ring = ring
        self._unsure_orphans: set[str] = set()

    def shard_of(self, job_id: JobId) -> str:
        """The shard of this job's slot."""
        return self._ring.shard_of(job_id)

    def _on(self, shard: str) -> Store:
        store = self._stores.get(shard)
        if store is None:
            raise NotFound(f"there is no shard {shard}, only {', '.join(self.shards)}")
        return store

    # -- by job id ------------------------------------------------------------------------------------------

    async def _spread(
        self, items: Sequence[A], job_id: Callable[[A], JobId], call: Callable[[Store, list[A]], Coroutine[Any, Any, T]]
    ) -> list[tuple[list[int], T]]:
        """Call each shard with its items; returns the indexes of these and the shard's answer."""
        indexes: dict[str, list[int]] = {}
        for i, item in enumerate(items):
            indexes.setdefault(self._ring.shard_of(job_id(item)), []).append(i)
        calls = [call(self._stores[shard], [items[i] for i in mine]) for shard, mine in indexes.items()]
        if len(calls) == 1:
            answers: list[T | BaseException] = [await calls[0]]
        else:
            answers = await asyncio.gather(*calls, return_exceptions=True)
        return list(zip(indexes.values(), _all(answers), strict=True))

    async def _each(
        self,
        items: Sequence[A],
        job_id: Callable[[A], JobId],
        call: Callable[[Store, list[A]], Coroutine[Any, Any, list[T]]],
    ) -> list[T]:
        """As `_spread`, for verbs that answer item by item: the answers in the order of the items."""
        answers: dict[int, T] = {}
        for indexes, answer in await self._spread(items, job_id, call):
            answers.update(zip(indexes, answer, strict=True))
        return [answers[i] for i in range(len(items))]

    async def create(self, jobs: Sequence[tuple[Job, Sequence[Run]]]) -> list[Job | None]:
        return await self._each(jobs, lambda item: item[0].id, lambda store, mine: store.create(mine))

    async def get(self, job_ids: Sequence[JobId]) -> list[JobRow | None]:
        return await self._each(job_ids, lambda job_id: job_id, lambda store, mine: store.get(mine))

    async def change(
        self,
        job: Job,
        was_version: int,
        opened: Sequence[Run],
        *,
        keep_waiting: bool = False,
        begun: frozenset[int] | None = None,
        unbegun: frozenset[int] | None = None,
    ) -> Job | Collision | None:
        store = self._stores[self._ring.shard_of(job.id)]
        return await store.change(job, was_version, opened, keep_waiting=keep_waiting, begun=begun, unbegun=unbegun)

    async def load(self, keys: Sequence[RunKey]) -> list[tuple[Run, Job] | None]:
        return await self._each(keys, lambda key: key[0], lambda store, mine: store.load(mine))

    async def apply(
        self, transitions: Sequence[Transition], *, shard: str | None = None, fence: int | None = None
    ) -> list[int]:
        if shard is not None:
            return await self._on(shard).apply(transitions, shard=shard, fence=fence)
        if fence is not None:
            raise NotFound("a fence needs the name of its shard")
        parts = await self._spread(transitions, lambda t: t.run.job_id, lambda store, mine: store.apply(mine))
        return sorted(indexes[loser] for indexes, losers in parts for loser in losers)

    # -- by shard -------------------------------------------------------------------------------------------

    async def now(self, shard: str | None = None) -> int:
        if shard is not None:
            return await self._on(shard).now(shard)
        for store in self._stores.values():
            try:
                return await store.now()
            except Unavailable:
                continue
        raise Unavailable("no shard answers")

    async def due(
        self, shard: str, until: int, after: tuple[int, JobId, int] | None, limit: int
    ) -> list[tuple[Run, Job]]:
        return await self._on(shard).due(shard, until, after, limit)

    async def active(self, shard: str, after: RunKey | None, limit: int) -> list[tuple[Run, Job]]:
        return await self._on(shard).active(shard, after, limit)

    async def beat(self, shard: str, worker: Worker, ttl: int) -> Worker:
        return await self._on(shard).beat(shard, worker, ttl)

    async def expired(self, shard: str, limit: int) -> list[tuple[Run, Job, Worker | None]]:
        return await self._on(shard).expired(shard, limit)

    async def hold(self, shard: str, owner: str, ttl: int, *, release: bool = False) -> Term:
        return await self._on(shard).hold(shard, owner, ttl, release=release)

    async def slots(self, shard: str, proposed: SlotMap | None = None) -> SlotMap | None:
        return await self._on(shard).slots(shard, proposed)

    # -- from all -------------------------------------------------------------------------------------------

    async def _gather(self, call: Callable[[Store], Coroutine[Any, Any, T]]) -> dict[str, T | BaseException]:
        answers = await asyncio.gather(*map(call, self._stores.values()), return_exceptions=True)
        return dict(zip(self._stores, answers, strict=True))

    async def _pages(self, call: Callable[[Store], Coroutine[Any, Any, T]]) -> tuple[list[T], tuple[str, ...]]:
        """The pages of the shards that answer, and the names of the others."""
        pages: list[T] = []
        missing = []
        for shard, answer in (await self._gather(call)).items():
            if isinstance(answer, Unavailable):
                missing.append(shard)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                pages.append(answer)
        return pages, tuple(missing)

    async def page_jobs(self, query: JobQuery) -> JobPage:
        by_name = query.order in ("name", "-name")
        pages, missing = await self._pages(lambda store: store.page_jobs(query))
        found: list[tuple[JobPosition, JobRow]] = [
            ((row.job.name, row.job.id) if by_name else (row.job.id,), row) for page in pages for row in page.items
        ]
        reaches = [job_position(page.next, by_name=by_name) for page in pages if page.next is not None]
        items, at = merge(found, reaches, page_limit(query.limit), descending=query.order.startswith("-"))
        return JobPage(tuple(items), None if at is None else job_cursor(at), missing)

    async def page_runs(self, query: RunQuery) -> RunPage:
        pages, missing = await self._pages(lambda store: store.page_runs(query))
        found: list[tuple[RunPosition, Run]] = [
            ((run.scheduled_at, run.job_id), run) for page in pages for run in page.items
        ]
        reaches = [run_position(page.next) for page in pages if page.next is not None]
        items, at = merge(found, reaches, page_limit(query.limit), descending=not query.oldest_first)
        return RunPage(tuple(items), None if at is None else run_cursor(at), missing)

    async def stats(self) -> list[ShardStats]:
        found = []
        for shard, answer in (await self._gather(lambda store: store.stats())).items():
            slots = self._ring.table.count(shard)
            if isinstance(answer, Unavailable):
                found.append(ShardStats(shard=shard, state="down", slots=slots))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found += [replace(stats, slots=slots) for stats in answer]
        return found

    async def prune(self, limit: int) -> Pruned:
        pages, missing = await self._pages(lambda store: store.prune(limit))
        if not pages:
            raise Unavailable(f"no shard answers: {', '.join(missing)}")
        orphans = self._unsure_orphans.union(*(pruned.orphans for pruned in pages))
        try:
            sure = orphans - await self.referred(sorted(orphans))
        except Unavailable:
            # A shard that does not answer may refer to them: they are asked about again next time.
            sure = set()
            self._unsure_orphans = orphans
        else:
            self._unsure_orphans = set()
        return Pruned(
            sum(pruned.runs for pruned in pages),
            sum(pruned.jobs for pruned in pages),
            tuple(sorted(sure)),
            any(pruned.more for pruned in pages),
        )

    async def referred(self, digests: Sequence[str]) -> set[str]:
        if not digests:
            return set()
        answers = await self._gather(lambda store: store.referred(digests))
        return set[str]().union(*_all(list(answers.values())))

    async def migrate(self) -> int:
        return sum(_all(list((await self._gather(lambda store: store.migrate())).values())))

    async def close(self) -> None:
        _all(list((await self._gather(lambda store: store.close())).values()))


def _all(answers: Sequence[T | BaseException]) -> list[T]:
    """The answers, if all are; else the first error, one that is not Unavailable before one that is."""
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    if errors:
        raise min(errors, key=lambda error: (isinstance(error, Unavailable), isinstance(error, DulyError)))
    return [answer for answer in answers if not isinstance(answer, BaseException)]
