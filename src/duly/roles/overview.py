"""What people watch: punctuality, what runs and what comes, lateness, failures, a timeline, a forecast, drains.

Each use-case reads a bounded number of rows, or none: figures over a day come from memory (`punctuality.py`), which
is filled from the store's newest history the first time that somebody looks, and from reports after that.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Sequence
from typing import Final, Literal

from duly.core import views
from duly.core.contract import RunView
from duly.core.errors import DulyError, NotFound
from duly.core.instants import DAY, HOUR, MINUTE, format_instant
from duly.core.messages import Rest, inbox
from duly.core.model import Job, JobId, Run, RunState, WorkerId
from duly.core.overview import (
    FailureGroup,
    FailureReport,
    Forecast,
    Headline,
    JobSummary,
    JobSummaryList,
    LatenessBar,
    LatenessGroup,
    LatenessReport,
    NamedRun,
    NamedRunList,
    Outcome,
    Span,
    Strip,
    StripRow,
    Timeline,
    fingerprint_text,
    pack,
)
from duly.ports import JobQuery, RunQuery
from duly.roles.history import STARTED_AND_ENDED, HistoryDesk
from duly.roles.punctuality import BUCKETS, CAUSES, GROWTH, Tally, Track, strip_row, trouble

FAILED: Final = (RunState.FAILED, RunState.LOST, RunState.QUARANTINED)
FAILURES_READ: Final = 500
SPANS_READ: Final = 300
BARS: Final = tuple(10 ** (step / 2) for step in range(2, 20))  # µs: half decades from 10 µs to 53 minutes
RETRIED_AT_ONCE: Final = 100


class OverviewDesk(HistoryDesk):
    """The use-cases of those who watch."""

    # -- home -----------------------------------------------------------------------------------------------

    async def headline(self, *, namespace: str | None = None) -> Headline:
        """The figures of the last 24 hours. Read: from memory, and at most 500 runs that never started."""
        now = await self._look()
        total = self.punctuality.total(namespace, (now - DAY) // MINUTE, now // MINUTE + 1)
        never = self._never_started(namespace, now - DAY)
        return Headline(
            coverage=self._coverage(now, DAY),
            runs=total.runs,
            failed=total.failed,
            late=total.late,
            missed=sum(run.state is RunState.MISSED for run in never),
            skipped=sum(run.state is RunState.SKIPPED for run in never),
            p50_ms=_ms(total.quantile(0.5)),
            p99_ms=_ms(total.quantile(0.99)),
            max_ms=_ms(total.worst if total.runs else None),
        )

    def _never_started(self, namespace: str | None, since: int) -> list[Run]:
        jobs = self._never_jobs
        return [
            run
            for run in self._never
            if run.scheduled_at >= since and run.job_id in jobs and namespace in (None, jobs[run.job_id].namespace)
        ]

    async def strip(
        self, *, namespace: str | None = None, kind: Literal["job", "shard"] = "job", minutes: int = 60, rows: int = 24
    ) -> Strip:
        """The heat strip, worst rows first and then the ones that ran last; 15 to 180 minutes, at most 60 rows."""
        now = await self._look()
        minutes, rows = max(15, min(minutes, 180)), max(1, min(rows, 60))
        first = now // MINUTE - minutes + 1
        missed: dict[str, dict[int, int]] = {}
        for run in self._never_started(namespace, first * MINUTE):
            if run.state is RunState.MISSED:
                row = run.job_id if kind == "job" else self._store.shard_of(run.job_id)
                counts = missed.setdefault(row, {})
                counts[run.scheduled_at // MINUTE] = counts.get(run.scheduled_at // MINUTE, 0) + 1
        found: list[StripRow] = []
        tracks = dict(self.punctuality.tracks(namespace, kind))
        for name in missed:
            if name not in tracks:
                job = self._never_jobs.get(JobId(name))
                label, margin = (name, None) if job is None else (job.name or job.id, job.max_lateness)
                tracks[name] = Track("", label, margin)
        for name, track in tracks.items():
            made = strip_row(name, track, first, minutes, missed.get(name, {}))
            if made is not None:
                found.append(made)
        found.sort(key=lambda row: (-trouble(row), -row.cells[-1].minute, row.label))
        return Strip(
            start=format_instant(first * MINUTE),
            minutes=minutes,
            kind=kind,
            rows=found[:rows],
            more=max(0, len(found) - rows),
        )

    async def running_now(self, *, namespace: str | None = None, limit: int = 12) -> NamedRunList:
        """Runs in state running, newest first."""
        return await self.named_runs(RunQuery(namespace=namespace, states=(RunState.RUNNING,), limit=limit))

    async def due_next(self, *, namespace: str | None = None, limit: int = 12) -> NamedRunList:
        """Runs that wait or are staged, the earliest first."""
        states = (RunState.WAITING, RunState.DISPATCHED)
        return await self.named_runs(RunQuery(namespace=namespace, states=states, oldest_first=True, limit=limit))

    async def named_runs(self, query: RunQuery) -> NamedRunList:
        """A page of runs with the names of their jobs."""
        page = await self._store.page_runs(query)
        return NamedRunList(
            items=await self._named(page.items),
            next=page.next,
            partial=bool(page.missing),
            missing_shards=list(page.missing),
        )

    async def _named(self, runs: Sequence[Run]) -> list[NamedRun]:
        jobs = await self._jobs(run.job_id for run in runs)
        return [NamedRun(job_name=_name(jobs.get(run.job_id), run.job_id), run=self._run_view(run)) for run in runs]

    # -- jobs -----------------------------------------------------------------------------------------------

    async def job_summaries(self, query: JobQuery, *, outcomes: int = 30) -> JobSummaryList:
        """A page of jobs with their last outcomes: one read of at most `outcomes` runs a job."""
        page = await self._store.page_jobs(query)
        read = await asyncio.gather(*(self._outcomes(row.job.id, outcomes) for row in page.items))
        items = [
            JobSummary(
                job=views.job_view(row.job, next_run_at=row.next_run_at, last_run=row.last_run, finished=row.finished),
                outcomes=ends,
            )
            for row, ends in zip(page.items, read, strict=True)
        ]
        return JobSummaryList(
            items=items, next=page.next, partial=bool(page.missing), missing_shards=list(page.missing)
        )

    async def outcomes(self, job_id: str, *, limit: int = 30) -> list[Outcome]:
        """The last outcomes of a job that the caller may see, oldest first."""
        return await self._outcomes(JobId(job_id), limit)

    async def _outcomes(self, job_id: JobId, limit: int) -> list[Outcome]:
        states = tuple(state for state in RunState if state.terminal)
        page = await self._store.page_runs(RunQuery(job_id=job_id, states=states, limit=limit))
        return [
            Outcome(run_id=run.id, state=run.state.word, late=run.late, lateness_ms=_ms(run.lateness))
            for run in reversed(page.items)
        ]

    # -- lateness -------------------------------------------------------------------------------------------

    async def lateness(self, *, namespace: str | None = None, hours: int = 24, groups: int = 12) -> LatenessReport:
        """How late runs were over the last 1 to 24 hours, from memory alone."""
        now = await self._look()
        hours = max(1, min(hours, 24))
        first = (now - hours * HOUR) // MINUTE
        minutes = self.punctuality.by_minute(namespace, first, now // MINUTE + 1)
        total = Tally()
        for tally in minutes.values():
            total.take(tally)
        causes: dict[str, int] = {}
        counts: list[dict[str, int]] = [{} for _ in range(len(BARS) + 1)]
        for mark, count in total.marks.items():
            cause, bucket = CAUSES[mark // BUCKETS], mark % BUCKETS
            value = math.exp((bucket - 0.5) * GROWTH) if bucket else 0.0
            place = sum(value >= bound for bound in BARS)
            counts[place][cause] = counts[place].get(cause, 0) + count
            if cause:
                causes[cause] = causes.get(cause, 0) + count
        bounds = [0.0, *BARS, BARS[-1] * math.sqrt(10)]
        bars = [
            LatenessBar(from_ms=bounds[place] / 1000, to_ms=bounds[place + 1] / 1000, causes=counts[place])
            for place in range(len(counts))
        ]
        while len(bars) > 12 and not bars[-1].causes:
            bars.pop()
        first_hour = (now - hours * HOUR) // HOUR + (1 if hours > 1 else 0)
        made: dict[str, list[LatenessGroup]] = {}
        for kind in ("job", "shard", "worker"):
            found = self.punctuality.groups(namespace, kind, first_hour)
            worst = sorted(found.items(), key=lambda item: (-item[1].late, -item[1].worst))[:groups]
            names = await self._jobs(JobId(name) for name, _ in worst) if kind == "job" else {}
            made[kind] = [
                LatenessGroup(
                    id=name,
                    label=_name(names.get(JobId(name)), name) if kind == "job" else name,
                    runs=tally.runs,
                    late=tally.late,
                    p50_ms=_ms(tally.quantile(0.5)),
                    p99_ms=_ms(tally.quantile(0.99)),
                    max_ms=_ms(tally.worst),
                )
                for name, tally in worst
            ]
        return LatenessReport(
            coverage=self._coverage(now, hours * HOUR),
            hours=hours,
            runs=total.runs,
            late=total.late,
            p50_ms=_ms(total.quantile(0.5)),
            p99_ms=_ms(total.quantile(0.99)),
            max_ms=_ms(total.worst if total.runs else None),
            bars=bars,
            causes=dict(sorted(causes.items(), key=lambda item: -item[1])),
            per_minute=[(minute, tally.runs, _ms(tally.quantile(0.99))) for minute, tally in sorted(minutes.items())],
            jobs=made["job"],
            shards=made["shard"],
            workers=made["worker"],
        )

    # -- failures -------------------------------------------------------------------------------------------

    async def failures(self, *, namespace: str | None = None, days: int = 7) -> FailureReport:
        """Failures that look alike, of the newest 500 of the last 1 to 30 days."""
        since, page = await self._failed(namespace, days)
        grouped: dict[str, list[Run]] = {}
        texts: dict[str, tuple[str, str]] = {}
        for run in page:
            fingerprint, kind, message = _fingerprint(run)
            grouped.setdefault(fingerprint, []).append(run)
            texts.setdefault(fingerprint, (kind, message))
        groups = []
        for fingerprint, runs in grouped.items():
            newest: dict[JobId, Run] = {}
            for run in runs:
                newest.setdefault(run.job_id, run)
            seen = [run.finished_at or run.scheduled_at for run in runs]
            kind, message = texts[fingerprint]
            groups.append(
                FailureGroup(
                    fingerprint=fingerprint,
                    kind=kind,
                    message=message,
                    runs=len(runs),
                    jobs=len(newest),
                    first_seen=format_instant(min(seen)),
                    last_seen=format_instant(max(seen)),
                    latest=await self._named(list(newest.values())[:20]),
                )
            )
        groups.sort(key=lambda group: group.last_seen, reverse=True)
        return FailureReport(
            since=format_instant(since), read=len(page), more=len(page) == FAILURES_READ, groups=groups
        )

    async def _failed(self, namespace: str | None, days: int) -> tuple[int, Sequence[Run]]:
        since = await self._store.now() - max(1, min(days, 30)) * DAY
        page = await self._store.page_runs(
            RunQuery(namespace=namespace, states=FAILED, since=since, limit=FAILURES_READ)
        )
        return since, page.items

    async def retry_failures(self, fingerprint: str, *, namespace: str | None = None, days: int = 7) -> list[RunView]:
        """Run the newest failed run of each job of a group again, at most 100 jobs. Raises NotFound for no group.

        A job that was deleted is left out.
        """
        _, page = await self._failed(namespace, days)
        newest: dict[JobId, Run] = {}
        for run in page:
            if _fingerprint(run)[0] == fingerprint:
                newest.setdefault(run.job_id, run)
        if not newest:
            raise NotFound("no failure of the last days has this fingerprint")
        retried = []
        for run in list(newest.values())[:RETRIED_AT_ONCE]:
            try:
                retried.append(await self.retry_run(run.id, namespace=namespace))
            except DulyError as error:
                if error.status not in (404, 409):
                    raise
        return retried

    # -- timeline -------------------------------------------------------------------------------------------

    async def timeline(self, *, namespace: str | None = None, end: int | None = None, span: int = HOUR) -> Timeline:
        """What ran where in a window of a minute to a day that ends at `end` (µs UTC, now if None).

        Read: at most 300 runs scheduled in the window, those that began to wait before it and still run among them.
        """
        now = await self._store.now()
        span = max(MINUTE, min(span, DAY))
        end = now + span // 20 if end is None else end
        start = end - span
        ended = await self._store.page_runs(
            RunQuery(
                namespace=namespace,
                states=STARTED_AND_ENDED,
                since=start - min(span, HOUR),
                until=end,
                limit=SPANS_READ,
            )
        )
        out = await self._store.page_runs(RunQuery(namespace=namespace, states=(RunState.RUNNING,), limit=SPANS_READ))
        jobs = await self._jobs(run.job_id for run in (*ended.items, *out.items))
        spans = []
        for run in {run.key: run for run in (*out.items, *ended.items)}.values():
            view = self._run_view(run)
            for attempt in view.attempts:
                if attempt.started_at is None or attempt.started_at >= format_instant(end):
                    continue
                if attempt.finished_at is not None and attempt.finished_at < format_instant(start):
                    continue
                spans.append(
                    Span(
                        run_id=view.id,
                        job_name=_name(jobs.get(run.job_id), run.job_id),
                        attempt=attempt.number,
                        attempts=len(view.attempts),
                        worker=attempt.worker,
                        lane=0,
                        state=attempt.state,
                        late=view.late and attempt.number == 1,
                        start=attempt.started_at,
                        end=attempt.finished_at,
                    )
                )
        slots: dict[str, int] = {}
        for shard in await self._store.stats():
            slots |= {worker.id: worker.slots for worker in shard.workers if worker.state != "lost"}
        return Timeline(
            start=format_instant(start),
            end=format_instant(end),
            now=format_instant(now),
            rows=pack(spans, slots),
            more=len(ended.items) == SPANS_READ,
        )

    # -- forecast -------------------------------------------------------------------------------------------

    async def forecast(self, *, namespace: str | None = None) -> Forecast:
        """The next 24 hours, as far as they are worked out; the first answer may come before all jobs are read."""
        now = await self._look()
        slots = sum(
            {worker.id: worker.slots for shard in await self._store.stats() for worker in shard.workers
             if worker.state == "ready"}.values()
        )  # fmt: skip
        total = self.punctuality.total(None, (now - DAY) // MINUTE, now // MINUTE + 1)
        mean = max(1, total.busy // total.runs) if total.runs else None
        return await self.forecaster.forecast(namespace, slots=slots, mean_duration=mean)

    # -- cluster --------------------------------------------------------------------------------------------

    async def rest_worker(self, worker: str, *, on: bool) -> None:
        """Let a worker take nothing new (what it runs goes on), or take work again. Raises NotFound.

        It is a message: a worker that cannot be reached does not hear it, and a restarted one has forgotten it.
        """
        known = {each.id for shard in await self._store.stats() for each in shard.workers if each.state != "lost"}
        if worker not in known:
            raise NotFound(f"there is no worker {worker[:80]!r}")
        await self._broker.publish(inbox(WorkerId(worker)), Rest(on=on))


def _fingerprint(run: Run) -> tuple[str, str, str]:
    """(twelve hexadecimal digits, kind, message as it was)."""
    kind = run.error.kind if run.error is not None else run.state.word
    message = run.error.message if run.error is not None else run.reason or f"ended as {run.state.word}"
    digest = hashlib.sha256(fingerprint_text(kind, message).encode()).hexdigest()
    return digest[:12], kind, message[:400]


def _name(job: Job | None, otherwise: str) -> str:
    return otherwise if job is None else job.name or job.id


def _ms(us: int | None) -> float | None:
    return None if us is None else us / 1000
