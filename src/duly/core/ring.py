"""Which shard holds a job: 4,096 fixed slots, and a consistent placement of slots on shards.

    job id ──blake2b & 4095──▶ slot ──Ring.table──▶ shard        SlotMap = Ring + epoch, kept in every shard

A slot ranks the shards by weighted rendezvous hashing and takes the first that is not full; full is 8 % above the
shard's fair share. So the same shards give the same ring on every node, one that joins or leaves moves about its
share of the slots and hardly any others, and no shard holds much more than its weight.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from duly.core.model import JobId

SLOTS: Final = 4_096
NOBODY: Final = "-"  # in a slot map, the owner of a slot on its way from one shard to another: no shard takes its jobs
SLACK: Final = 1.08  # how far above its fair share a shard may be filled: less evens the load, and moves more slots


def slot(job_id: JobId) -> int:
    """The slot of a job, in [0, 4096): it never changes."""
    return int.from_bytes(hashlib.blake2b(job_id.encode(), digest_size=2).digest(), "big") & (SLOTS - 1)


class Ring(msgspec.Struct, frozen=True):
    """Slot → shard. Made by `place`."""

    table: tuple[str, ...]

    def shard_of(self, job_id: JobId) -> str:
        """The shard that holds a job."""
        return self.table[slot(job_id)]

    def slots_of(self, shard: str) -> tuple[int, ...]:
        """The slots that a shard holds, in order."""
        return tuple(i for i, name in enumerate(self.table) if name == shard)


class SlotMap(Ring, frozen=True, kw_only=True):
    """A ring with its version: of two slot maps the one with the higher epoch is in force. Made by `map_slots`.

    The table is what counts; `weights` is what it was made from. Raises ValueError for an epoch below 1 or a table
    that has not one name for each slot.
    """

    epoch: int
    weights: dict[str, float] = {}

    def __post_init__(self) -> None:
        if self.epoch < 1:
            raise ValueError("the epoch of a slot map is at least 1")
        if len(self.table) != SLOTS or not all(self.table):
            raise ValueError(f"a slot map names a shard for each of {SLOTS} slots")


class Move(NamedTuple):
    """A slot that changes shards."""

    slot: int
    source: str
    target: str


def place(weights: Mapping[str, float]) -> Ring:
    """The ring of shards with weights (1.0 each if they are alike). The order of the mapping does not matter.

    Raises ValueError without shards, or for a weight that is not positive.
    """
    if not weights:
        raise ValueError("a ring needs at least one shard")
    if any(not weight > 0 or math.isinf(weight) for weight in weights.values()):
        raise ValueError("the weight of a shard must be positive")
    total = sum(weights[name] for name in sorted(weights))
    room = {name: math.ceil(SLOTS * weight / total * SLACK) for name, weight in weights.items()}
    table = []
    for number in range(SLOTS):
        ranked = sorted(weights, key=lambda name: (-_score(name, weights[name], number), name))
        chosen = next(name for name in ranked if room[name])
        room[chosen] -= 1
        table.append(chosen)
    return Ring(tuple(table))


def map_slots(weights: Mapping[str, float], *, after: SlotMap | None = None) -> SlotMap:
    """The slot map of shards with weights, to follow `after`: its epoch is one higher, 1 for the first one.

    Raises ValueError as `place` does.
    """
    return SlotMap(place(weights).table, epoch=1 if after is None else after.epoch + 1, weights=dict(weights))


def moves(before: Ring, after: Ring) -> tuple[Move, ...]:
    """What changes shards from one ring to the next, by slot."""
    pairs = enumerate(zip(before.table, after.table, strict=True))
    return tuple(Move(number, source, target) for number, (source, target) in pairs if source != target)


def _score(name: str, weight: float, number: int) -> float:
    """Larger is better. -weight / ln(u), u in (0, 1): each shard is first for its weight's share of the slots."""
    digest = hashlib.blake2b(f"{number} {name}".encode(), digest_size=8).digest()
    return -weight / math.log((int.from_bytes(digest, "big") + 1) / (2**64 + 2))
