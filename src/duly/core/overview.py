"""What people watch: punctuality, failures, forecasts and timelines, as a dashboard and its JSON show them.

Instants are RFC 3339 UTC with microseconds and durations milliseconds, as elsewhere on the wire. Every view says
what it covers, because each is made from a bounded number of runs.
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import field

from duly.core.contract import JobView, RunView, View

LEVELS: Final = ("quiet", "punctual", "near", "late", "very_late", "failed", "missed")
"""How bad a cell is, from good to bad: no run · within half the margin · within it · past it · past ten times it ·
a run failed · a run never started."""

_FINGERPRINT_NOISE: Final = (
    (re.compile(r"0x[0-9a-fA-F]+"), "<hex>"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"\b[0-9a-f]{16,}\b"), "<hex>"),
    (re.compile(r"(/[\w.@+-]+){2,}"), "<path>"),
    (re.compile(r"[0-9]+"), "<n>"),
)


class Coverage(View, frozen=True, kw_only=True):
    """What figures are made of: runs scheduled since `since`; not `whole` when older ones of the day were not read."""

    since: str
    whole: bool


class Headline(View, frozen=True, kw_only=True):
    """The figures of a day, of runs that started; `missed` and `skipped` never did."""

    coverage: Coverage
    runs: int
    failed: int
    late: int
    missed: int
    skipped: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None


class Cell(View, frozen=True, kw_only=True):
    """One minute of one row. `level` is one of LEVELS."""

    minute: int  # 0 is the oldest shown
    runs: int
    late: int
    failed: int
    missed: int
    worst_ms: float | None
    level: int


class StripRow(View, frozen=True, kw_only=True):
    """A job or a shard, minute by minute; minutes without runs are left out."""

    id: str
    label: str
    runs: int
    late: int
    failed: int
    missed: int
    worst_ms: float | None
    margin_ms: float | None
    cells: list[Cell]


class Strip(View, frozen=True, kw_only=True):
    """The heat strip: `minutes` columns from `start` on; `more` rows had runs and are not shown."""

    start: str
    minutes: int
    kind: str
    rows: list[StripRow]
    more: int


class NamedRun(View, frozen=True, kw_only=True):
    """A run with the name of its job."""

    job_name: str
    run: RunView


class NamedRunList(View, frozen=True, kw_only=True):
    """A page of them."""

    items: list[NamedRun]
    next: str | None = None
    partial: bool = False
    missing_shards: list[str] = field(default_factory=list)


class Outcome(View, frozen=True, kw_only=True):
    """How one run ended, for a spark line."""

    run_id: str
    state: str
    late: bool
    lateness_ms: float | None


class JobSummary(View, frozen=True, kw_only=True):
    """A job with its last outcomes, oldest first."""

    job: JobView
    outcomes: list[Outcome]


class JobSummaryList(View, frozen=True, kw_only=True):
    """A page of them."""

    items: list[JobSummary]
    next: str | None = None
    partial: bool = False
    missing_shards: list[str] = field(default_factory=list)


class LatenessBar(View, frozen=True, kw_only=True):
    """Runs that started between two latenesses, by cause ("" for those within their margin)."""

    from_ms: float
    to_ms: float
    causes: dict[str, int]


class LatenessGroup(View, frozen=True, kw_only=True):
    """The lateness of a job, a shard or a worker."""

    id: str
    label: str
    runs: int
    late: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None


class LatenessReport(View, frozen=True, kw_only=True):
    """How late runs were, over `hours`."""

    coverage: Coverage
    hours: int
    runs: int
    late: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    bars: list[LatenessBar]
    causes: dict[str, int]
    per_minute: list[tuple[int, int, float | None]]  # minutes since 1970, runs, p99 in ms
    jobs: list[LatenessGroup]
    shards: list[LatenessGroup]
    workers: list[LatenessGroup]


class FailureGroup(View, frozen=True, kw_only=True):
    """Failures that look alike. `latest` are the newest run of each job, at most 20."""

    fingerprint: str
    kind: str
    message: str
    runs: int
    jobs: int
    first_seen: str
    last_seen: str
    latest: list[NamedRun]


class FailureReport(View, frozen=True, kw_only=True):
    """The failures inbox, made of the newest `read` failures since `since`; `more` lie behind them."""

    since: str
    read: int
    more: bool
    groups: list[FailureGroup]


class Span(View, frozen=True, kw_only=True):
    """One attempt on a timeline. `end` is None while it goes on."""

    run_id: str
    job_name: str
    attempt: int
    attempts: int
    worker: str
    lane: int
    state: str
    late: bool
    start: str
    end: str | None


class TimelineRow(View, frozen=True, kw_only=True):
    """A worker and the lanes that its runs took."""

    worker: str
    slots: int | None
    lanes: int
    spans: list[Span]


class Timeline(View, frozen=True, kw_only=True):
    """What ran where; `more` when the window has more runs than were read."""

    start: str
    end: str
    now: str
    rows: list[TimelineRow]
    more: bool


class Moved(View, frozen=True, kw_only=True):
    """An occurrence that a clock change puts elsewhere."""

    job_id: str
    job_name: str
    at: str
    local: str
    note: str


class Forecast(View, frozen=True, kw_only=True):
    """Runs a minute over the next 24 h, from the schedules of the `jobs_read` jobs read so far.

    `capacity` is how many runs of the mean duration the ready workers can take in a minute, None while no duration
    is known. `quiet` are the emptiest minutes, as offsets from `start`.
    """

    start: str
    made_at: str
    ready: bool
    jobs_read: int
    left_out: int
    per_minute: list[int]
    total: int
    capacity: float | None
    mean_duration_ms: float | None
    peaks: list[tuple[int, int]]
    quiet: list[int]
    clock_changes: list[str]
    moved: list[Moved]


def fingerprint_text(kind: str, message: str) -> str:
    """An error without what differs from one time to the next: numbers, addresses, ids, paths."""
    text = message[:400]
    for pattern, name in _FINGERPRINT_NOISE:
        text = pattern.sub(name, text)
    return f"{kind}: {text}"


def pack(spans: list[Span], slots: dict[str, int]) -> list[TimelineRow]:
    """Spans by worker, each on the first lane that is free at its start."""
    by_worker: dict[str, list[Span]] = {worker: [] for worker in slots}
    for span in spans:
        by_worker.setdefault(span.worker, []).append(span)
    rows = []
    for worker in sorted(by_worker):
        until: list[str] = []
        placed = []
        for span in sorted(by_worker[worker], key=lambda each: (each.start, each.run_id)):
            free = [lane for lane, end in enumerate(until) if end <= span.start]
            lane = free[0] if free else len(until)
            if lane == len(until):
                until.append("")
            until[lane] = span.end or "9999"
            fields = {name: getattr(span, name) for name in span.__struct_fields__}
            placed.append(Span(**(fields | {"lane": lane})))
        rows.append(TimelineRow(worker=worker, slots=slots.get(worker), lanes=max(1, len(until)), spans=placed))
    return rows
