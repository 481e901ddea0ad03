"""Which slots the shard of a PostgreSQL database owns, and the check of those who create jobs.

Every process remembers the map that it read last and judges by it; the creation's transaction compares the epoch and
keeps the map from being replaced until its commit. If another is in force, nothing is written, the map is read and the
creation judged anew. Who proposes a map waits for the creations that were judged by the one before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import msgspec

from duly.adapters.postgres_pool import Pool, StaleMap
from duly.adapters.sql import statements
from duly.core.errors import Unavailable, WrongShard
from duly.core.model import JobId
from duly.core.ring import SlotMap, slot

SQL: Final = statements("postgres")
TRIES: Final = 5  # of a creation while slot maps come one upon the other

T = TypeVar("T")

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(SlotMap).decode


class Slots:
    """What one process knows of the slot map in force."""

    def __init__(self, shard: str, pool: Pool) -> None:
        self._shard = shard
        self._pool = pool
        self._map: SlotMap | None = None

    async def propose(self, proposed: SlotMap | None) -> SlotMap | None:
        """Write a map if it is newer than the one in force; returns the one that is in force then."""
        if proposed is not None:
            await self._pool.write(SQL["put_slot_map"], proposed.epoch, _encode(proposed).decode())
        return await self._read()

    async def _read(self) -> SlotMap | None:
        [(doc,)] = await self._pool.read(SQL["slot_map"])
        self._map = None if doc is None else _decode(doc)
        return self._map

    async def guard(self, job_ids: Sequence[JobId], create: Callable[[int], Awaitable[T]]) -> T:
        """What `create` answers for the epoch of a map by which the jobs are this shard's. Raises WrongShard.

        `create` raises StaleMap if another map is in force.
        """
        for _ in range(TRIES):
            # By the map that is remembered nobody is refused: a newer one may have given the slot back.
            slots = self._map
            if not self._owned(slots, job_ids):
                slots = await self._read()
                self._refuse(slots, job_ids)
            try:
                return await create(0 if slots is None else slots.epoch)
            except StaleMap:
                await self._read()
        raise Unavailable("the slot map is replaced again and again")

    def _owned(self, slots: SlotMap | None, job_ids: Sequence[JobId]) -> bool:
        return slots is None or all(slots.shard_of(job_id) == self._shard for job_id in job_ids)

    def _refuse(self, slots: SlotMap | None, job_ids: Sequence[JobId]) -> None:
        if slots is None or self._owned(slots, job_ids):
            return
        number = next(slot(job_id) for job_id in job_ids if slots.shard_of(job_id) != self._shard)
        raise WrongShard(
            f"slot {number} is on shard {slots.table[number]}, not {self._shard}, since epoch {slots.epoch}",
            epoch=slots.epoch,
        )
