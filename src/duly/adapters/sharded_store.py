"""A Store made of Stores: each job's shard by the ring, pages merged from all of them.

    by job id        create  get  change  versions  load  apply (unfenced)      to the shard of each, at the same time
    by shard name    now  due  active  beat  fleet  expired  hold  slots  apply (fenced)   to that one
    from all         page_jobs  page_runs  stats                             those that answer
                     prune  referred  migrate  close                         every one

A shard that does not answer is `missing` from a page and `down` in the stats. Writes that go to several shards are
one commit on each: if one of them fails, its error is raised once all have ended, and the others stand.

Which shard holds a job says the slot map that the shards themselves keep (decision 0015). The highest epoch is in
force; whoever sees a shard behind it brings that shard up to it. This store may be behind as well: it looks before its
first use, every `REFRESH` while it is used, at once when a shard refuses a creation, which is then tried again by the
newer map, and when a shard knows nothing of what it is asked for, before that is taken for an answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from duly.adapters.slot_agreement import SILENT, SlotAgreement
from duly.core.errors import DulyError, NotFound, Unavailable, WrongShard
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
from duly.core.ring import NOBODY, SlotMap, slot
from duly.ports import Clock, Collision, JobPage, JobQuery, JobRow, Pruned, RunPage, RunQuery, ShardStats, Store

log = logging.getLogger("duly.shard")

T = TypeVar("T")
A = TypeVar("A")

TRIES: Final = 4  # of a creation that is refused by one map after another
HELD_BACK: Final = 100_000  # digests kept while a shard may refer to them; the sweep of all blobs finds what is beyond


class ShardedStore:
    """The Store port over several, by shard name.

    `slots` is where to begin: the first map of shards that have none yet, forgotten if they have. Without a `clock`
    nobody else changes the maps, so they are read once, by `migrate`.
    """

    def __init__(self, stores: Mapping[str, Store], slots: SlotMap, *, clock: Clock | None = None) -> None:
        unknown = set(slots.table) - set(stores)
        if unknown:
            raise NotFound(f"the slot map names shards that have no store: {', '.join(sorted(unknown))}")
        self.shards: tuple[str, ...] = tuple(stores)
        self._stores = dict(stores)
        self._agreement = SlotAgreement(stores, slots, clock)
        self._refreshing: asyncio.Task[None] | None = None
        self._to_migrate = set(stores)
        self._answering = self.shards[0] if self.shards else ""
        self._unsure_orphans: set[str] = set()

    @property
    def slot_map(self) -> SlotMap:
        """The newest one that was seen."""
        return self._agreement.map

    def shard_of(self, job_id: JobId) -> str:
        """The shard of this job's slot, as far as this store knows."""
        return self.slot_map.shard_of(job_id)

    def _on(self, shard: str) -> Store:
        if shard not in self._stores and shard not in self.slot_map.table:
            raise NotFound(f"there is no shard {shard}, only {', '.join(self.shards)}")
        return self._reached(shard)

    def _holding(self, job_id: JobId) -> Store:
        return self._reached(self.slot_map.shard_of(job_id))

    def _reached(self, shard: str) -> Store:
        store = self._stores.get(shard)
        if store is None:
            epoch = self.slot_map.epoch
            where = "between two shards" if shard == NOBODY else f"on shard {shard}, which is not set up here"
            raise WrongShard(f"the job is {where}, by the slot map of epoch {epoch}", epoch=epoch)
        return store

    def _look_now_and_then(self) -> None:
        """Refresh the slot map in the background when it is time."""
        if self._agreement.is_due() and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh(), name="slot map")

    async def _ready(self) -> None:
        """Once a slot map that a shard keeps is known: by any other a job may seem not to be there."""
        if self._agreement.reached:
            self._look_now_and_then()
        else:
            await self._agreement.refresh()

    async def _refresh(self) -> None:
        try:
            if self._to_migrate:
                await self._migrate_those_left()
            await self._agreement.refresh()
        except DulyError as problem:
            log.warning("the slot map was not refreshed: %s", problem)

    # -- by job id ------------------------------------------------------------------------------------------

    async def _spread(
        self, items: Sequence[A], job_id: Callable[[A], JobId], call: Callable[[Store, list[A]], Coroutine[Any, Any, T]]
    ) -> list[tuple[list[int], T]]:
        """Call each shard with its items; returns the indexes of these and the shard's answer."""
        await self._ready()
        indexes = self._by_shard(items, range(len(items)), job_id)
        stores = [self._reached(shard) for shard in indexes]
        calls = [call(store, [items[i] for i in mine]) for store, mine in zip(stores, indexes.values(), strict=True)]
        return list(zip(indexes.values(), _all(await _together(calls)), strict=True))

    def _by_shard(self, items: Sequence[A], which: Iterable[int], job_id: Callable[[A], JobId]) -> dict[str, list[int]]:
        """The indexes of items by the shard that holds them."""
        table = self.slot_map.table
        indexes: dict[str, list[int]] = {}
        for i in which:
            indexes.setdefault(table[slot(job_id(items[i]))], []).append(i)
        return indexes

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

    async def _look_up(
        self,
        items: Sequence[A],
        job_id: Callable[[A], JobId],
        call: Callable[[Store, list[A]], Coroutine[Any, Any, list[T | None]]],
    ) -> list[T | None]:
        """As `_each`. What was not found is looked for again where the shard that was asked says that it is by now."""
        answers = await self._each(items, job_id, call)
        for _ in range(TRIES):
            was = self.slot_map
            parts = self._by_shard(items, [i for i, answer in enumerate(answers) if answer is None], job_id)
            for shard in parts:
                await self._agreement.with_shard(shard)
            missing = [(i, job_id(items[i])) for mine in parts.values() for i in mine]
            again = [i for i, missed in missing if self.shard_of(missed) != was.shard_of(missed)]
            if not again:
                break
            for i, answer in zip(again, await self._each([items[i] for i in again], job_id, call), strict=True):
                answers[i] = answer
        return answers

    async def create(self, jobs: Sequence[tuple[Job, Sequence[Run]]]) -> list[Job | None]:
        await self._ready()
        answers: list[Job | None] = [None] * len(jobs)
        left: Iterable[int] = range(len(jobs))
        for tried in range(1, TRIES + 1):
            parts = self._by_shard(jobs, left, lambda item: item[0].id)
            stores = [self._reached(shard) for shard in parts]
            calls = [store.create([jobs[i] for i in mine]) for store, mine in zip(stores, parts.values(), strict=True)]
            outcomes = dict(zip(parts, await _together(calls), strict=True))
            refused = {shard for shard, outcome in outcomes.items() if isinstance(outcome, WrongShard)}
            last = tried == TRIES
            _all([outcome for shard, outcome in outcomes.items() if last or shard not in refused])
            for shard, outcome in outcomes.items():
                if not isinstance(outcome, BaseException):
                    for i, existing in zip(parts[shard], outcome, strict=True):
                        answers[i] = existing
            if not refused:
                break
            for shard in refused:
                await self._agreement.with_shard(shard)
            left = sorted(i for shard in refused for i in parts[shard])
        return answers

    async def get(self, job_ids: Sequence[JobId]) -> list[JobRow | None]:
        return await self._look_up(job_ids, lambda job_id: job_id, lambda store, mine: store.get(mine))

    async def change(
        self,
        job: Job,
        was_version: int,
        opened: Sequence[Run],
        *,
        keep_waiting: bool = False,
        begun: frozenset[int] | None = None,
        unbegun: frozenset[int] | None = None,
        replaced: Job | None = None,
    ) -> Job | Collision | None:
        await self._ready()
        store = self._holding(job.id)
        return await store.change(
            job,
            was_version,
            opened,
            keep_waiting=keep_waiting,
            begun=begun,
            unbegun=unbegun,
            replaced=replaced,
        )

    async def versions(self, job_id: JobId, below: int | None, limit: int) -> list[Job]:
        await self._ready()
        return await self._holding(job_id).versions(job_id, below, limit)

    async def load(self, keys: Sequence[RunKey], *, shard: str | None = None) -> list[tuple[Run, Job] | None]:
        if shard is not None:
            return await self._on(shard).load(keys, shard=shard)
        return await self._look_up(keys, lambda key: key[0], lambda store, mine: store.load(mine))

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
        for name in sorted(self._stores, key=lambda name: name != self._answering):  # what answered before comes first
            try:
                now = await self._stores[name].now()
            except SILENT:
                continue
            self._answering = name
            return now
        raise Unavailable("no shard answers")

    async def due(
        self, shard: str, until: int, after: tuple[int, JobId, int] | None, limit: int
    ) -> list[tuple[Run, Job]]:
        return await self._on(shard).due(shard, until, after, limit)

    async def active(self, shard: str, after: RunKey | None, limit: int) -> list[tuple[Run, Job]]:
        return await self._on(shard).active(shard, after, limit)

    async def beat(self, shard: str, worker: Worker, ttl: int) -> Worker:
        return await self._on(shard).beat(shard, worker, ttl)

    async def fleet(self, shard: str) -> list[Worker]:
        return await self._on(shard).fleet(shard)

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
        """The pages of the shards that answer, and the names of the others. Raises Unavailable if none does."""
        self._look_now_and_then()
        pages: list[T] = []
        missing = list(self._out_of_reach())
        for shard, answer in (await self._gather(call)).items():
            if isinstance(answer, SILENT):
                missing.append(shard)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                pages.append(answer)
        if not pages:
            raise Unavailable(f"no shard answers: {', '.join(missing)}")
        return pages, tuple(missing)

    def _out_of_reach(self) -> list[str]:
        """Shards that hold slots and are not set up here."""
        return sorted(set(self.slot_map.table) - set(self._stores) - {NOBODY})

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
        if query.job_id is not None:
            await self._ready()
            return await self._holding(query.job_id).page_runs(query)
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
            slots = self.slot_map.table.count(shard)
            if isinstance(answer, SILENT):
                found.append(ShardStats(shard=shard, state="down", slots=slots))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found += [replace(stats, slots=slots) for stats in answer]
        found += [
            ShardStats(shard=shard, state="down", slots=self.slot_map.table.count(shard))
            for shard in self._out_of_reach()
        ]
        return found

    async def prune(self, limit: int) -> Pruned:
        pages, _ = await self._pages(lambda store: store.prune(limit))
        orphans = self._unsure_orphans.union(*(pruned.orphans for pruned in pages))
        try:
            sure = orphans - await self.referred(sorted(orphans))
        except SILENT:
            # A shard that does not answer may refer to them: they are asked about again next time.
            sure = set()
            self._unsure_orphans = set(sorted(orphans)[:HELD_BACK])
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
        """Every shard that answers; those that do not follow once they do. Raises Unavailable if none answers."""
        self._to_migrate = set(self._stores)
        steps = await self._migrate_those_left()
        if self._to_migrate == set(self._stores):
            raise Unavailable(f"no shard answers: {', '.join(self.shards)}")
        await self._refresh()
        return steps

    async def _migrate_those_left(self) -> int:
        names = sorted(self._to_migrate)
        answers = await asyncio.gather(*(self._stores[name].migrate() for name in names), return_exceptions=True)
        steps = 0
        for shard, answer in zip(names, answers, strict=True):
            if isinstance(answer, SILENT):
                log.warning("shard %s does not answer: %s", shard, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                self._to_migrate.discard(shard)
                steps += answer
        return steps

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        _all(list((await self._gather(lambda store: store.close())).values()))


async def _together(calls: Sequence[Coroutine[Any, Any, T]]) -> Sequence[T | BaseException]:
    """What each call answers or raises."""
    if len(calls) == 1:
        try:
            return [await calls[0]]
        except DulyError as error:
            return [error]
    answers: list[T | BaseException] = await asyncio.gather(*calls, return_exceptions=True)
    return answers


def _all(answers: Sequence[T | BaseException]) -> list[T]:
    """The answers, if all are; else the first error, one that is not Unavailable before one that is."""
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    if errors:
        raise min(errors, key=lambda error: (isinstance(error, Unavailable), isinstance(error, DulyError)))
    return [answer for answer in answers if not isinstance(answer, BaseException)]
