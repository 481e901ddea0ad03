"""One shard in one SQLite file, owned by one process.

    table      what                                          written by
    shard      the name of this shard                        migrate, once
    job        id · searched columns · doc                   create, change, prune
    job_version  (job, number) · doc: replaced definitions   change; change and prune delete
    label      (key, value, job)                             create, change, prune
    run        hot: waiting, dispatched, running             create, change, apply
    history    finished runs; insert-only                    create, change, apply; prune deletes
    worker     id · lease_until · beat_at · state · doc      beat, expired, prune
    term       one row: owner · fence · expires_at           hold
    blob_ref   digest ◀── (job, scheduled), job or version   create, change, apply, prune
    orphan     digests that lost a reference                 change, prune; emptied by the prune after
    slot_map   one row: epoch · doc (the SlotMap)            slots
    tally      counts by name: jobs, and runs by state       every batch that changed one, in its transaction
    migration  number · name · sha256 · applied_at           migrate

    run.due        due_at           instants are µs UTC by this shard's clock, which is the machine's
    run.scheduled  scheduled_at     (job, scheduled) is unique: a run cannot exist twice
    run.dispatched dispatched_at    together with state, attempt, worker and due it overrides the document
    run.version    job_version      compared while the run waits: one that a change has replaced is another run
    run.cancelled  a cancel was noted while an attempt is out: compared, so that no report undoes it
    run.manual     not of the schedule, so that a change leaves it      run.late, history.late  for the filter
    history.started  whether its code ever began: what `last_run` is picked by      history.finished  for pruning
    *.doc          the value as JSON, defaults left out (`cast(doc as text)` shows it)

WAL, synchronous=FULL: what was answered survives a power cut. Other processes are kept out by a lock on
`<path>.lock`. The file must be on a local disk: WAL and locks do not work over a network. Nothing is mapped into
memory (`mmap_size`), where a stray write or a truncated file would take the process down.
`:memory:` is the same store on one connection without threads: every verb is done when it is first awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import msgspec
from msgspec.structs import replace

from duly.adapters import sqlite_apply, sqlite_changes, sqlite_leases, sqlite_pages, sqlite_prune
from duly.adapters.rows import to_due, to_finished_run, to_job, to_run, to_worker, worker_row
from duly.adapters.sql import statements
from duly.adapters.sqlite_cache import Cache
from duly.adapters.sqlite_file import MEMORY, FileLock, migrate, missing_steps, open_reader, open_writer
from duly.adapters.sqlite_slots import Ownership
from duly.adapters.sqlite_writer import Transaction, Writer, translated
from duly.core.errors import NotFound, Unavailable
from duly.core.machine import Transition
from duly.core.model import Job, JobId, Run, RunKey, Term, Worker
from duly.core.ring import SlotMap
from duly.core.versions import KEPT_VERSIONS
from duly.ports import Clock, Collision, JobPage, JobQuery, JobRow, Pruned, RunPage, RunQuery, ShardStats

SQL: Final = statements("sqlite")
READERS: Final = 2  # threads with a connection each
POINT_READS: Final = 32  # up to so many lookups run on the caller's thread, at about 6 µs each

T = TypeVar("T")


class SqliteStore:
    """The Store port over one SQLite file, or over memory. `clock` gives the shard's time.

    Opening raises Conflict (the file is another process's, another shard's, or of a newer schema) or Unavailable.
    A file whose schema is older answers Unavailable until `migrate` was called.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock, shard: str = "s0") -> None:
        self.shards: tuple[str, ...] = (shard,)
        self._shard = shard
        self._clock = clock
        self._path = os.fspath(path)
        self._inline = self._path == MEMORY
        self._offset = clock.wall() - clock.monotonic()  # that the leases in the file go by
        self._moving: asyncio.Task[None] | None = None
        self._cache = Cache()
        self._ownership = Ownership(shard)
        self._handed_orphans: set[str] = set()
        self._prune_position = ""
        self._writer: Writer | None = None
        self._readers: queue.SimpleQueue[apsw.Connection] = queue.SimpleQueue()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        self._lock = None if self._inline else FileLock(self._path)
        try:
            self._db = open_writer(self._path)
            self._point = self._db
            try:
                if not missing_steps(self._db, shard):
                    self._begin()
            except BaseException:
                self._db.close()
                raise
        except BaseException as problem:
            if self._lock is not None:
                self._lock.release()
            if isinstance(problem, apsw.Error):
                raise Unavailable(f"{self._path} cannot be opened: {problem}") from problem
            raise

    def _begin(self) -> None:
        """Open what serves the verbs, once the schema is right."""
        sqlite_leases.bring_back(self._db, self._now())
        self._ownership.read(self._db)
        if not self._inline:
            self._point = open_reader(self._path)
            for _ in range(READERS):
                self._readers.put(open_reader(self._path))
            self._pool = ThreadPoolExecutor(READERS, thread_name_prefix=f"duly-{self._shard}-read")
        self._writer = Writer(self._db, inline=self._inline, name=f"duly-{self._shard}-write")

    def shard_of(self, job_id: JobId) -> str:
        """This one."""
        return self._shard

    def _here(self, shard: str | None) -> None:
        if shard is not None and shard != self._shard:
            raise NotFound(f"there is no shard {shard} here, only {self._shard}")

    def _now(self) -> int:
        """The machine's clock: where that is set, this steps too."""
        return self._clock.wall()

    async def _leased_now(self) -> int:
        """The shard's clock, once every lease in the file goes by it. Leases are judged and written by this only."""
        while True:
            step = self._clock.wall() - self._clock.monotonic() - self._offset
            if abs(step) < sqlite_leases.STEP:
                return self._now()
            if self._moving is None:
                self._moving = asyncio.get_running_loop().create_task(self._move_leases(step))
            await asyncio.shield(self._moving)

    async def _move_leases(self, step: int) -> None:
        try:
            await self._write(lambda tx: sqlite_leases.move(tx.db, step))
            self._offset += step
        finally:
            self._moving = None

    async def _write(
        self, work: Callable[[Transaction], T], *, rows: int = 1, committed: Callable[[T], None] | None = None
    ) -> T:
        return await self._open_writer().submit(work, rows=rows, committed=committed)

    def _open_writer(self) -> Writer:
        if self._closed:
            raise Unavailable("the store is closed")
        if self._writer is None:
            raise Unavailable(f"the schema of shard {self._shard} is not up to date: run `duly migrate`")
        return self._writer

    async def _read(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work` in one snapshot, on a reader's thread."""
        self._open_writer()
        if self._pool is None:
            return _in_snapshot(self._db, work)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._on_reader, work)

    def _on_reader(self, work: Callable[[apsw.Connection], T]) -> T:
        db = self._readers.get()
        try:
            return _in_snapshot(db, work)
        finally:
            self._readers.put(db)

    async def _read_few(self, count: int, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work` right here if it is a few lookups, which takes less time than changing threads."""
        if count > POINT_READS:
            return await self._read(work)
        self._open_writer()
        return _in_snapshot(self._point, work)

    # -- jobs -----------------------------------------------------------------------------------------------

    async def now(self, shard: str | None = None) -> int:
        self._here(shard)
        self._open_writer()
        return self._now()

    async def create(self, jobs: Sequence[tuple[Job, Sequence[Run]]]) -> list[Job | None]:
        if not jobs:
            return []
        self._open_writer()
        rows, create = sqlite_changes.creation(jobs, self._now())
        work = self._ownership.guarding([job.id for job, _ in jobs], create)

        def committed(existing: list[Job | None]) -> None:
            self._cache.created([row for row, job in zip(rows, existing, strict=True) if job is None])

        return await self._write(work, rows=2 * len(jobs), committed=committed)

    async def get(self, job_ids: Sequence[JobId]) -> list[JobRow | None]:
        return await self._read_few(len(job_ids), lambda db: [_job_row(db, job_id) for job_id in job_ids])

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
        work = sqlite_changes.change(
            job,
            was_version,
            opened,
            self._now(),
            keep_waiting=keep_waiting,
            begun=begun,
            unbegun=unbegun,
            replaced=replaced,
        )
        return await self._write(work, rows=1 + len(opened), committed=lambda _: self._cache.changed(job.id))

    async def versions(self, job_id: JobId, below: int | None, limit: int) -> list[Job]:
        row = (job_id, 2**63 - 1 if below is None else below, max(0, min(limit, KEPT_VERSIONS)))
        return await self._read_few(1, lambda db: [to_job(doc) for (doc,) in db.execute(SQL["versions"], row)])

    async def page_jobs(self, query: JobQuery) -> JobPage:
        def work(db: apsw.Connection) -> JobPage:
            ids, position = sqlite_pages.page_jobs(db, query)
            rows = (_job_row(db, JobId(job_id)) for job_id in ids)
            return JobPage(tuple(row for row in rows if row is not None), position)

        return await self._read(work)

    # -- runs -----------------------------------------------------------------------------------------------

    async def due(
        self, shard: str, until: int, after: tuple[int, JobId, int] | None, limit: int
    ) -> list[tuple[Run, Job]]:
        self._here(shard)
        due, job_id, scheduled = after or (-(2**63), "", 0)

        def work(db: apsw.Connection) -> list[tuple[Run, Job]]:
            changes = self._cache.changes
            page: list[Any] = db.execute(SQL["due"], (due, job_id, scheduled, until, limit)).fetchall()
            return [(row.run, self._job(row.run.job_id, row.version, row.job, changes)) for row in to_due(page[0][0])]

        return await self._read(work)

    async def active(self, shard: str, after: RunKey | None, limit: int) -> list[tuple[Run, Job]]:
        self._here(shard)
        job_id, scheduled = after or ("", 0)
        return await self._read(lambda db: self._pairs(db.execute(SQL["active"], (job_id, scheduled, limit))))

    def _pairs(self, rows: Iterable[tuple[Any, ...]]) -> list[tuple[Run, Job]]:
        changes = self._cache.changes
        return [(to_run(*row[:6]), self._job(row[6], row[7], row[8], changes)) for row in rows]

    def _job(self, job_id: JobId, version: int, doc: bytes | msgspec.Raw, changes: int) -> Job:
        """The job of a row: decoding it costs more than all the rest of the row."""
        job = self._cache.job(job_id)
        if job is None or job.version != version:
            job = to_job(doc)
            self._cache.read(job, changes)
        return job

    async def apply(
        self, transitions: Sequence[Transition], *, shard: str | None = None, fence: int | None = None
    ) -> list[int]:
        self._here(shard)
        if not transitions:
            return []
        self._open_writer()
        work = sqlite_apply.application(transitions, self._now(), fence)
        return await self._write(
            work, rows=len(transitions), committed=lambda losers: self._cache.applied(transitions, losers)
        )

    async def load(self, keys: Sequence[RunKey], *, shard: str | None = None) -> list[tuple[Run, Job] | None]:
        self._open_writer()
        cache = self._cache
        found: list[tuple[Run, Job] | None] = []
        missing = []
        for i, key in enumerate(keys):
            run, job = cache.run(key), cache.job(key[0])
            if run is None or job is None:
                missing.append(i)
                found.append(None)
            else:
                found.append((run, job))
        if missing:
            changes = cache.changes
            read = await self._read_few(len(missing), lambda db: [_load(db, keys[i], cache, changes) for i in missing])
            for i, pair in zip(missing, read, strict=True):
                found[i] = pair
        return found

    async def page_runs(self, query: RunQuery) -> RunPage:
        def work(db: apsw.Connection) -> RunPage:
            runs, position = sqlite_pages.page_runs(db, query)
            return RunPage(tuple(runs), position)

        return await self._read(work)

    # -- the fleet ------------------------------------------------------------------------------------------

    async def beat(self, shard: str, worker: Worker, ttl: int) -> Worker:
        self._here(shard)
        now = await self._leased_now()

        def work(tx: Transaction) -> Worker:
            for (doc,) in tx.db.execute(SQL["worker"], (worker.id,)):
                was = to_worker(doc)
                if was.state == "lost":
                    return was
            written = replace(worker, beat_at=now, lease_until=now + ttl)
            tx.db.execute(SQL["put_worker"], worker_row(written))
            return written

        return await self._write(work)

    async def fleet(self, shard: str) -> list[Worker]:
        self._here(shard)
        return await self._read(lambda db: [to_worker(doc) for (doc,) in db.execute(SQL["workers"])])

    async def expired(self, shard: str, limit: int) -> list[tuple[Run, Job, Worker | None]]:
        self._here(shard)
        # Nearly always there is none: that is found out without the writer.
        seen = await self._leased_now()
        if not await self._read(lambda db: any(True for _ in db.execute(SQL["expired"], (seen, 1)))):
            return []
        now = await self._leased_now()

        def work(tx: Transaction) -> list[tuple[Run, Job, Worker | None]]:
            lost: dict[str, Worker] = {}
            found: list[tuple[Run, Job, Worker | None]] = []
            rows: list[Any] = tx.db.execute(SQL["expired"], (now, limit)).fetchall()
            for *columns, _, _, job_doc, worker_doc in rows:
                run = to_run(*columns)
                if worker_doc is not None and run.worker not in lost:
                    lost[run.worker] = replace(to_worker(worker_doc), state="lost")
                    tx.db.execute(SQL["put_worker"], worker_row(lost[run.worker]))
                found.append((run, to_job(job_doc), lost.get(run.worker)))
            return found

        return await self._write(work)

    async def hold(self, shard: str, owner: str, ttl: int, *, release: bool = False) -> Term:
        self._here(shard)
        now = await self._leased_now()

        def work(tx: Transaction) -> Term:
            stored = next(iter(tx.db.execute(SQL["term"])), None)
            was = Term(owner=owner, fence=0, expires_at=now) if stored is None else _term(stored)
            held = was.expires_at > now
            if release:
                if not (held and was.owner == owner):
                    return was
                term = replace(was, expires_at=now)
            elif not held:
                term = Term(owner=owner, fence=was.fence + 1, expires_at=now + ttl)
            elif was.owner == owner:
                term = replace(was, expires_at=now + ttl)
            else:
                return was
            tx.db.execute(SQL["put_term"], (term.owner, term.fence, term.expires_at))
            return term

        return await self._write(work)

    async def slots(self, shard: str, proposed: SlotMap | None = None) -> SlotMap | None:
        self._here(shard)
        self._open_writer()
        if proposed is None or not self._ownership.yields_to(proposed):
            return self._ownership.map
        return await self._write(self._ownership.proposal(proposed), committed=self._ownership.adopt)

    # -- upkeep ---------------------------------------------------------------------------------------------

    async def stats(self) -> list[ShardStats]:
        def work(db: apsw.Connection) -> ShardStats:
            counts: list[Any] = db.execute(SQL["tallies"]).fetchall()
            tally: dict[str, int] = dict(counts)
            term = next(iter(db.execute(SQL["term"])), None)
            return ShardStats(
                shard=self._shard,
                jobs=tally.pop(sqlite_changes.JOBS, 0),
                waiting=tally.pop("waiting", 0),
                dispatched=tally.pop("dispatched", 0),
                running=tally.pop("running", 0),
                ended={word: n for word, n in tally.items() if n},
                term=None if term is None else _term(term),
                workers=tuple(to_worker(doc) for (doc,) in db.execute(SQL["workers"])),
                bytes=self._bytes(db),
            )

        return [await self._read(work)]

    def _bytes(self, db: apsw.Connection) -> int:
        pages: int = db.pragma("page_count") * db.pragma("page_size")
        wal = Path(f"{self._path}-wal")
        return pages + (0 if self._inline or not wal.exists() else wal.stat().st_size)

    async def prune(self, limit: int) -> Pruned:
        now = self._now()
        after = self._prune_position
        victims = await self._read(lambda db: sqlite_prune.find(db, after, now, limit))

        def committed(pruned: Pruned) -> None:
            self._handed_orphans = set(pruned.orphans)
            self._prune_position = victims.position or ""
            for job_id in emptied:
                self._cache.changed(job_id)

        emptied: list[JobId] = []
        work = sqlite_prune.removal(victims, self._handed_orphans, emptied, now, limit)
        return await self._write(work, rows=len(victims.runs) + 1, committed=committed)

    async def referred(self, digests: Sequence[str]) -> set[str]:
        def work(db: apsw.Connection) -> set[str]:
            return {digest for digest in digests if any(True for _ in db.execute(SQL["referred"], (digest,)))}

        return await self._read_few(len(digests), work)

    async def migrate(self) -> int:
        if self._closed:
            raise Unavailable("the store is closed")
        if self._writer is not None:
            return 0
        steps = migrate(self._db, self._shard, self._now())
        self._begin()
        return steps

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._inline:
            self._let_go()
        else:
            await asyncio.get_running_loop().run_in_executor(None, self._let_go)

    def _let_go(self) -> None:
        if self._writer is not None:
            self._writer.refuse(Unavailable("the store is closed"))
            self._writer.drain()
        if self._pool is not None:
            self._pool.shutdown()
            self._point.close()
            for _ in range(READERS):
                self._readers.get().close()
        if not self._inline:
            with contextlib.suppress(apsw.Error):  # the WAL is replayed at the next start instead
                self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._db.close()
        if self._lock is not None:
            self._lock.release()


def _in_snapshot(db: apsw.Connection, work: Callable[[apsw.Connection], T]) -> T:
    try:
        db.execute("begin")
        try:
            return work(db)
        finally:
            db.execute("commit")
    except apsw.Error as problem:
        raise translated(problem, db) from problem


def _job_row(db: apsw.Connection, job_id: JobId) -> JobRow | None:
    for doc, next_run_at, hot, last in db.execute(SQL["job_row"], (job_id,)):
        last_run = None if last is None else to_finished_run(last)
        return JobRow(to_job(doc), next_run_at, last_run, not hot)
    return None


def _load(db: apsw.Connection, key: RunKey, cache: Cache, changes: int) -> tuple[Run, Job] | None:
    """Hot first, then history: runs only ever move that way."""
    run = None
    for columns in db.execute(SQL["load_hot"], key):
        run = to_run(*columns)
    if run is None:
        for (doc,) in db.execute(SQL["load_finished"], (key[1], key[0])):
            run = to_finished_run(doc)
    if run is None:
        return None
    job = cache.job(key[0])
    if job is None:
        job = sqlite_changes.stored_job(db, key[0])
        if job is not None:
            cache.read(job, changes)
    return None if job is None else (run, job)


def _term(row: tuple[str, int, int]) -> Term:
    return Term(owner=row[0], fence=row[1], expires_at=row[2])
