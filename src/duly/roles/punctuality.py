"""What a servicer remembers of the runs that ended: how late they were, by minute, job, shard, worker and cause.

    reports ─▶ EventLog ─▶ ended()  ─▶ tallies by minute (a day) and by hour (job, shard, worker)
    store   ─▶ learn()  ─┘           └▶ tracks by job and shard (three hours of minutes)

All of it is a cache of the store's history and bounded: past a bound the entry longest without a run is forgotten.
Of a large batch of punctual runs only some are looked at, each for several; late and failed ones all, as far as
the bound of a batch allows.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from math import log
from typing import Final, TypeVar

from duly.core.instants import DAY, HOUR, MINUTE
from duly.core.model import Job, Run, RunKey, RunState
from duly.core.overview import Cell, StripRow

K = TypeVar("K")

GROWTH: Final = math.log(1.1)
BUCKETS: Final = 256  # 1.1**256 µs is 11 hours
DAY_MINUTES: Final = DAY // MINUTE
TALLIES: Final = 20_000  # minutes of namespaces
HOURS: Final = 6_000  # hours of jobs, shards and workers
TRACKS: Final = 500  # jobs and shards that are remembered minute by minute
TRACK_MINUTES: Final = 180
LOOKED_AT: Final = 64  # runs of one batch
KNOWN: Final = 20_000  # runs that are told from new ones when the store is read
CAUSES: Final = ("", "no_capacity", "overlap", "catch_up", "failover", "code_fetch", "throttled", "clock", "unknown")
_CAUSE_NUMBER: Final = {name: number for number, name in enumerate(CAUSES)}


class Tally:
    """Runs of one stretch of time. `marks`: cause number * BUCKETS + bucket → runs."""

    __slots__ = ("busy", "failed", "late", "marks", "runs", "worst")

    def __init__(self) -> None:
        self.runs = 0
        self.late = 0
        self.failed = 0
        self.busy = 0  # µs that they ran
        self.worst = 0
        self.marks: dict[int, int] = {}

    def add(self, mark: int, lateness: int, late: bool, failed: bool, busy: int, weight: int) -> None:
        """Count one run for `weight` of them."""
        self.runs += weight
        self.marks[mark] = self.marks.get(mark, 0) + weight
        self.busy += busy * weight
        if lateness > self.worst:
            self.worst = lateness
        if late:
            self.late += weight
        if failed:
            self.failed += weight

    def take(self, other: Tally) -> None:
        """Count what another has counted."""
        self.runs += other.runs
        self.late += other.late
        self.failed += other.failed
        self.busy += other.busy
        self.worst = max(self.worst, other.worst)
        for mark, count in other.marks.items():
            self.marks[mark] = self.marks.get(mark, 0) + count

    def quantile(self, share: float) -> int | None:
        """The lateness in µs below which `share` of the runs started; None before the first."""
        if not self.runs:
            return None
        buckets: dict[int, int] = {}
        for mark, count in self.marks.items():
            buckets[mark % BUCKETS] = buckets.get(mark % BUCKETS, 0) + count
        rank, seen = share * self.runs, 0
        for bucket in sorted(buckets):
            seen += buckets[bucket]
            if seen >= rank:
                return min(self.worst, int(math.exp(bucket * GROWTH)))
        return self.worst


class Track:
    """One row of the heat strip: minute → [runs, late, failed, worst µs, worst share of the margin]."""

    __slots__ = ("cells", "label", "margin", "namespace")

    def __init__(self, namespace: str, label: str, margin: int | None) -> None:
        self.namespace = namespace
        self.label = label
        self.margin = margin
        self.cells: dict[int, list[float]] = {}

    def add(self, minute: int, lateness: int, share: float, late: bool, failed: bool, weight: int) -> None:
        """Count one run for `weight` of them."""
        cell = self.cells.get(minute)
        if cell is None:
            if len(self.cells) >= TRACK_MINUTES:
                del self.cells[min(self.cells)]
            cell = self.cells[minute] = [0, 0, 0, 0, 0.0]
        cell[0] += weight
        if late:
            cell[1] += weight
        if failed:
            cell[2] += weight
        cell[3] = max(cell[3], lateness)
        cell[4] = max(cell[4], share)


class Punctuality:
    """The memory. `since` is the instant from which runs are told by reports; older ones come from the store."""

    def __init__(self) -> None:
        self.since = 0
        self.known_from = 0  # runs scheduled from here on are counted
        self.whole = False
        self.minutes: OrderedDict[tuple[str, int], Tally] = OrderedDict()
        self.hours: OrderedDict[tuple[str, int, str, str], Tally] = OrderedDict()
        self.jobs: OrderedDict[str, Track] = OrderedDict()
        self.shards: OrderedDict[tuple[str, str], Track] = OrderedDict()
        self._known: dict[RunKey, None] = {}
        self._known_before: dict[RunKey, None] = {}

    def ended(self, pairs: Sequence[tuple[Run, Job]], shard: str) -> None:
        """Runs of one shard that a report ended."""
        self._know([(run.job_id, run.scheduled_at) for run, _ in pairs])
        if len(pairs) <= LOOKED_AT:
            for run, job in pairs:
                self._count(run, job, shard, 1)
        else:
            self._sample(pairs, shard)

    def _know(self, keys: Iterable[RunKey]) -> None:
        """Remember them at least until `KNOWN` others have come."""
        if len(self._known) >= KNOWN:
            self._known_before, self._known = self._known, {}
        self._known.update(dict.fromkeys(keys))

    def _sample(self, pairs: Sequence[tuple[Run, Job]], shard: str) -> None:
        succeeded = RunState.SUCCEEDED
        plain: list[tuple[Run, Job]] = []
        odd: list[tuple[Run, Job]] = []
        for pair in pairs:
            run = pair[0]
            (odd if run.late or run.state is not succeeded else plain).append(pair)
        for group in (plain, odd):
            step = max(1, len(group) // LOOKED_AT)
            for start in range(0, len(group), step):
                self._count(group[start][0], group[start][1], shard, min(step, len(group) - start))

    def learn(self, pairs: Iterable[tuple[Run, Job]], shard_of: dict[str, str]) -> None:
        """Runs that were read from the store; those that were counted before are left out."""
        for run, job in pairs:
            if run.key not in self._known and run.key not in self._known_before:
                if run.finished_at is not None and run.finished_at >= self.since:
                    self._know([run.key])
                self._count(run, job, shard_of[job.id], 1)

    def _count(self, run: Run, job: Job, shard: str, weight: int) -> None:
        lateness = run.lateness
        if lateness is None or run.started_at is None:
            return
        lateness = max(0, lateness)
        bucket = 0 if lateness < 1 else min(BUCKETS - 1, int(log(lateness) / GROWTH) + 1)
        late = run.late
        mark = (_CAUSE_NUMBER[run.late_cause or "unknown"] * BUCKETS if late else 0) + bucket
        failed = run.state is not RunState.SUCCEEDED and run.state is not RunState.CANCELLED
        busy = 0 if run.finished_at is None else max(0, run.finished_at - run.started_at)
        namespace, at = job.namespace, run.scheduled_at
        minute, hour = at // MINUTE, at // HOUR
        _entry(self.minutes, (namespace, minute), TALLIES).add(mark, lateness, late, failed, busy, weight)
        for kind, name in (("job", job.id), ("shard", shard), ("worker", run.worker)):
            _entry(self.hours, (namespace, hour, kind, name), HOURS).add(mark, lateness, late, failed, busy, weight)
        share = lateness / max(1, job.max_lateness)
        track = self.jobs.get(job.id)
        if track is None:
            track = self.jobs[job.id] = Track(namespace, job.name or job.id, job.max_lateness)
            if len(self.jobs) > TRACKS:
                self.jobs.popitem(last=False)
        else:
            track.label, track.margin = job.name or job.id, job.max_lateness
            self.jobs.move_to_end(job.id)
        track.add(minute, lateness, share, late, failed, weight)
        place = self.shards.get((namespace, shard))
        if place is None:
            place = self.shards[namespace, shard] = Track(namespace, shard, None)
            if len(self.shards) > TRACKS:
                self.shards.popitem(last=False)
        place.add(minute, lateness, share, late, failed, weight)

    # -- reading --------------------------------------------------------------------------------------------

    def total(self, namespace: str | None, first: int, last: int) -> Tally:
        """All runs scheduled in the minutes `first` to `last`."""
        found = Tally()
        for (name, minute), tally in self.minutes.items():
            if first <= minute <= last and namespace in (None, name):
                found.take(tally)
        return found

    def by_minute(self, namespace: str | None, first: int, last: int) -> dict[int, Tally]:
        """The minutes `first` to `last` that had runs."""
        found: dict[int, Tally] = {}
        for (name, minute), tally in self.minutes.items():
            if first <= minute <= last and namespace in (None, name):
                found.setdefault(minute, Tally()).take(tally)
        return found

    def groups(self, namespace: str | None, kind: str, first_hour: int) -> dict[str, Tally]:
        """By job, shard or worker, from an hour on."""
        found: dict[str, Tally] = {}
        for (name, hour, its_kind, its_name), tally in self.hours.items():
            if hour >= first_hour and its_kind == kind and namespace in (None, name):
                found.setdefault(its_name, Tally()).take(tally)
        return found

    def tracks(self, namespace: str | None, kind: str) -> Iterator[tuple[str, Track]]:
        """The rows of a strip: of kind `job` or `shard`."""
        if kind == "shard":
            for (name, shard), track in self.shards.items():
                if namespace in (None, name):
                    yield shard, track
            return
        for job_id, track in self.jobs.items():
            if namespace in (None, track.namespace):
                yield job_id, track


def _entry(tallies: OrderedDict[K, Tally], key: K, most: int) -> Tally:
    found = tallies.get(key)
    if found is None:
        found = tallies[key] = Tally()
        if len(tallies) > most:
            tallies.popitem(last=False)
    return found


def strip_row(name: str, track: Track, first: int, minutes: int, missed: dict[int, int]) -> StripRow | None:
    """The track's minutes from `first` on, with the runs that were missed; None if there are none."""
    cells = []
    for minute in sorted({*track.cells, *missed}):
        if not first <= minute < first + minutes:
            continue
        runs, late, failed, worst, share = track.cells.get(minute, (0, 0, 0, 0, 0.0))
        lost = missed.get(minute, 0)
        level = 1 if share <= 0.5 else 2 if share <= 1 else 3 if share <= 10 else 4
        level = 6 if lost else 5 if failed else level
        worst_ms = worst / 1000 if runs else None
        cells.append(
            Cell(
                minute=minute - first,
                runs=int(runs),
                late=int(late),
                failed=int(failed),
                missed=lost,
                worst_ms=worst_ms,
                level=level,
            )
        )
    if not cells:
        return None
    worsts = [cell.worst_ms for cell in cells if cell.worst_ms is not None]
    return StripRow(
        id=name,
        label=track.label,
        runs=sum(cell.runs for cell in cells),
        late=sum(cell.late for cell in cells),
        failed=sum(cell.failed for cell in cells),
        missed=sum(cell.missed for cell in cells),
        worst_ms=max(worsts, default=None),
        margin_ms=None if track.margin is None else track.margin / 1000,
        cells=cells,
    )


def trouble(row: StripRow) -> int:
    """Rows by how much they want to be seen."""
    return 4 * bool(row.missed) + 2 * bool(row.failed) + bool(row.late)
