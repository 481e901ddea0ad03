"""What the referee remembers by itself, and how much slack it gives."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from duly.core.model import Job, Run, Term

SECOND: Final = 1_000_000
LEAD: Final = 500_000
STEPPED: Final = 10 * SECOND  # so long after a step of the store's clock, offsets may be wrong
UNMOVED: Final = 100_000  # steps of the clock smaller than this do not move leases
MENDED: Final = 40 * SECOND  # after a step too small to be noticed, until offsets have forgotten what was before
TIGHT: Final = 2_000  # µs by which a start may seem early: clocks are compared over a network

_UNITS: Final = {"s": SECOND, "m": 60 * SECOND}


class Violation(Exception):
    """An invariant was broken."""

    def __init__(self, number: int, name: str, text: str) -> None:
        super().__init__(f"invariant {number}, {name}: {text}")
        self.number = number
        self.name = name


class Known(msgspec.Struct):
    """A run as the referee remembers it."""

    run: Run
    releases: int = 0
    cancelled: bool = False  # a cancel was acknowledged


class Grid(msgspec.Struct):
    """Since when a job has had this definition: the instants after `since` are owed."""

    job: Job
    since: int


class OfShard(msgspec.Struct):
    """What the referee knows of a shard's term, leases and clock."""

    name: str
    now: int = 0  # by the shard's clock, at the last effect
    stepped_at: int = -STEPPED  # true time at which its clock was set last
    term: Term | None = None  # `expires_at` in true time
    holders: dict[int, str] = {}
    leases: dict[str, int] = {}  # worker → true time


def period_of(job: Job) -> int | None:
    """The period of `every 10s`, by the referee's own reading; None for other schedules."""
    found = re.fullmatch(r"every (\d+)(s|m)", job.schedule)
    return None if found is None else int(found[1]) * _UNITS[found[2]]
