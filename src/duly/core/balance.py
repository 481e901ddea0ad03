"""How scheduler processes share the shards: from what each of them leads, the one shard that should change hands next.

Whoever leads the most gives one to whoever leads the fewest, while that makes the two more alike. So the shares end
up at most one apart (nobody has more than ⌈shards / processes⌉), in as few moves as possible, and then nothing moves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple


class HandOver(NamedTuple):
    """A shard that one process should let another have."""

    shard: str
    giver: str
    taker: str


def next_hand_over(leads: Mapping[str, Collection[str]], takers: Collection[str]) -> HandOver | None:
    """What each process leads, by its name, and who may be given more; None if nothing should move.

    Every process that sees the same comes to the same answer, so one of them gives, not several at once.
    """
    if not leads or not takers:
        return None
    giver = min(leads, key=lambda name: (-len(leads[name]), name))
    taker = min(takers, key=lambda name: (len(leads.get(name, ())), name))
    if len(leads[giver]) - len(leads.get(taker, ())) < 2:
        return None
    return HandOver(max(leads[giver]), giver, taker)
