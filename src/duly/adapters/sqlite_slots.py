"""Which slots the shard of a SQLite file owns: the slot map in the file, and the check of those who create jobs.

The file belongs to one process, so the map in memory is the map in the file: it is read when the file is opened and
replaced, on the writer's thread, after the commit of a newer one. A creation in the same commit as a newer map, behind
it, is still judged by the older: it is as if it had come before, since nobody has been told of the newer one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import apsw
import msgspec

from duly.adapters.sql import statements
from duly.adapters.sqlite_writer import Transaction
from duly.core.errors import WrongShard
from duly.core.model import JobId
from duly.core.ring import SlotMap, slot

SQL: Final = statements("sqlite")

T = TypeVar("T")

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(SlotMap).decode


class Ownership:
    """The slot map in force in one file, and what follows from it for this shard."""

    def __init__(self, shard: str) -> None:
        self.map: SlotMap | None = None
        self._shard = shard
        self._owned: tuple[bool, ...] | None = None  # by slot; None without a map

    def read(self, db: apsw.Connection) -> None:
        """Take over what the file holds."""
        self.adopt(_stored(db))

    def adopt(self, slots: SlotMap | None) -> None:
        """From now on this map is in force."""
        if slots is not None and self.yields_to(slots):
            self._owned = tuple(name == self._shard for name in slots.table)
            self.map = slots

    def yields_to(self, proposed: SlotMap) -> bool:
        """True if the proposed map is newer than the one in force."""
        return self.map is None or self.map.epoch < proposed.epoch

    def proposal(self, proposed: SlotMap) -> Callable[[Transaction], SlotMap | None]:
        """The call that writes a map if it is newer, and returns the one that is in force then."""
        row = (proposed.epoch, _encode(proposed))

        def work(tx: Transaction) -> SlotMap | None:
            return proposed if tx.one(SQL["put_slot_map"], row) else _stored(tx.db)

        return work

    def guarding(self, job_ids: Sequence[JobId], create: Callable[[Transaction], T]) -> Callable[[Transaction], T]:
        """`create`, refused with WrongShard before it writes anything if one of the jobs is not this shard's."""
        numbers = [slot(job_id) for job_id in job_ids] if self._owned is not None else None

        def work(tx: Transaction) -> T:
            owned = self._owned
            if owned is not None:
                mine = [slot(job_id) for job_id in job_ids] if numbers is None else numbers
                if not all(owned[number] for number in mine):
                    self._refuse(mine)
            return create(tx)

        return work

    def _refuse(self, numbers: list[int]) -> None:
        assert self.map is not None
        number = next(number for number in numbers if self.map.table[number] != self._shard)
        raise WrongShard(
            f"slot {number} is on shard {self.map.table[number]}, not {self._shard}, since epoch {self.map.epoch}",
            epoch=self.map.epoch,
        )


def _stored(db: apsw.Connection) -> SlotMap | None:
    rows: list[Any] = db.execute(SQL["slot_map"]).fetchall()
    return _decode(rows[0][0]) if rows else None
