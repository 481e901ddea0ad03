"""What crosses the broker: typed and versioned. A message may be lost, doubled, late or forged; none decides anything.

servicer  ── Hint, Ended ──▶ scheduler   "hint.<shard>"
scheduler ── Assign ───────▶ worker      "worker.<id>"
servicer  ── Cancel, Rest ─▶ worker      "worker.<id>"
worker    ── Beat ─────────▶ scheduler   "beat.<shard>"    answered with BeatAnswer
worker    ── Report ───────▶ servicer    "report.<shard>"  answered with ReportAnswer
servicer  ── ReadLog ──────▶ worker      "log.<id>"        answered with LogChunk
any       ── Notice ───────▶ servicers   "notice"          progress for people
servicer  ── News ─────────▶ servicers   "notice"          what was written, for those who watch elsewhere
scheduler ── Standing ─────▶ schedulers  "scheduler"       who leads what, for an even share
"""

from __future__ import annotations

from typing import Final

import msgspec

from duly.core.model import NULL, Failure, Job, JobId, Lane, LateCause, Output, Run, RunKey, Worker, WorkerId

VERSION: Final = 1
MAX_ASSIGN: Final = 512  # runs in one Assign
MAX_REPORT: Final = 512  # events in one Report


def hints(shard: str) -> str:
    """The subject on which the scheduler of a shard is told of new work."""
    return f"hint.{shard}"


def inbox(worker: WorkerId) -> str:
    """The subject of one worker."""
    return f"worker.{worker}"


def logs(worker: WorkerId) -> str:
    """The subject on which a worker is asked for running attempts' logs: apart from its inbox, because a reader
    may be kept waiting and an Assign may not."""
    return f"log.{worker}"


def beats(shard: str) -> str:
    """The subject on which workers tell the scheduler of a shard that they live."""
    return f"beat.{shard}"


def reports(shard: str) -> str:
    """The subject on which workers tell the servicers what became of a shard's attempts: a slow one delays no other."""
    return f"report.{shard}"


NOTICES: Final = "notice"
SCHEDULERS: Final = "scheduler"


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag=True):
    """Anything that crosses the broker."""


class Hint(Message, frozen=True, kw_only=True):
    """Runs of this shard were opened or changed. `runs` may be left out: then the store is asked."""

    shard: str
    runs: tuple[tuple[Run, Job], ...] = ()
    changed: tuple[JobId, ...] = ()  # jobs whose waiting runs were replaced: drop what is remembered of them


class Ended(Message, frozen=True, kw_only=True):
    """Attempts that a commit has just ended, so that their slots and overlap holds are free."""

    shard: str
    worker: WorkerId
    keys: tuple[tuple[RunKey, int], ...]  # (run, attempt)
    capacity: dict[Lane, int]
    opened: tuple[tuple[Run, Job], ...] = ()  # next runs and retries


class Assignment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One attempt with all that a worker needs to start it."""

    run: Run
    job: Job


class Assign(Message, frozen=True, kw_only=True):
    """Attempts for a worker, ahead of their time. `number` counts a scheduler's Assigns to this worker.

    `now` is the shard's clock when they were decided: a worker that thinks it earlier learns that the clock was set.
    `sent`: when it was sent, by the scheduler's monotonic clock; 0 if that is not known.
    """

    shard: str
    fence: int
    number: int
    batch: tuple[Assignment, ...]
    now: int | None = None
    sent: int = 0


class Cancel(Message, frozen=True, kw_only=True):
    """Stop an attempt; with `unless_started`, only if it has not begun."""

    key: RunKey
    attempt: int
    reason: str
    unless_started: bool = False


class Rest(Message, frozen=True, kw_only=True):
    """Take nothing new and hand back what has not begun; or, with `on` false, take work again. A restart forgets it."""

    on: bool


class Beat(Message, frozen=True, kw_only=True):
    """A worker once a second: itself, what it holds (reports not answered yet included), and the last Assign it saw.

    `capacity` here and in Report: how many attempts of each lane it would hold for this shard in all, so that
    what is out to it is subtracted by the reader.
    """

    worker: Worker
    capacity: dict[Lane, int]
    held: tuple[tuple[RunKey, int], ...] = ()
    seen: dict[str, int] = {}  # shard → number of the last Assign
    sent: int = 0  # by the worker's CLOCK_MONOTONIC: beats that waited somewhere are told by it from fresh ones


class BeatAnswer(Message, frozen=True, kw_only=True):
    """The lease by the shard's clock, the shard's clock, and attempts that the store has given to another.

    A servicer that answers in place of a broker adds what else a worker would have been told: `out`, attempts that the
    store has at it and its beat did not hold, at most MAX_ASSIGN; and `cancelled`, those whose end was asked for, why.
    """

    shard: str
    now: int
    lease_until: int
    stale: tuple[tuple[RunKey, int], ...] = ()
    out: tuple[Assignment, ...] = ()
    cancelled: tuple[tuple[RunKey, int, str], ...] = ()


class Started(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True, gc=False):
    """The attempt's code has begun. `started_at` by the shard's clock."""

    attempt: int
    worker: WorkerId
    started_at: int
    cause: LateCause | None = None  # what the worker knows of a late start
    isolation: str = ""


class Succeeded(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True, gc=False):
    """The attempt ended well. `result` is JSON."""

    attempt: int
    worker: WorkerId
    started_at: int
    finished_at: int
    result: msgspec.Raw = NULL
    exit_code: int | None = None
    outputs: tuple[Output, ...] = ()
    logs: dict[str, str] = {}
    cause: LateCause | None = None
    isolation: str = ""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True, gc=False):
    """The attempt ended badly. Not `retryable`: trying again cannot help (bad input, a refusal by the task).

    `crashed`: it took its process down (a child that died), which counts towards quarantine.
    """

    attempt: int
    worker: WorkerId
    error: Failure
    started_at: int | None = None
    finished_at: int
    exit_code: int | None = None
    outputs: tuple[Output, ...] = ()
    logs: dict[str, str] = {}
    retryable: bool = True
    crashed: bool = False
    cause: LateCause | None = None
    isolation: str = ""


class Released(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True, gc=False):
    """The worker hands the attempt back; no attempt is consumed. `started`: its code had begun (drain)."""

    attempt: int
    worker: WorkerId
    reason: str
    started: bool = False


class Stopped(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True, gc=False):
    """A cancel was carried out: the attempt did not start, or was killed."""

    attempt: int
    worker: WorkerId
    finished_at: int
    started_at: int | None = None
    logs: dict[str, str] = {}
    outputs: tuple[Output, ...] = ()


WorkerEvent = Started | Succeeded | Failed | Released | Stopped


class Report(Message, frozen=True, kw_only=True):
    """Events of attempts, in order, repeated until answered."""

    worker: WorkerId
    shard: str
    events: tuple[tuple[RunKey, WorkerEvent], ...]
    capacity: dict[Lane, int] = {}


class ReportAnswer(Message, frozen=True, kw_only=True):
    """One word for each event: "ok", "duplicate" (it was stored before), or a refusal's code."""

    words: tuple[str, ...]


class ReadLog(Message, frozen=True, kw_only=True):
    """Bytes of a running attempt's stream from `offset`, waiting up to `wait` µs for some to come."""

    key: RunKey
    attempt: int
    stream: str
    offset: int
    wait: int = 0


class LogChunk(Message, frozen=True, kw_only=True):
    """At most 64 KiB. `ended`: nothing will follow. `held` is False when the worker does not have that attempt."""

    data: bytes = b""
    offset: int = 0
    ended: bool = False
    held: bool = True


class Notice(Message, frozen=True, kw_only=True):
    """Something that people watch: a run's progress or an event. Lost ones are not repeated."""

    kind: str  # "run.started", "run.finished", "run.progress", "job.created", …
    key: RunKey | None = None
    job_id: JobId | None = None
    data: dict[str, msgspec.Raw] = {}


class News(Message, frozen=True, kw_only=True):
    """What a servicer or scheduler has just written, for those who watch elsewhere: read from the store there.

    `origin` is the process's own mark, so that it does not hear itself; `at` by the shard's clock. `lost`: so many runs
    and jobs were too many to be named.
    """

    origin: str
    kind: str  # as in Notice
    at: int
    runs: tuple[RunKey, ...] = ()
    jobs: tuple[JobId, ...] = ()
    lost: int = 0


class Standing(Message, frozen=True, kw_only=True):
    """A scheduler process lives and leads these shards. `given`: one that it has just let `taker` have."""

    process: str
    leads: tuple[str, ...] = ()
    given: str = ""
    taker: str = ""
    leaving: bool = False  # it will not be heard again, and leads nothing


AnyMessage = (
    Hint
    | Ended
    | Assign
    | Cancel
    | Rest
    | Beat
    | BeatAnswer
    | Report
    | ReportAnswer
    | ReadLog
    | LogChunk
    | Notice
    | News
    | Standing
)
