"""What duly stores and decides on: jobs, runs, attempts, workers, terms. Frozen values, no behaviour beyond names.

    job ──opens──▶ run (job_id, scheduled_at) ──dispatched as──▶ attempt 1, 2, 3 …

    waiting ──▶ dispatched ──▶ running ──▶ succeeded | failed | cancelled | lost | quarantined
       ▲ └──────────│─────────────│──────▶ skipped | missed | cancelled      (never started)
       └────────────┴─────────────┘        released, undelivered, retry: the attempt rises at the next dispatch

Every instant is integer microseconds UTC, every duration integer microseconds. What clients see of these values
is in `contract.py`; how they change is in `machine.py`.
"""

from __future__ import annotations

import enum
from typing import Final, Literal, NewType

import msgspec

from duly.core.errors import InvalidInput
from duly.core.instants import DAY, HOUR, MINUTE, SECOND, compact_instant, parse_compact_instant

JobId = NewType("JobId", str)
RunId = NewType("RunId", str)  # "<job id>@<scheduled_at, compact RFC 3339>": a run cannot exist twice
WorkerId = NewType("WorkerId", str)
RunKey = tuple[JobId, int]  # (job_id, scheduled_at): the identity of a run inside


class RunState(enum.IntEnum):
    """The states of a run. The numbers are stored: add, never renumber."""

    WAITING = 0
    DISPATCHED = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5
    SKIPPED = 6
    MISSED = 7
    LOST = 8
    QUARANTINED = 9

    @property
    def terminal(self) -> bool:
        """True for a state that nothing leaves."""
        return self >= RunState.SUCCEEDED

    @property
    def active(self) -> bool:
        """True while an attempt is out."""
        return self in (RunState.DISPATCHED, RunState.RUNNING)

    @property
    def word(self) -> str:
        """The name that clients see."""
        return self.name.lower()


JobState = Literal["active", "paused", "deleted"]  # `completed` is derived: active with no run left to come
Dst = Literal["cron", "shift", "skip", "both"]
Misfire = Literal["run_latest", "run_all", "skip"]
Overlap = Literal["skip", "queue", "allow", "cancel_running"]
Delivery = Literal["at_least_once", "at_most_once"]
Backoff = Literal["exponential", "linear", "constant"]
LateCause = Literal["no_capacity", "overlap", "catch_up", "failover", "code_fetch", "throttled", "clock", "unknown"]
ErrorKind = Literal["exit", "signal", "timeout", "exception", "worker_lost", "limit", "http", "input"]
Isolation = Literal["process", "sandbox", "wasm"]
Lane = Literal["async", "process"]

NULL: Final = msgspec.Raw(b"null")  # no result
KEPT_ATTEMPTS: Final = 150  # in a run's document: more than the most that a job may ask for
QUARANTINE_AFTER: Final = 3  # workers taken down by one run
DOUBTED_AFTER: Final = 10  # lost workers that held the run, proven to have been its doing or not
SKIPPED_RECORDS: Final = 1_000  # occurrences recorded one by one; the rest share one summary run
MAX_RESULT_BYTES: Final = 256 * 1024  # of a function's return value as JSON; more belongs in a file
MAX_LOG_BYTES: Final = 10 * 1024 * 1024  # of each stream that is kept


class Frozen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=False, gc=False):
    """A stored value: unknown fields of a newer version are ignored, defaults are not written."""


# -- tasks: what to run -------------------------------------------------------------------------------------


class FunctionTask(Frozen, tag_field="kind", tag="function", frozen=True, kw_only=True):
    """A function that a worker registered. `mode` is known when a Python client made the job."""

    name: str
    args: msgspec.Raw = msgspec.Raw(b"[]")
    kwargs: msgspec.Raw = msgspec.Raw(b"{}")
    mode: Literal["sync", "async"] | None = None


class CommandTask(Frozen, tag_field="kind", tag="command", frozen=True, kw_only=True):
    """A program: `code` (a digest, put at ./task) or a program of the worker's, with files in and out.

    `limits`: cpu (µs), memory (bytes), file_size (bytes), open_files (count).
    """

    argv: tuple[str, ...] = ()
    code: str | None = None
    env: dict[str, str] = {}
    inputs: dict[str, str] = {}  # path below input/ → digest
    stdin: str | None = None  # text
    limits: Limits | None = None
    isolation: Isolation = "process"


class Limits(Frozen, frozen=True, kw_only=True):
    """What a command may use; None leaves the worker's default."""

    cpu: int | None = None
    memory: int | None = None
    file_size: int | None = None
    open_files: int | None = None


class HttpTask(Frozen, tag_field="kind", tag="http", frozen=True, kw_only=True):
    """One request. `expect` is "2xx", "200" or a list like "200,204,3xx"; `body` is text or JSON."""

    url: str
    method: str = "POST"
    headers: dict[str, str] = {}
    body: msgspec.Raw = msgspec.Raw(b"null")
    expect: str = "2xx"


Task = FunctionTask | CommandTask | HttpTask


def lane(task: Task) -> Lane:
    """Where a task takes its slot: the async lane is wide, the process lane has the worker's slots."""
    if isinstance(task, HttpTask):
        return "async"
    if isinstance(task, FunctionTask) and task.mode == "async":
        return "async"
    return "process"


# -- jobs ---------------------------------------------------------------------------------------------------


class Retry(Frozen, frozen=True, kw_only=True):
    """How often and when to try again. `base` and `cap` in µs; full jitter is drawn below the backoff."""

    max_attempts: int = 3
    backoff: Backoff = "exponential"
    base: int = SECOND
    cap: int = 5 * MINUTE


class Keep(Frozen, frozen=True, kw_only=True):
    """How much history a job keeps: the newest `runs`, none older than `age` (µs)."""

    runs: int = 1_000
    age: int = 30 * DAY


class Job(Frozen, frozen=True, kw_only=True):
    """A task and a schedule, with its policies; a document with a version.

    `anchored_at` is the instant from which relative schedules count: creation, or the last change of schedule.
    `body_digest` is set with an idempotency key, to tell a repeat from a clash. `spent` and `reached` are what it has
    behind it, noted when it is changed: the instant of a one-time schedule whose run has begun or ended, and the newest
    occurrence of a recurring one that has. `since`: its present occurrences are those after this instant, so that no
    earlier one has been but by `reached`; None from its creation. `ahead`: one that was cancelled ahead of its time.
    `defined_in` is the version in which its definition became what it is, 0 for its only version so far; `defined_at`
    the instant, `defined_by` the key id of the token (core/versions.py).
    """

    id: JobId
    task: Task
    schedule: str
    created_at: int
    updated_at: int
    anchored_at: int
    namespace: str = "default"
    name: str = ""
    labels: dict[str, str] = {}
    timezone: str = "UTC"
    dst: Dst = "cron"
    start: int | None = None
    end: int | None = None
    max_runs: int | None = None
    jitter: int = 0
    calendar: tuple[str, ...] = ()
    priority: int = 5
    max_lateness: int = SECOND
    timeout: int = HOUR
    retry: Retry = Retry()
    misfire: Misfire = "run_latest"
    catchup_window: int = HOUR
    overlap: Overlap = "skip"
    delivery: Delivery = "at_least_once"
    requires: dict[str, str] = {}
    keep: Keep = Keep()
    state: JobState = "active"
    version: int = 1
    body_digest: str = ""
    spent: int | None = None
    reached: int = 0
    since: int | None = None
    defined_in: int = 0
    defined_at: int = 0
    defined_by: str = ""
    ahead: int = 0


# -- runs ---------------------------------------------------------------------------------------------------


class Failure(Frozen, frozen=True, kw_only=True):
    """How an attempt went wrong; `detail` may be a traceback or the end of stderr, at most 16 KiB."""

    kind: ErrorKind
    message: str
    detail: str = ""


class Output(Frozen, frozen=True, kw_only=True):
    """A file that a run left. `digest` is "sha256:<hex>"."""

    path: str
    size: int
    digest: str


class Attempt(Frozen, frozen=True, kw_only=True):
    """One try at a run; its number is the fencing token of everything it writes."""

    number: int
    worker: WorkerId
    state: str  # a run state's word, or "released"
    dispatched_at: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    error: Failure | None = None
    logs: dict[str, str] = {}  # stdout/stderr → digest
    isolation: str = ""  # the level that was reached


class Run(Frozen, frozen=True, kw_only=True):
    """One occurrence of a job. `attempt` is the number of the current or last attempt, 0 before the first.

    `due_at` is when the next start is due: scheduled_at (plus jitter) for the first attempt, the retry's
    instant after that. `ordinal` counts the occurrences of the job from 1, for `max_runs`.
    `lateness` is µs from due_at to the first instruction of the first attempt that started.
    """

    job_id: JobId
    scheduled_at: int
    due_at: int
    state: RunState = RunState.WAITING
    priority: int = 5
    attempt: int = 0
    worker: WorkerId = WorkerId("")
    ordinal: int = 1
    manual: bool = False
    job_version: int = 1
    dispatched_at: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    lateness: int | None = None
    late: bool = False
    late_cause: LateCause | None = None
    reason: str | None = None
    cancel: str | None = None  # why a cancel was asked for, once it was
    result: msgspec.Raw = NULL
    exit_code: int | None = None
    error: Failure | None = None
    outputs: tuple[Output, ...] = ()
    logs: dict[str, str] = {}  # of the current or last attempt: stdout/stderr → digest
    isolation: str = ""  # the level that the current or last attempt reached
    attempts: tuple[Attempt, ...] = ()  # those before the current one
    failures: int = 0  # attempts that failed by themselves
    crashes: int = 0  # attempts whose worker vanished
    held_by: LateCause | None = None  # what has kept it from starting so far, for late_cause
    covers_until: int | None = None  # a summary run stands for the occurrences from scheduled_at to this one
    retry_of: int | None = None  # scheduled_at of the finished run that a client asked to run again

    @property
    def key(self) -> RunKey:
        """(job_id, scheduled_at)."""
        return (self.job_id, self.scheduled_at)

    @property
    def id(self) -> RunId:
        """The name that clients see."""
        return run_id(self.job_id, self.scheduled_at)


def run_id(job_id: JobId, scheduled_at: int) -> RunId:
    """The id of the run of a job at an instant."""
    return RunId(f"{job_id}@{compact_instant(scheduled_at)}")


# -- the fleet ----------------------------------------------------------------------------------------------


class Worker(Frozen, frozen=True, kw_only=True):
    """A worker as its last beat told it. `lease_until` is by the shard's clock; capacity per lane."""

    id: WorkerId
    slots: int
    free: int = 0
    labels: dict[str, str] = {}
    functions: tuple[str, ...] | None = None  # what it registered; None: anything importable
    clock_offset: int = 0
    beat_at: int = 0
    lease_until: int = 0
    state: Literal["ready", "draining", "lost"] = "ready"
    capacity: dict[Lane, int] = {}  # attempts of each lane that it would hold for this shard in all
    unheard: bool = False  # a servicer took its last beat: no broker carried it to a scheduler


class Term(Frozen, frozen=True, kw_only=True):
    """A scheduler's fenced hold on a shard."""

    owner: str
    fence: int
    expires_at: int


def parse_run_id(text: str) -> RunKey | None:
    """(job_id, scheduled_at) of a run id, None for anything else."""
    job_id, at, instant = text.partition("@")
    if not at or len(text) > 200:
        return None
    try:
        return (JobId(job_id), parse_compact_instant(instant))
    except InvalidInput:
        return None
