"""An operator who moves slots from shard to shard, and clients who create jobs in just those slots meanwhile.

    epoch n      the slots are on their shards
    epoch n + 1  nobody's: their shards refuse what servicers with an older map send
    epoch n + 2  on other shards, if no job was found in them; else back

Only slots without jobs move (jobs that move are another story). The map is put to the shards by hand, one after the
other; servicers learn of it when they next look, or when a shard refuses them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from duly.core.job_ids import keyed_job_id
from duly.core.ring import NOBODY, SlotMap, slot
from simulation.clients import Client
from simulation.loop import SECOND, VirtualLoop
from simulation.network import at_once

if TYPE_CHECKING:
    from simulation.world import World

KEYS: Final = 6  # of a move
AROUND: Final = 12 * SECOND  # how long after a move its keys are asked for: longer than servicers trust a map


class Operator:
    """Moves slots, one move at a time."""

    def __init__(self, world: World, loop: VirtualLoop) -> None:
        self._world = world
        self._loop = loop
        self._dice = world.random("operator")
        self._client = Client(world, "of moved slots", SECOND)
        self._moving = False

    def begin(self) -> None:
        """Take some slots from their shards, and have clients create jobs in them from now on."""
        world, dice = self._world, self._dice
        if self._moving or len(world.shards) == 1:
            return
        now = world.slot_map()
        keys = [f"moved-{dice.getrandbits(64):x}" for _ in range(KEYS)]
        slots = {slot(keyed_job_id("default", key)) for key in keys} - self._in_use()
        self._moving = True
        world.faults["moves of slots"] += 1
        self._put(_changed(now, dict.fromkeys(slots, NOBODY)), world.shards)
        self._loop.later(dice.randrange(3 * SECOND), self._finish, now, slots)
        for key in keys * 3:
            self._loop.later(dice.randrange(AROUND), self._ask, key)

    def _ask(self, key: str) -> None:
        self._loop.start(None, self._client.create_keyed(key))

    def _finish(self, before: SlotMap, slots: set[int]) -> None:
        """Give them to other shards, or back. Some shards are told later, by servicers that know."""
        world, dice = self._world, self._dice
        owners = {}
        for number in sorted(slots):
            source = before.table[number]
            others = [shard for shard in world.shards if shard != source]
            owners[number] = source if number in self._in_use() else dice.choice(others)
        told = [shard for shard in world.shards if dice.random() < 0.6] or [world.shards[0]]
        self._put(_changed(world.slot_map(), owners), told)
        self._moving = False

    def _in_use(self) -> set[int]:
        return {slot(job_id) for job_id in self._world.referee.homes}

    def _put(self, slots: SlotMap, shards: tuple[str, ...] | list[str]) -> None:
        for shard in shards:
            at_once(self._world.stores[shard].slots(shard, slots))


def _changed(slots: SlotMap, owners: dict[int, str]) -> SlotMap:
    table = list(slots.table)
    for number, shard in owners.items():
        table[number] = shard
    return replace(slots, table=tuple(table), epoch=slots.epoch + 1)
