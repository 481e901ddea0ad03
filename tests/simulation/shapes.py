"""What worlds are made of: small ones, where most meetings are found, and large ones, where the ring is in play."""

from __future__ import annotations

from random import Random  # noqa: TID251 - all from the seed
from typing import Final

import msgspec

from simulation.loop import SECOND

FAULTS: Final = (
    "kill", "freeze", "cut", "store down", "node clock", "store clock", "blackout",
    "lose", "double", "straggle", "refuse", "unknown", "slow store",
    "fail", "hang", "crash child", "kill worker", "slow", "no slot",
)  # fmt: skip
OF_THE_RING: Final = ("broker down", "shard down", "sever", "hold up a leader", "move slots")
SINGLE: Final = frozenset(FAULTS[:7] + OF_THE_RING)  # those that strike at an instant; the others are rates


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """How many of each there are (least, most), what may go wrong, and how badly.

    `drawn`: faults of which each world has some; `always`: those that each has. `rates`: the most of a rate, and
    `least` the share of it that every world has. Durations in µs.
    """

    shards: int = 1
    schedulers: tuple[int, int] = (2, 3)  # each stands by for every shard
    workers: tuple[int, int] = (2, 4)
    servicers: tuple[int, int] = (1, 2)
    clients: int = 2
    storm: int = 120 * SECOND
    drawn: tuple[str, ...] = FAULTS
    always: frozenset[str] = frozenset()
    rates: dict[str, float] = {}
    least: float = 0.0
    straggle: tuple[int, ...] = (1, 5, 12)  # seconds
    store_latency: tuple[int, ...] = (200, 2_000, 20_000)
    client_gap: tuple[int, ...] = (1, 3, 10)  # mean seconds between two things that a client asks for


SHAPES: Final = {
    # One shard and a few of everything: most meetings are found here, because all that happens is close together.
    "small": Shape(),
    # Nearly all goes to one worker, fails, is tried again soon, and is told of twice and late: an old report of an
    # attempt finds the next one at the same worker.
    "echo": Shape(
        workers=(1, 1),
        clients=4,
        drawn=("double", "straggle", "fail", "slow"),
        always=frozenset({"double", "straggle", "fail", "slow"}),
        rates={"double": 0.9, "straggle": 0.5, "fail": 0.8, "slow": 1.0},
        least=0.5,
        straggle=(3, 5),
    ),
    # Workers are cut off for longer than their leases while tasks are slow, leaders are held up in the middle of a
    # write for longer than their terms, and stores are late: what was decided in time is carried out too late.
    "cut": Shape(
        workers=(2, 2),
        clients=4,
        drawn=("cut", "freeze", "slow", "slow store", "fail", "store down", "kill", "hold up a leader"),
        always=frozenset({"cut", "slow", "slow store", "hold up a leader"}),
        rates={"slow store": 0.1, "slow": 1.0},
        least=0.5,
    ),
    # The ring in play: shards fail one by one, with clocks, terms and leases of their own, and share all else.
    "ring": Shape(
        shards=3,
        schedulers=(3, 3),
        workers=(4, 4),
        servicers=(2, 2),
        clients=3,
        storm=240 * SECOND,
        drawn=(*FAULTS, *OF_THE_RING),
    ),
}
WEIGHTS: Final = {"small": 5, "echo": 1.5, "cut": 1.5, "ring": 2}


def shape_of(seed: int) -> str:
    """The shape of a seed's world."""
    return Random(f"duly/{seed}/shape").choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
