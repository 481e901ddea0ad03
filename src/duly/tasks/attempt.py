"""An attempt in a worker's hands, and the two sides that deal with it.

    Worker (role) ──stage──▶ Runner (one per kind of task) ──▶ process, thread, socket
           ▲                     │
           └──── Sink ◀──────────┘   started · succeeded · failed · withdrawn · given_back · progress

A runner starts each attempt at `Held.due`, never before, and tells the sink exactly one ending for it:
`succeeded`, `failed`, `withdrawn` (it never began, as was asked) or `given_back`. All of it happens on the event
loop; instants here are µs of CLOCK_MONOTONIC (`Clock.monotonic`), which processes of one machine share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec

from duly.core.model import Failure, FunctionTask, Job, Lane, LateCause, Output, Run, RunKey

MAX_DETAIL = 16 * 1024  # characters of a traceback or of the end of stderr
GIVE_BACK_AFTER = 100_000  # µs past due without a slot, then another worker may have it
BACKLOG = 50_000  # µs of work that a lane may hold queued beyond its slots
UNMEASURED = 1_024  # runs of backlog before the first duration is known
MAX_BACKLOG = 2_048

# Why an attempt is being ended from outside; it decides what is reported.
Ending = Literal["cancel", "changed", "timeout", "drain", "quiet"]


class Held:
    """One attempt that this worker has: mutable, on the hot path, so slots and no dictionary."""

    __slots__ = (
        "announced",
        "arrived",
        "attempt",
        "barred",
        "cause",
        "due",
        "ending",
        "job",
        "key",
        "lane",
        "mode",
        "offset",
        "place",
        "queued",
        "run",
        "runner",
        "shard",
        "started",
        "ticket",
    )

    def __init__(
        self, run: Run, job: Job, key: RunKey, shard: str, lane: Lane, offset: int, due: int, arrived: int
    ) -> None:
        self.run = run
        self.job = job
        self.key = key
        self.attempt = run.attempt
        self.shard = shard
        self.lane: Lane = lane
        self.offset = offset  # the shard's clock minus CLOCK_MONOTONIC, as it was when this was staged
        self.due = due
        self.arrived = arrived
        self.started = 0  # CLOCK_MONOTONIC µs once its code has begun, else 0
        self.announced = False  # the sink was told that it started
        self.ending: Ending | None = None
        self.cause: LateCause | None = None
        self.runner: Runner | None = None
        self.mode: str = ""  # for functions: "sync" or "async"
        self.barred = False  # for functions: not registered here
        self.place: Any = None  # the runner's own: where it is
        self.ticket = -1  # the runner's own: its number there
        self.queued = False  # the runner's own: counted as work that is due

    @property
    def task(self) -> FunctionTask:
        """The job's task, where the runner knows that it is a function."""
        return self.job.task  # type: ignore[return-value]  # the worker chose the runner by the task's kind

    def too_late(self, now: int) -> bool:
        """It has been waiting for a slot for so long that it goes back."""
        return now > max(self.due, self.arrived) + GIVE_BACK_AFTER


class Sink(Protocol):
    """Where runners tell what became of attempts."""

    def started(self, held: Held, at: int) -> None:
        """Its code began at `at` and is still running. Not told of every short run."""
        ...

    def succeeded(
        self,
        held: Held,
        started: int,
        finished: int,
        result: bytes | None,
        *,
        exit_code: int | None = None,
        outputs: tuple[Output, ...] = (),
        logs: dict[str, str] | None = None,
    ) -> None:
        """It ended well; `result` is JSON, None for nothing."""
        ...

    def failed(
        self,
        held: Held,
        finished: int,
        error: Failure,
        *,
        started: int | None = None,
        exit_code: int | None = None,
        outputs: tuple[Output, ...] = (),
        logs: dict[str, str] | None = None,
        retryable: bool = True,
        crashed: bool = False,
    ) -> None:
        """It ended badly, or could not begin (`started` None)."""
        ...

    def withdrawn(self, held: Held) -> None:
        """As was asked by `Runner.stop`, it has not begun and will not."""
        ...

    def given_back(self, held: Held, reason: str) -> None:
        """It has not begun and cannot here."""
        ...

    def progress(self, held: Held, fraction: float, message: str) -> None:
        """How far it has come, by its own account."""
        ...


class Runner(Protocol):
    """Runs attempts of one kind of task."""

    async def start(self) -> None:
        """Get ready."""
        ...

    def stage(self, batch: Sequence[Held]) -> None:
        """Take attempts, to be started at their instants. Never waits."""
        ...

    def stop(self, held: Held, *, unless_started: bool = False) -> None:
        """End an attempt: one that has not begun is withdrawn, one that has is killed (softly, then surely; at once
        if its `ending` is "quiet")."""
        ...

    def log_path(self, held: Held, stream: str) -> str | None:
        """The file that a running attempt's stream is written to, None if nothing was written."""
        ...

    def occupied(self) -> int:
        """Slots of the process lane that are taken for longer than a moment."""
        ...

    async def close(self) -> None:
        """Kill what still runs and let everything go."""
        ...


class Tempo:
    """What a lane's runs last, and so how many may be queued beyond its slots.

    The allowance is what the free slots would finish in 50 ms at the measured mean duration, so that short runs
    are pipelined and long ones are left for other workers: `UNMEASURED` before the first ending, at most
    `MAX_BACKLOG`.
    """

    def __init__(self) -> None:
        self.mean: float | None = None  # µs

    def finished(self, total: int, count: int) -> None:
        """`count` runs ended, lasting `total` µs together."""
        value = total / count
        if self.mean is None:
            self.mean = value
        else:
            self.mean += (value - self.mean) * min(0.5, count / 32)

    def allowance(self, slots: int) -> int:
        """Runs that may wait behind `slots` free slots."""
        if slots <= 0:
            return 0
        if self.mean is None:
            return UNMEASURED
        return min(MAX_BACKLOG, int(slots * BACKLOG / max(self.mean, 1.0)))

    def depth(self) -> int:
        """Runs that are due and may stand in one queue: 10 ms of work."""
        if self.mean is None:
            return UNMEASURED
        return max(1, min(UNMEASURED, int(10_000 / max(self.mean, 1.0))))


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """What every runner gets from the worker. Durations in µs, sizes in bytes."""

    scratch: str
    slots: int
    grace: int = 10_000_000  # between asking a task to end and killing it
    shares_clock: bool = False  # the shards go by this machine's clock
    spin: int = 300  # busy wait before an instant, against the kernel's timer slack
    max_output: int = 1024**3
    allow_private_addresses: bool = False
