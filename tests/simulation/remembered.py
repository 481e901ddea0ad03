"""What the referee remembers by itself, and how much slack it gives."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from duly.core.model import Job, JobId, Run, RunKey, Term

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


class Record:
    """What has happened, as the referee has seen it. `note` is called with everything that counts, in order."""

    def __init__(self, stop: Callable[[], None], shards: Sequence[str] = ("s0",)) -> None:
        """`stop` ends the world: an invariant was broken."""
        self.stop = stop
        self.broken: Violation | None = None
        self.counts: Counter[str] = Counter()
        self.jobs: dict[JobId, Job] = {}
        self.acknowledged: set[JobId] = set()
        self.runs: dict[RunKey, Known] = {}
        self.hot: dict[RunKey, Known] = {}
        self.true = 0
        self.shards: dict[str, OfShard] = {name: OfShard(name) for name in shards}
        self.on = next(iter(self.shards.values()))  # where the effect that is being judged took place
        self.log: list[tuple[object, ...]] | None = None  # what goes into the trace, if it is to be read
        self._digest = hashlib.blake2b(digest_size=12)
        self.fired: set[RunKey] = set()
        self.starts: dict[RunKey, dict[int, str]] = {}
        self.over: set[tuple[RunKey, int, str]] = set()
        self.done: dict[tuple[RunKey, int, str], bytes] = {}
        self.grids: dict[JobId, Grid] = {}
        self.spans: list[tuple[JobId, int, int]] = []  # summary records: job, from, until
        self.homes: dict[JobId, str] = {}
        self.left: dict[JobId, tuple[int, int]] = {}  # of the runs that were out lately: newest instant, true time
        self.going: dict[tuple[RunKey, int], Any] = {}  # attempts whose code runs, and the process it runs in
        self.thawed_at: dict[Any, int] = {}

    # -- telling --------------------------------------------------------------------------------------------

    def note(self, *event: object) -> None:
        """Into the trace."""
        self._digest.update(repr(event).encode())
        if self.log is not None:
            self.log.append((self.true, *event))

    @property
    def trace(self) -> str:
        """What happened, as a hash."""
        return self._digest.hexdigest()

    def require(self, holds: bool, number: int, name: str, text: object) -> None:
        """Raises Violation, and lets the world know: whoever it is raised into may be a task that nobody awaits."""
        if not holds:
            violation = Violation(number, name, str(text))
            if self.broken is None:
                self.broken = violation
                self.stop()
            raise violation

    def died(self, life: Any) -> None:
        """A process was killed, and with it what ran in it."""
        for mark in [mark for mark, where in self.going.items() if where is life]:
            del self.going[mark]

    def froze(self, life: Any, monotonic: int) -> None:
        """A process was frozen, or goes on."""
        self.thawed_at[life] = monotonic

    def clock_stepped(self, shard: str, monotonic: int) -> None:
        """A shard's clock was set, at `monotonic` in true time."""
        self.shards[shard].stepped_at = monotonic

    @property
    def unclear(self) -> bool:
        """The shard's clock was set lately, so that decisions may come from before."""
        return self.true - self.on.stepped_at < STEPPED


def period_of(job: Job) -> int | None:
    """The period of `every 10s`, by the referee's own reading; None for other schedules."""
    found = re.fullmatch(r"every (\d+)(s|m)", job.schedule)
    return None if found is None else int(found[1]) * _UNITS[found[2]]
