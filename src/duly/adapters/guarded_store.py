"""A Store that gives up on its shard in time, so that a dead shard costs the calls for other shards nothing.

    closed ──`failures` calls in a row without an answer──▶ open ──a probe is answered──▶ trial ──an answer──▶ closed
                                                             ▲                              │
                                                             └──────────no answer───────────┘

    time limit    a call that takes longer is given up: Unavailable for a read; OutcomeUnknown for a write
    bulkhead      more than `calls` under way at once are refused: Overloaded
    circuit       while open, calls are refused at once: Unavailable, nothing was sent. One probe (`now`) after another,
                  with growing pauses, finds out when the shard is back, so that no caller has to try it

An answer is anything that the shard itself said, refusals included. One guard for each shard.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar

import msgspec

from duly.core.errors import DulyError, Fenced, OutcomeUnknown, Overloaded, TimedOut, Unavailable, WrongShard
from duly.core.instants import MILLISECOND, SECOND
from duly.core.machine import Transition
from duly.core.model import Job, JobId, Run, RunKey, Term, Worker
from duly.core.ring import SlotMap
from duly.ports import Clock, Collision, JobPage, JobQuery, JobRow, Pruned, RunPage, RunQuery, ShardStats, Store

log = logging.getLogger("duly.shard")

T = TypeVar("T")

ANSWERS: Final = (Fenced, WrongShard)  # kinds of Unavailable that the shard itself gave


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """`point`, `scan`, `upkeep`: µs that a call may take: one of a few rows; a page or a count; retention.

    `calls`: at once. `failures`: in a row, that open the circuit. `pause`: µs before the first probe, doubled up to
    `longest_pause`.
    """

    point: int = 2 * SECOND
    scan: int = 5 * SECOND
    upkeep: int = 30 * SECOND
    calls: int = 512
    failures: int = 3
    pause: int = 100 * MILLISECOND
    longest_pause: int = 2 * SECOND


class GuardedStore:
    """The Store port of one shard, bounded in time and number of calls."""

    def __init__(self, store: Store, *, clock: Clock, limits: Limits | None = None) -> None:
        self.shards: tuple[str, ...] = store.shards
        self.open = False  # the circuit: True while calls are refused
        self._store = store
        self._clock = clock
        self._limits = limits or Limits()
        self._name = ", ".join(self.shards)
        self._calls = 0
        self._failures = 0
        self._probing: asyncio.Task[None] | None = None
        self._closed = False

    def shard_of(self, job_id: JobId) -> str:
        """As the store says."""
        return self._store.shard_of(job_id)

    # -- the guard ------------------------------------------------------------------------------------------

    async def _read(self, call: Coroutine[Any, Any, T], limit: int) -> T:
        try:
            return await self._guarded(call, limit)
        except (TimeoutError, TimedOut):
            raise Unavailable(f"shard {self._name} did not answer in time") from None

    async def _write(self, call: Coroutine[Any, Any, T], limit: int) -> T:
        try:
            return await self._guarded(call, limit)
        except (TimeoutError, TimedOut):
            raise OutcomeUnknown(
                f"shard {self._name} did not answer in time: it may or may not have been written"
            ) from None

    async def _guarded(self, call: Coroutine[Any, Any, T], limit: int) -> T:
        """Carry out the call if it may be; count how it ended."""
        refusal = self._refusal()
        if refusal is not None:
            call.close()
            raise refusal
        self._calls += 1
        try:
            async with asyncio.timeout(limit / SECOND):
                answer = await call
        except ANSWERS:
            self._answered()
            raise
        except (TimeoutError, TimedOut, Unavailable) as problem:
            self._failed(problem)
            raise
        except DulyError:
            self._answered()
            raise
        finally:
            self._calls -= 1
        self._answered()
        return answer

    def _refusal(self) -> DulyError | None:
        if self.open:
            return Unavailable(f"shard {self._name} does not answer")
        if self._calls >= self._limits.calls:
            return Overloaded(f"shard {self._name} has as many calls under way as it is given at once")
        return None

    def _answered(self) -> None:
        if not self.open:  # else this is a late answer: the probe decides
            self._failures = 0

    def _failed(self, problem: BaseException) -> None:
        self._failures += 1
        if self._failures >= self._limits.failures and not self.open and not self._closed:
            why = str(problem) or "too slow"
            log.warning("shard %s does not answer: calls are refused until it does: %s", self._name, why)
            self.open = True
            self._probing = asyncio.get_running_loop().create_task(self._probe(), name=f"probe {self._name}")

    async def _probe(self) -> None:
        """Ask until there is an answer."""
        pause = self._limits.pause
        while True:
            await self._clock.sleep(pause)
            pause = min(2 * pause, self._limits.longest_pause)
            try:
                async with asyncio.timeout(self._limits.point / SECOND):
                    await self._store.now()
                break
            except Exception as problem:  # noqa: BLE001 - whatever it is, the circuit would stay open for ever
                log.debug("shard %s still does not answer: %r", self._name, problem)
        log.info("shard %s answers again", self._name)
        self._failures = self._limits.failures - 1  # on trial: the next failure opens it again
        self.open = False

    # -- jobs and runs --------------------------------------------------------------------------------------

    async def now(self, shard: str | None = None) -> int:
        return await self._read(self._store.now(shard), self._limits.point)

    async def create(self, jobs: Sequence[tuple[Job, Sequence[Run]]]) -> list[Job | None]:
        return await self._write(self._store.create(jobs), self._limits.scan)

    async def get(self, job_ids: Sequence[JobId]) -> list[JobRow | None]:
        return await self._read(self._store.get(job_ids), self._limits.point)

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
        call = self._store.change(
            job,
            was_version,
            opened,
            keep_waiting=keep_waiting,
            begun=begun,
            unbegun=unbegun,
            replaced=replaced,
        )
        return await self._write(call, self._limits.point)

    async def versions(self, job_id: JobId, below: int | None, limit: int) -> list[Job]:
        return await self._read(self._store.versions(job_id, below, limit), self._limits.point)

    async def page_jobs(self, query: JobQuery) -> JobPage:
        return await self._read(self._store.page_jobs(query), self._limits.scan)

    async def due(
        self, shard: str, until: int, after: tuple[int, JobId, int] | None, limit: int
    ) -> list[tuple[Run, Job]]:
        return await self._read(self._store.due(shard, until, after, limit), self._limits.scan)

    async def apply(
        self, transitions: Sequence[Transition], *, shard: str | None = None, fence: int | None = None
    ) -> list[int]:
        return await self._write(self._store.apply(transitions, shard=shard, fence=fence), self._limits.point)

    async def load(self, keys: Sequence[RunKey], *, shard: str | None = None) -> list[tuple[Run, Job] | None]:
        return await self._read(self._store.load(keys, shard=shard), self._limits.point)

    async def page_runs(self, query: RunQuery) -> RunPage:
        return await self._read(self._store.page_runs(query), self._limits.scan)

    # -- the fleet ------------------------------------------------------------------------------------------

    async def beat(self, shard: str, worker: Worker, ttl: int) -> Worker:
        return await self._write(self._store.beat(shard, worker, ttl), self._limits.point)

    async def fleet(self, shard: str) -> list[Worker]:
        return await self._read(self._store.fleet(shard), self._limits.point)

    async def expired(self, shard: str, limit: int) -> list[tuple[Run, Job, Worker | None]]:
        return await self._write(self._store.expired(shard, limit), self._limits.scan)

    async def active(self, shard: str, after: RunKey | None, limit: int) -> list[tuple[Run, Job]]:
        return await self._read(self._store.active(shard, after, limit), self._limits.scan)

    async def hold(self, shard: str, owner: str, ttl: int, *, release: bool = False) -> Term:
        return await self._write(self._store.hold(shard, owner, ttl, release=release), self._limits.point)

    async def slots(self, shard: str, proposed: SlotMap | None = None) -> SlotMap | None:
        return await self._write(self._store.slots(shard, proposed), self._limits.point)

    # -- upkeep ---------------------------------------------------------------------------------------------

    async def stats(self) -> list[ShardStats]:
        return await self._read(self._store.stats(), self._limits.scan)

    async def prune(self, limit: int) -> Pruned:
        return await self._write(self._store.prune(limit), self._limits.upkeep)

    async def referred(self, digests: Sequence[str]) -> set[str]:
        return await self._read(self._store.referred(digests), self._limits.scan)

    async def migrate(self) -> int:
        """As the store does, however long it takes: rewriting a large table must not be given up halfway."""
        return await self._store.migrate()

    async def close(self) -> None:
        self._closed = True
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        try:
            async with asyncio.timeout(self._limits.upkeep / SECOND):
                await self._store.close()
        except TimeoutError:
            log.warning("shard %s did not let go in time", self._name)
