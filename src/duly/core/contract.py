"""What clients see: the JSON shapes of jobs, runs and answers.

    JobSpec ──definition.define_job──▶ Job ──views.job_view──▶ JobView        Run ──views.run_view──▶ RunView

On the wire instants are RFC 3339 UTC with microseconds and durations are words such as `1h30m`; inside both are
integer microseconds. Unknown fields are refused. Both the HTTP face and the Python client use these shapes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from duly.core.model import (
    Backoff,
    Delivery,
    Dst,
    ErrorKind,
    Isolation,
    LateCause,
    Misfire,
    Overlap,
)

Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$", description="sha256:<hex> of the bytes")]
Name = Annotated[str, Meta(max_length=200)]
Instant = Annotated[str, Meta(max_length=40, description="RFC 3339, UTC in answers")]
Duration = Annotated[str, Meta(max_length=40, description="500ms, 30s, 1h30m, 2d")]
Priority = Annotated[int, Meta(ge=0, le=9, description="9 is first")]
Labels = dict[
    Annotated[str, Meta(min_length=1, max_length=63)],
    Annotated[str, Meta(max_length=255)],
]
RunStateName = Literal[
    "waiting",
    "dispatched",
    "running",
    "succeeded",
    "failed",
    "cancelled",
    "skipped",
    "missed",
    "lost",
    "quarantined",
]
JobStateName = Literal["active", "paused", "completed", "deleted"]


class Wire(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A shape that a client sends."""


class View(msgspec.Struct, kw_only=True, frozen=True):
    """A shape that a client receives; newer servers may add fields."""


# -- tasks --------------------------------------------------------------------------------------------------


class FunctionSpec(Wire, tag_field="kind", tag="function", frozen=True, kw_only=True):
    """A function that the worker's apps register, by "module:name"."""

    name: Annotated[str, Meta(min_length=1, max_length=300)]
    args: Annotated[list[Any], Meta(max_length=1000)] = []
    kwargs: dict[str, Any] = {}
    mode: Literal["sync", "async"] | None = None


class LimitsSpec(Wire, frozen=True, kw_only=True):
    """What a command may use."""

    cpu: Duration | None = None
    memory: Annotated[int, Meta(ge=1_048_576, description="bytes of address space, per process")] | None = None
    file_size: Annotated[int, Meta(ge=0, description="bytes, per file")] | None = None
    open_files: Annotated[int, Meta(ge=8, le=1_048_576)] | None = None


class CommandSpec(Wire, tag_field="kind", tag="command", frozen=True, kw_only=True):
    """A program, with its files: `code` is put at ./task, inputs below input/, what it leaves in output/ is kept."""

    code: Digest | None = None
    argv: Annotated[list[Annotated[str, Meta(max_length=32_768)]], Meta(max_length=1000)] = []
    env: dict[Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)], str] = {}
    inputs: dict[Annotated[str, Meta(min_length=1, max_length=1024)], Digest] = {}
    stdin: Annotated[str, Meta(max_length=131_072)] | None = None
    limits: LimitsSpec | None = None
    isolation: Isolation = "process"


class HttpSpec(Wire, tag_field="kind", tag="http", frozen=True, kw_only=True):
    """One HTTP request; `Idempotency-Key: <run id>` goes with it."""

    url: Annotated[str, Meta(pattern=r"^https?://", max_length=8192)]
    method: Annotated[str, Meta(pattern=r"^[A-Z]{3,10}$")] = "POST"
    headers: dict[Annotated[str, Meta(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", max_length=200)], str] = {}
    body: Any = None
    expect: Annotated[str, Meta(pattern=r"^[1-5](xx|[0-9]{2})(,[1-5](xx|[0-9]{2}))*$", max_length=100)] = "2xx"


TaskSpec = FunctionSpec | CommandSpec | HttpSpec


# -- jobs ---------------------------------------------------------------------------------------------------


class RetrySpec(Wire, frozen=True, kw_only=True):
    """How often and when to try again."""

    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    backoff: Backoff = "exponential"
    base: Duration = "1s"
    cap: Duration = "5m"


class KeepSpec(Wire, rename={"age": "for"}, frozen=True, kw_only=True):
    """How much history is kept."""

    runs: Annotated[int, Meta(ge=0, le=1_000_000)] = 1000
    age: Duration = "30d"


class JobDefinition(Wire, frozen=True, kw_only=True):
    """What a job is, as its client wrote it. Whether it is paused is no part of it."""

    task: TaskSpec
    schedule: Annotated[str, Meta(max_length=16_384)]
    name: Name = ""
    labels: Labels = {}
    timezone: Annotated[str, Meta(max_length=100)] = "UTC"
    dst: Dst = "cron"
    start: Instant | None = None
    end: Instant | None = None
    max_runs: Annotated[int, Meta(ge=1)] | None = None
    jitter: Duration = "0s"
    calendar: Annotated[list[Annotated[str, Meta(max_length=10)]], Meta(max_length=1000)] = []
    priority: Priority = 5
    max_lateness: Duration = "1s"
    timeout: Duration = "1h"
    retry: RetrySpec = RetrySpec()
    misfire: Misfire = "run_latest"
    catchup_window: Duration = "1h"
    overlap: Overlap = "skip"
    delivery: Delivery = "at_least_once"
    requires: Labels = {}
    keep: KeepSpec = KeepSpec()


class JobSpec(JobDefinition, frozen=True, kw_only=True):
    """A job as a client creates it; only `task` and `schedule` are required."""

    paused: bool = False


class LastRun(View, frozen=True, kw_only=True):
    """The newest run that started and ended."""

    id: str
    state: RunStateName
    lateness_ms: float | None = None


class JobView(View, frozen=True, kw_only=True):
    """A job as clients read it."""

    id: str
    namespace: str
    name: str
    labels: dict[str, str]
    task: TaskSpec
    schedule: str
    timezone: str
    dst: Dst
    start: str | None
    end: str | None
    max_runs: int | None
    jitter: str
    calendar: list[str]
    priority: int
    max_lateness: str
    timeout: str
    retry: RetrySpec
    misfire: Misfire
    catchup_window: str
    overlap: Overlap
    delivery: Delivery
    requires: dict[str, str]
    keep: KeepSpec
    paused: bool
    state: JobStateName
    version: int
    next_run_at: str | None
    last_run: LastRun | None
    created_at: str
    updated_at: str


class JobVersionView(View, frozen=True, kw_only=True):
    """A definition of a job, and from which of the job's versions on it has been in force."""

    version: int
    at: str
    by: str | None  # the key id of the token that it came with
    current: bool
    changed: list[str] | None  # fields that differ from the definition before; null: that one is not kept, or none was
    definition: JobDefinition


class JobVersionList(View, frozen=True, kw_only=True):
    """A page of a job's definitions, newest first."""

    items: list[JobVersionView]
    next: str | None = None
    partial: bool = False
    missing_shards: list[str] = []


READ_ONLY = ("id", "namespace", "state", "version", "next_run_at", "last_run", "created_at", "updated_at")


# -- runs ---------------------------------------------------------------------------------------------------


class ErrorView(View, frozen=True, kw_only=True):
    """How an attempt went wrong."""

    kind: ErrorKind
    message: str
    detail: str = ""


class OutputView(View, frozen=True, kw_only=True):
    """A file of a run."""

    path: str
    size: int
    digest: str


class AttemptView(View, frozen=True, kw_only=True):
    """One try."""

    number: int
    worker: str
    state: str
    dispatched_at: str | None = None
    started_at: str | None
    finished_at: str | None
    error: ErrorView | None
    isolation: str | None = None


class RunView(View, frozen=True, kw_only=True):
    """A run as clients read it."""

    id: str
    job_id: str
    scheduled_at: str
    due_at: str
    state: RunStateName
    priority: int
    attempt: int
    worker: str | None
    dispatched_at: str | None
    started_at: str | None
    finished_at: str | None
    lateness_ms: float | None
    late: bool
    late_cause: LateCause | None
    reason: str | None
    result: Any
    exit_code: int | None
    error: ErrorView | None
    outputs: list[OutputView]
    attempts: list[AttemptView]
    manual: bool = False
    cancel_requested: bool = False
    retry_of: str | None = None
    covers_until: str | None = None
    progress: float | None = None


class ExplainView(View, frozen=True, kw_only=True):
    """Why a run is where it is, in sentences; the first one is the answer."""

    run_id: str
    state: RunStateName
    summary: str
    facts: list[str]


class JobList(View, frozen=True, kw_only=True):
    """A page of jobs."""

    items: list[JobView]
    next: str | None = None
    partial: bool = False
    missing_shards: list[str] = []


class RunList(View, frozen=True, kw_only=True):
    """A page of runs."""

    items: list[RunView]
    next: str | None = None
    partial: bool = False
    missing_shards: list[str] = []


class RunningJob(View, frozen=True, kw_only=True):
    """A job with its runs in state running."""

    job: JobView
    runs: list[RunView]


class RunningList(View, frozen=True, kw_only=True):
    """Jobs that have a running run."""

    items: list[RunningJob]
    next: str | None = None
    partial: bool = False
    missing_shards: list[str] = []


class FieldErrorView(View, frozen=True, kw_only=True):
    """What is wrong with one field."""

    pointer: str
    detail: str


class Problem(View, frozen=True, kw_only=True):
    """RFC 9457 problem+json. `code` is stable."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldErrorView] = []
    request_id: str = ""


class BatchSpec(Wire, frozen=True, kw_only=True):
    """Up to 10,000 jobs at once."""

    jobs: Annotated[list[msgspec.Raw], Meta(max_length=10_000)]


class BatchItem(View, frozen=True, kw_only=True):
    """The fate of one job of a batch: its id, or what was wrong with it."""

    status: int
    id: str | None = None
    error: Problem | None = None


class BatchView(View, frozen=True, kw_only=True):
    """One result for each job, in order."""

    results: list[BatchItem]
    created: int
    failed: int


class BulkFilter(Wire, frozen=True, kw_only=True):
    """Which jobs; every filter given must hold, and at least one must be given."""

    name: str | None = None
    label: list[str] = []
    state: JobStateName | None = None
    task: Literal["function", "command", "http"] | None = None
    schedule: str | None = None
    q: str | None = None
    ids: Annotated[list[str], Meta(max_length=10_000)] = []


class BulkSpec(Wire, frozen=True, kw_only=True):
    """An action on all jobs that a filter finds; `dry_run` only counts."""

    filter: BulkFilter
    action: Literal["pause", "resume", "delete", "trigger"]
    dry_run: bool = False


class BulkView(View, frozen=True, kw_only=True):
    """How many jobs were found and changed, the first ids, and what failed."""

    action: str
    dry_run: bool
    matched: int
    changed: int
    ids: list[str]
    errors: list[BatchItem] = []


class PreviewSpec(Wire, frozen=True, kw_only=True):
    """A schedule to try out."""

    schedule: Annotated[str, Meta(max_length=16_384)]
    timezone: Annotated[str, Meta(max_length=100)] = "UTC"
    dst: Dst = "cron"
    from_: Annotated[Instant | None, Meta(description="now, if left out")] = msgspec.field(name="from", default=None)
    count: Annotated[int, Meta(ge=1, le=1000)] = 10
    start: Instant | None = None
    end: Instant | None = None
    calendar: Annotated[list[Annotated[str, Meta(max_length=10)]], Meta(max_length=1000)] = []
    job_id: str = ""


class OccurrenceView(View, frozen=True, kw_only=True):
    """One coming instant, and its local form."""

    at: str
    local: str
    moved_by_dst: bool = False
    note: str = ""


class PreviewView(View, frozen=True, kw_only=True):
    """The next times of a schedule."""

    schedule: str
    timezone: str
    kind: str
    description: str
    items: list[OccurrenceView]


class TermView(View, frozen=True, kw_only=True):
    """A scheduler's hold on a shard."""

    owner: str
    fence: int
    expires_at: str


class ShardView(View, frozen=True, kw_only=True):
    """A shard and its counts."""

    name: str
    state: str
    slots: int
    jobs: int
    waiting: int
    running: int
    term: TermView | None


class WorkerView(View, frozen=True, kw_only=True):
    """A worker as its last beat told it."""

    id: str
    state: str
    slots: int
    free: int
    labels: dict[str, str]
    beat_at: str
    clock_offset_ms: float


class ShardList(View, frozen=True, kw_only=True):
    """All shards."""

    items: list[ShardView]
    next: str | None = None
    partial: bool = False
    missing_shards: list[str] = []


class WorkerList(View, frozen=True, kw_only=True):
    """All workers."""

    items: list[WorkerView]
    next: str | None = None
    partial: bool = False
    missing_shards: list[str] = []


class LatenessView(View, frozen=True, kw_only=True):
    """Quantiles of lateness in ms since this servicer started, first attempts only."""

    count: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    late: int


class StatsView(View, frozen=True, kw_only=True):
    """Counts over all shards. `ended` counts finished runs by state."""

    jobs: int
    waiting: int
    dispatched: int
    running: int
    ended: dict[str, int]
    lateness: LatenessView
    workers: int
    partial: bool = False
    missing_shards: list[str] = []


class BlobView(View, frozen=True, kw_only=True):
    """A stored blob."""

    digest: str
    size: int


class LogPiece(View, frozen=True, kw_only=True):
    """Some bytes that a task wrote to one of its streams."""

    stream: str
    data: bytes


class EventView(View, frozen=True, kw_only=True):
    """A thing that happened; `data` is the run or the job's id and facts."""

    id: str
    type: str
    time: str
    run_id: str | None = None
    job_id: str | None = None
    data: dict[str, Any] = {}


class WebhookView(View, frozen=True, kw_only=True):
    """A webhook as the server that answers knows it: others send, and count, what they commit themselves."""

    name: str
    endpoint: str  # scheme, host and port; the path may be a secret
    events: list[str]
    state: Literal["unused", "ok", "failing", "gone"]
    waiting: int
    delivered: int
    failures_in_a_row: int
    dropped: dict[str, int]  # by reason: queue_full, attempts, refused, gone, stopped
    problem: str | None  # of the last failure
    delivered_at: str | None


class WebhookList(View, frozen=True, kw_only=True):
    """All webhooks of the server that answers."""

    items: list[WebhookView]


class VersionView(View, frozen=True, kw_only=True):
    """What answers."""

    version: str
    python: str
    tzdata: str
    sqlite: str | None = None
