"""One shard in one PostgreSQL database, in its schema `duly`, shared by any number of processes.

    table        what                                          written by
    shard        the name of this shard                        migrate, once
    job          id · searched columns · doc                   create, change, prune
    job_version  (job, number) · doc: replaced definitions     change; change and prune delete
    label        (key, value, job)                             create, change, prune
    run          hot: waiting, dispatched, running             create, change, apply
    held         keys of the runs that are out                 apply: with the run's state, in the same transaction
    history      finished runs, a partition a week             create, change, apply; prune drops and deletes
    history_ref  digest ◀── (job, scheduled), finished         create, change, apply; prune, as history
    blob_ref     digest ◀── (job, scheduled), job or version   create, change, apply, prune
    orphan       digests that lost a reference                 change, prune; emptied by the prune after
    worker       id · lease_until · beat_at · state · doc      beat, expired, prune
    term         one row: owner · fence · expires_at           hold
    lease_clock  one row: generation · shift                   whoever notices a step of the server's clock
    slot_map     one row: epoch · doc                          slots
    tally        counts by kind and stripe                     every transaction that changed one
    migration    number · name · sha256 · applied_at           migrate

    run.due        due_at          instants are µs UTC by this shard's clock, which is the server's (postgres_clock.py);
    run.scheduled  scheduled_at    leases are in lease time. (job, scheduled) is unique: a run cannot exist twice
    run.dispatched dispatched_at   together with state, attempt, worker and due it overrides the document
    run.version    job_version     compared while the run waits: one that a change has replaced is another run
    run.cancelled  a cancel was noted while an attempt is out: compared, so that no report undoes it
    run.manual     not of the schedule, so that a change leaves it      run.late, history.late  for the filter
    history.started  whether its code ever began: what `last_run` is picked by      history.finished  for pruning
    tally.kind     -1 jobs that are not deleted, else a run state
    *.doc          the value as JSON, defaults left out

What is one step is one function of the database (0002_functions.sql and later): one round trip, one transaction, one
commit. `synchronous_commit` is the server's; with `on`, its default, what was answered survives a crash of the server.
Nothing is remembered here that another process could change, but for decoded documents, which are found by their text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import asyncpg
from msgspec.structs import replace

from duly.adapters import postgres_changes, postgres_pages, postgres_schema
from duly.adapters.postgres_batches import Batches
from duly.adapters.postgres_changes import MAX_JOBS, Args, call
from duly.adapters.postgres_clock import ShardClock
from duly.adapters.postgres_pool import BEGIN, Pool, Row
from duly.adapters.postgres_prune import Pruner
from duly.adapters.postgres_slots import Slots
from duly.adapters.recent import Recent
from duly.adapters.rows import encode, to_finished_run, to_job, to_run, to_worker
from duly.adapters.sql import statements
from duly.core.errors import NotFound, Unavailable
from duly.core.machine import Transition
from duly.core.model import Job, JobId, Run, RunKey, RunState, Term, Worker
from duly.core.ring import SlotMap
from duly.core.versions import KEPT_VERSIONS
from duly.ports import Clock, Collision, JobPage, JobQuery, JobRow, Pruned, RunPage, RunQuery, ShardStats

SQL: Final = statements("postgres")
REMEMBERED_JOBS: Final = 8_192  # decoded documents
TOGETHER: Final = 512  # transitions of several calls in one statement: the most per second
JOBS: Final = -1  # the tally of jobs

T = TypeVar("T")


class PostgresStore:
    """The Store port over one PostgreSQL database. `url` is a libpq URL; `clock` is this node's own.

    Two options may follow in the URL: `?connections=8` bounds those of this process, at least 3;
    `&statement_cache_size=0` is for a transaction pooler that does not know prepared statements. Nothing is connected
    before the first call, which raises Unavailable if the schema is missing or older (until someone calls `migrate`)
    and Conflict if it is newer or another shard's.
    """

    def __init__(self, url: str, *, shard: str, clock: Clock) -> None:
        self.shards: tuple[str, ...] = (shard,)
        self._shard = shard
        self._pool = Pool(url)
        self._clock = ShardClock(self._pool, clock)
        self._pruner = Pruner(self._pool)
        self._slots = Slots(shard, self._pool)
        self._jobs: Recent[str, Job] = Recent(REMEMBERED_JOBS)  # by document
        self._creations = Batches(self._create, most=MAX_JOBS)
        self._applications = Batches(self._apply, most=TOGETHER)
        self._checked = False
        self._closed = False

    def shard_of(self, job_id: JobId) -> str:
        """This one."""
        return self._shard

    async def _ready(self, shard: str | None = None) -> Pool:
        if shard is not None and shard != self._shard:
            raise NotFound(f"there is no shard {shard} here, only {self._shard}")
        if self._closed:
            raise Unavailable("the store is closed")
        if not self._checked:
            await postgres_schema.check(self._pool, self._shard)
            self._checked = True
        return self._pool

    # -- jobs -----------------------------------------------------------------------------------------------

    async def now(self, shard: str | None = None) -> int:
        await self._ready(shard)
        return await self._clock.now()

    async def create(self, jobs: Sequence[tuple[Job, Sequence[Run]]]) -> list[Job | None]:
        await self._ready()
        return await self._creations.submit(None, jobs) if jobs else []

    async def _create(self, _: None, jobs: Sequence[tuple[Job, Sequence[Run]]]) -> list[Job | None]:
        pool = self._pool
        now = await self._clock.now()
        first = {job.id: i for i, (job, _) in reversed(list(enumerate(jobs)))}
        items = [jobs[i] for i in sorted(first.values())]
        batches = [postgres_changes.creation(items[at : at + MAX_JOBS], now) for at in range(0, len(items), MAX_JOBS)]

        async def create(epoch: int) -> list[str]:
            return await _carry_out(pool, "create_jobs_1", [[epoch, *batch] for batch in batches])

        fresh = await self._slots.guard([job.id for job, _ in items], create)
        written = set(fresh)
        existing: dict[str, Job] = {}
        if len(written) < len(jobs):
            others = [job_id for job_id in first if job_id not in written] + [
                job.id for i, (job, _) in enumerate(jobs) if first[job.id] != i
            ]
            existing = {row[0]: to_job(row[1]) for row in await pool.read(SQL["jobs"], others)}
        answers: list[Job | None] = []
        for i, (job, runs) in enumerate(jobs):
            if first[job.id] == i and job.id in written:
                answers.append(None)
            elif job.id in existing:
                answers.append(existing[job.id])
            else:  # it was pruned just now
                answers += await self._create(None, [(job, runs)])
        return answers

    async def get(self, job_ids: Sequence[JobId]) -> list[JobRow | None]:
        pool = await self._ready()
        if not job_ids:
            return []
        return _in_order(await pool.read(SQL["job_rows"], job_ids), len(job_ids), self._job_row)

    def _job_row(self, doc: str, next_run_at: int | None, unfinished: bool, last: str | None) -> JobRow:
        last_run = None if last is None else to_finished_run(last)
        return JobRow(self._job(doc), next_run_at, last_run, not unfinished)

    def _job(self, doc: str) -> Job:
        """The job of a document: decoding it costs more than all the rest of its row."""
        job = self._jobs.get(doc)
        if job is None:
            job = to_job(doc)
            self._jobs.put(doc, job)
        return job

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
        pool = await self._ready()
        now = await self._clock.now()
        args = postgres_changes.change(
            job,
            was_version,
            opened,
            now,
            keep_waiting=keep_waiting,
            begun=begun,
            unbegun=unbegun,
            replaced=replaced,
        )
        [(in_the_way,)] = await pool.write(call("change_job_2", args), *args)
        if in_the_way is None:
            return None
        return Collision(in_the_way[0]) if in_the_way else job

    async def versions(self, job_id: JobId, below: int | None, limit: int) -> list[Job]:
        pool = await self._ready()
        bound = 2**63 - 1 if below is None else below
        rows = await pool.read(SQL["versions"], job_id, bound, max(0, min(limit, KEPT_VERSIONS)))
        return [to_job(doc) for (doc,) in rows]

    async def page_jobs(self, query: JobQuery) -> JobPage:
        pool = await self._ready()

        async def work(db: asyncpg.Connection) -> JobPage:
            ids, position = await postgres_pages.page_jobs(db, query)
            rows = _in_order(await db.fetch(SQL["job_rows"], ids), len(ids), self._job_row) if ids else []
            return JobPage(tuple(row for row in rows if row is not None), position)

        return await pool.transact(postgres_pages.BEGIN, work)

    # -- runs -----------------------------------------------------------------------------------------------

    async def due(
        self, shard: str, until: int, after: tuple[int, JobId, int] | None, limit: int
    ) -> list[tuple[Run, Job]]:
        pool = await self._ready(shard)
        due, job_id, scheduled = after or (-(2**63), "", 0)
        return self._pairs(await pool.read(SQL["due"], due, job_id, scheduled, until, limit))

    async def active(self, shard: str, after: RunKey | None, limit: int) -> list[tuple[Run, Job]]:
        pool = await self._ready(shard)
        job_id, scheduled = after or ("", 0)
        return self._pairs(await pool.read(SQL["active"], job_id, scheduled, limit))

    def _pairs(self, rows: Sequence[Row]) -> list[tuple[Run, Job]]:
        return [self._pair(*row) for row in rows]

    def _pair(
        self, due: int, state: int, attempt: int, worker: str, dispatched: int | None, doc: str, job_doc: str
    ) -> tuple[Run, Job]:
        return to_run(due, state, attempt, worker, dispatched, doc), self._job(job_doc)

    async def apply(
        self, transitions: Sequence[Transition], *, shard: str | None = None, fence: int | None = None
    ) -> list[int]:
        await self._ready(shard)
        if not transitions:
            return []
        lost = await self._applications.submit(fence, transitions)
        return [i for i, loser in enumerate(lost) if loser]

    async def _apply(self, fence: int | None, transitions: Sequence[Transition]) -> list[bool]:
        now = await self._clock.now()
        batches = [
            [fence, *postgres_changes.application(transitions, batch, now)]
            for batch in postgres_changes.rounds(transitions)
        ]
        lost = [False] * len(transitions)
        for loser in await _carry_out(self._pool, "apply_runs_1", batches):
            lost[loser] = True
        return lost

    async def load(self, keys: Sequence[RunKey], *, shard: str | None = None) -> list[tuple[Run, Job] | None]:
        pool = await self._ready()
        if not keys:
            return []
        # Hot first, then history: runs only ever move that way.
        found = _in_order(await pool.read(SQL["hot"], *_columns(keys)), len(keys), self._pair)
        missing = [i for i, pair in enumerate(found) if pair is None]
        if missing:
            rows = await pool.read(SQL["finished"], *_columns([keys[i] for i in missing]))
            for at, doc, job_doc in rows:
                found[missing[at - 1]] = (to_finished_run(doc), self._job(job_doc))
        return found

    async def page_runs(self, query: RunQuery) -> RunPage:
        pool = await self._ready()

        async def work(db: asyncpg.Connection) -> RunPage:
            runs, position = await postgres_pages.page_runs(db, query)
            return RunPage(tuple(runs), position)

        return await pool.transact(postgres_pages.BEGIN, work)

    # -- the fleet ------------------------------------------------------------------------------------------

    async def beat(self, shard: str, worker: Worker, ttl: int) -> Worker:
        await self._ready(shard)
        doc = encode(replace(worker, beat_at=0, lease_until=0)).decode()
        [row] = await self._clock.judge(SQL["beat"], worker.id, ttl, worker.state, doc)
        return self._worker(*row)

    def _worker(self, lease_until: int, beat_at: int, state: Any, doc: str) -> Worker:
        shift = self._clock.shift
        return replace(to_worker(doc), lease_until=lease_until + shift, beat_at=beat_at + shift, state=state)

    async def fleet(self, shard: str) -> list[Worker]:
        pool = await self._ready(shard)
        return [_worker(*row) for row in await pool.read(SQL["workers"])]

    async def expired(self, shard: str, limit: int) -> list[tuple[Run, Job, Worker | None]]:
        await self._ready(shard)
        # Nearly always there is none: that is found out without writing.
        [(any_expired,)] = await self._clock.judge(SQL["any_expired"])
        if not any_expired:
            return []
        found: list[tuple[Run, Job, Worker | None]] = []
        for row in await self._clock.judge(SQL["expired"], limit):
            lease_until, beat_at, worker_doc = row[7:]
            lost = None if worker_doc is None else self._worker(lease_until, beat_at, "lost", worker_doc)
            found.append((*self._pair(*row[:7]), lost))
        return found

    async def hold(self, shard: str, owner: str, ttl: int, *, release: bool = False) -> Term:
        await self._ready(shard)
        [(holder, fence, expires_at)] = await self._clock.judge(SQL["hold"], owner, ttl, release)
        return Term(owner=holder, fence=fence, expires_at=expires_at + self._clock.shift)

    async def slots(self, shard: str, proposed: SlotMap | None = None) -> SlotMap | None:
        await self._ready(shard)
        return await self._slots.propose(proposed)

    # -- upkeep ---------------------------------------------------------------------------------------------

    async def stats(self) -> list[ShardStats]:
        pool = await self._ready()

        async def work(db: asyncpg.Connection) -> ShardStats:
            counts: dict[int, int] = {row[0]: row[1] for row in await db.fetch(SQL["tallies"])}
            terms = await db.fetch(SQL["term"])
            workers = [_worker(*row) for row in await db.fetch(SQL["workers"])]
            return ShardStats(
                shard=self._shard,
                jobs=counts.get(JOBS, 0),
                waiting=counts.get(RunState.WAITING, 0),
                dispatched=counts.get(RunState.DISPATCHED, 0),
                running=counts.get(RunState.RUNNING, 0),
                ended={state.word: counts[state] for state in RunState if state.terminal and counts.get(state)},
                term=Term(owner=terms[0][0], fence=terms[0][1], expires_at=terms[0][2]) if terms else None,
                workers=tuple(workers),
                bytes=await db.fetchval(SQL["bytes"]),
            )

        return [await pool.transact(postgres_pages.BEGIN, work)]

    async def prune(self, limit: int) -> Pruned:
        await self._ready()
        return await self._pruner.prune(limit, await self._clock.now())

    async def referred(self, digests: Sequence[str]) -> set[str]:
        pool = await self._ready()
        if not digests:
            return set()
        return {row[0] for row in await pool.read(SQL["referred"], digests)}

    async def migrate(self) -> int:
        if self._closed:
            raise Unavailable("the store is closed")
        steps = await postgres_schema.migrate(self._pool, self._shard)
        self._checked = True
        return steps

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._creations.drain()
        await self._applications.drain()
        await self._clock.close()
        await self._pool.close()


async def _carry_out(pool: Pool, function: str, batches: Sequence[Args]) -> list[Any]:
    """Call a function for each batch, in one commit; returns what the calls returned, together."""
    if len(batches) == 1:
        [(answer,)] = await pool.write(call(function, batches[0]), *batches[0])
        return list(answer)

    async def work(db: asyncpg.Connection) -> list[Any]:
        answers: list[Any] = []
        for batch in batches:
            answers += await db.fetchval(call(function, batch), *batch)
        return answers

    return await pool.transact(BEGIN, work, writes=True)


def _columns(keys: Sequence[RunKey]) -> tuple[list[str], list[int]]:
    return [job_id for job_id, _ in keys], [scheduled_at for _, scheduled_at in keys]


def _in_order(rows: Sequence[Row], count: int, make: Callable[..., T]) -> list[T | None]:
    """What each row makes, in the place that its first column names, from 1."""
    found: list[T | None] = [None] * count
    for at, *columns in rows:
        found[at - 1] = make(*columns)
    return found


def _worker(lease_until: int, beat_at: int, state: Any, doc: str) -> Worker:
    return replace(to_worker(doc), lease_until=lease_until, beat_at=beat_at, state=state)
