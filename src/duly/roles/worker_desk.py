"""Workers that no broker reaches: they beat and report over HTTP to any servicer, and are told what is out at them.

A beat writes the worker's lease where a scheduler would, in the shard's store. Its answer lists what an Assign or a
Cancel would have said, as the store has it: attempts that are out at this worker and that it does not hold. What is out
on a shard is read at most once in `FRESH` for all workers together; what is handed out is read again first, so that
no attempt is offered whose end is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from duly.core.errors import NotFound
from duly.core.instants import MILLISECOND
from duly.core.messages import MAX_ASSIGN, Assignment, Beat, BeatAnswer, Report, ReportAnswer
from duly.core.model import Run, RunKey, WorkerId
from duly.core.worker_wire import ShardNames, check_beat, check_report
from duly.ports import Clock, Store
from duly.roles.reports import ReportDesk

FRESH: Final = 200 * MILLISECOND
PAGE: Final = 4_096
MOST: Final = 200_000  # attempts out on one shard that are looked at
LOADED: Final = 1_000  # runs read at once


class _Out(msgspec.Struct):
    """What is out on one shard, by worker: run → (attempt, why its end was asked for)."""

    lock: asyncio.Lock
    read_at: int | None = None
    by_worker: dict[WorkerId, dict[RunKey, tuple[int, str | None]]] = {}


class WorkerDesk:
    """What a servicer does for workers. `lease` in µs."""

    def __init__(self, *, store: Store, clock: Clock, reports: ReportDesk, lease: int) -> None:
        self._store = store
        self._clock = clock
        self._reports = reports
        self._lease = lease
        self._out: dict[str, _Out] = {}

    async def beat(self, worker: WorkerId, shard: str, beat: Beat) -> BeatAnswer:
        """Write the worker's lease, and answer with what it should hold. Raises InvalidInput, NotFound for a shard."""
        check_beat(worker, beat)
        self._check_shard(shard)
        row = msgspec.structs.replace(beat.worker, capacity=beat.capacity, unheard=True)
        written = await self._store.beat(shard, row, self._lease)
        now = await self._store.now(shard)
        if written.state == "lost":
            return BeatAnswer(shard=shard, now=now, lease_until=min(written.lease_until, now), stale=beat.held)
        out = await self._out_at(shard, worker)
        held = set(beat.held)
        unknown = [pair for pair in beat.held if out.get(pair[0], (None, None))[0] != pair[1]]
        missing = [key for key, (attempt, _) in out.items() if (key, attempt) not in held][:MAX_ASSIGN]
        return BeatAnswer(
            shard=shard,
            now=now,
            lease_until=now + written.lease_until - written.beat_at,
            stale=await self._stale(shard, worker, unknown),
            out=await self._assignments(shard, worker, missing, held),
            cancelled=tuple((key, attempt, why) for key, (attempt, why) in out.items() if why is not None),
        )

    async def report(self, worker: WorkerId, report: Report) -> ReportAnswer:
        """Take a report. Raises InvalidInput, NotFound for a shard, and what the store raises."""
        check_report(worker, report)
        self._check_shard(report.shard)
        return await self._reports.take(report)

    def shards(self) -> ShardNames:
        """The shards that a worker beats to."""
        return ShardNames(shards=self._store.shards)

    def _check_shard(self, shard: str) -> None:
        if shard not in self._store.shards:
            raise NotFound(f"there is no shard {shard[:80]!r}")

    async def _out_at(self, shard: str, worker: WorkerId) -> dict[RunKey, tuple[int, str | None]]:
        known = self._out.setdefault(shard, _Out(asyncio.Lock()))
        async with known.lock:
            now = self._clock.monotonic()
            if known.read_at is None or now - known.read_at >= FRESH:
                known.by_worker = await self._read(shard)
                known.read_at = now
            return known.by_worker.get(worker, {})

    async def _read(self, shard: str) -> dict[WorkerId, dict[RunKey, tuple[int, str | None]]]:
        found: dict[WorkerId, dict[RunKey, tuple[int, str | None]]] = {}
        after: RunKey | None = None
        for _ in range(MOST // PAGE):
            page = await self._store.active(shard, after, PAGE)
            for run, _job in page:
                found.setdefault(run.worker, {})[run.key] = (run.attempt, run.cancel)
            if len(page) < PAGE:
                break
            after = page[-1][0].key
        return found

    async def _stale(
        self, shard: str, worker: WorkerId, pairs: Sequence[tuple[RunKey, int]]
    ) -> tuple[tuple[RunKey, int], ...]:
        """Of the attempts that the worker holds, those that the store has ended or given to another."""
        stale: list[tuple[RunKey, int]] = []
        for start in range(0, len(pairs), LOADED):
            part = pairs[start : start + LOADED]
            found = await self._store.load([key for key, _ in part], shard=shard)
            for (key, attempt), pair in zip(part, found, strict=True):
                if pair is None or not (_is_out_at(pair[0], worker) and pair[0].attempt == attempt):
                    stale.append((key, attempt))
        return tuple(stale)

    async def _assignments(
        self, shard: str, worker: WorkerId, keys: Sequence[RunKey], held: set[tuple[RunKey, int]]
    ) -> tuple[Assignment, ...]:
        if not keys:
            return ()
        found = await self._store.load(keys, shard=shard)
        return tuple(
            Assignment(*pair)
            for pair in found
            if pair is not None and _is_out_at(pair[0], worker) and (pair[0].key, pair[0].attempt) not in held
        )


def _is_out_at(run: Run, worker: WorkerId) -> bool:
    return run.state.active and run.worker == worker
