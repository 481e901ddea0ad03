"""Metric names, and the only functions that record them.

Prometheus metrics live in a registry of this object's own, so that two dulys in one process stay apart.
Lateness is counted for first attempts, in buckets from 1 ms to 60 s, and kept in a sketch for quantiles.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import accumulate
from math import log
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from duly.core.model import Run, RunState

LATENESS_BUCKETS: Final = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip


class LatenessSketch:
    """Quantiles of lateness within 5 %: logarithmic buckets of µs, bounded in number.

    After the idea of DDSketch (https://arxiv.org/abs/1908.10693): a bucket is a power of 1.1.
    """

    _GROWTH: Final = math.log(1.1)
    _BUCKETS: Final = 256  # 1.1**256 µs is 11 hours; later than that is counted as that

    def __init__(self) -> None:
        self._counts = [0] * self._BUCKETS
        self.count = 0
        self.late = 0
        self.largest = 0

    def add(self, latenesses: Iterable[int]) -> None:
        """Count latenesses in µs."""
        counts, growth, last = self._counts, self._GROWTH, self._BUCKETS - 1
        for lateness in latenesses:
            index = 0 if lateness < 1 else min(last, int(log(lateness) / growth) + 1)
            counts[index] += 1
            self.count += 1
            if lateness > self.largest:
                self.largest = lateness

    def quantile(self, share: float) -> int | None:
        """The lateness in µs below which `share` of the runs started; None before the first."""
        if not self.count:
            return None
        rank = share * self.count
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return min(self.largest, int(math.exp(index * self._GROWTH)))
        return self.largest


class _LatenessHistogram(Collector):
    """The Prometheus histogram of lateness, fed by whole batches: one observation costs a bisection."""

    def __init__(self) -> None:
        self._bounds = [round(bound * 1e6) for bound in LATENESS_BUCKETS]
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0

    def add(self, latenesses: Iterable[int]) -> None:
        """Count latenesses in µs."""
        bounds, counts = self._bounds, self._counts
        for lateness in latenesses:
            counts[bisect_left(bounds, lateness)] += 1
            self._sum += lateness

    def collect(self) -> Iterable[Metric]:
        """The buckets, cumulated, with their bounds in seconds."""
        names = [*map(str, LATENESS_BUCKETS), "+Inf"]
        family = HistogramMetricFamily("duly_lateness_seconds", "First instruction minus due time, first attempts")
        family.add_metric([], list(zip(names, accumulate(self._counts), strict=True)), self._sum / 1e6)
        yield family


class _BrokerCounts(Collector):
    """A broker's own counters, by what they count."""

    def __init__(self, counters: Mapping[str, int]) -> None:
        self._counters = counters

    def collect(self) -> Iterable[Metric]:
        """One series for each; `refused.forged` is what="refused", reason="forged"."""
        family = CounterMetricFamily(
            "duly_broker_messages", "Messages between roles, by what became of them", labels=["what", "reason"]
        )
        for name, count in sorted(self._counters.items()):
            what, _, reason = name.partition(".")
            family.add_metric([what, reason], count)
        yield family


class Telemetry:
    """What one process counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.sketch = LatenessSketch()
        self._lateness = _LatenessHistogram()
        self.registry.register(self._lateness)
        self._late = Counter("duly_runs_late", "Runs past their max_lateness", ["cause"], registry=self.registry)
        self._ended = Counter("duly_runs_ended", "Runs by how they ended", ["state"], registry=self.registry)
        self._retried = Counter("duly_attempts_retried", "Attempts followed by another", registry=self.registry)
        self._refused = Counter(
            "duly_reports_refused", "Reports that changed nothing", ["code"], registry=self.registry
        )
        self._created = Counter("duly_jobs_created", "Jobs created", registry=self.registry)
        self._dispatched = Counter("duly_runs_dispatched", "Attempts given to workers", registry=self.registry)
        self._lost = Counter("duly_workers_lost", "Workers whose lease ended", registry=self.registry)
        self._requests = Counter("duly_http_requests", "HTTP requests", ["operation", "status"], registry=self.registry)
        self._agenda = Gauge("duly_agenda_runs", "Runs in the scheduler's window", ["shard"], registry=self.registry)
        self._fence = Gauge("duly_term_fence", "Fence of the term held, or 0", ["shard"], registry=self.registry)
        self._webhook_attempts = Counter(
            "duly_webhook_attempts", "Requests to webhooks", ["webhook", "outcome"], registry=self.registry
        )
        self._webhook_dropped = Counter(
            "duly_webhook_dropped", "Events that a webhook did not get", ["webhook", "reason"], registry=self.registry
        )
        self._webhook_waiting = Gauge(
            "duly_webhook_waiting", "Events that wait for a webhook", ["webhook"], registry=self.registry
        )
        self._ended_by_state = {state: self._ended.labels(state.word) for state in RunState if state.terminal}

    def runs_ended(self, runs: Iterable[Run]) -> None:
        """Runs that a commit has ended."""
        counts: dict[RunState, int] = {}
        for run in runs:
            counts[run.state] = counts.get(run.state, 0) + 1
        for state, count in counts.items():
            self._ended_by_state[state].inc(count)

    def runs_started(self, runs: Iterable[Run]) -> None:
        """Runs whose first attempt was seen to start for the first time."""
        latenesses: list[int] = []
        for run in runs:
            if run.lateness is not None:
                latenesses.append(run.lateness)
                if run.late:
                    self.sketch.late += 1
                    self._late.labels(run.late_cause or "unknown").inc()
        self.sketch.add(latenesses)
        self._lateness.add(latenesses)

    def attempt_retried(self, count: int = 1) -> None:
        """Attempts after which the run waits again."""
        self._retried.inc(count)

    def report_refused(self, code: str) -> None:
        """A report that changed nothing."""
        self._refused.labels(code).inc()

    def jobs_created(self, count: int) -> None:
        """Jobs that were written."""
        self._created.inc(count)

    def runs_dispatched(self, count: int) -> None:
        """Attempts given to workers."""
        self._dispatched.inc(count)

    def worker_lost(self, count: int = 1) -> None:
        """Workers whose lease ended."""
        self._lost.inc(count)

    def request(self, operation: str, status: int) -> None:
        """An HTTP request that was answered."""
        self._requests.labels(operation, str(status)).inc()

    def agenda(self, shard: str, runs: int) -> None:
        """The size of a scheduler's window."""
        self._agenda.labels(shard).set(runs)

    def fence(self, shard: str, fence: int) -> None:
        """The fence that this process holds on a shard, 0 for none."""
        self._fence.labels(shard).set(fence)

    def webhook_attempt(self, webhook: str, delivered: bool) -> None:
        """A request to a webhook."""
        self._webhook_attempts.labels(webhook, "delivered" if delivered else "failed").inc()

    def webhook_dropped(self, webhook: str, reason: str, count: int = 1) -> None:
        """Events that a webhook will not get."""
        self._webhook_dropped.labels(webhook, reason).inc(count)

    def webhook_waiting(self, webhook: str, events: int) -> None:
        """Events that wait for a webhook, those under way included."""
        self._webhook_waiting.labels(webhook).set(events)

    def watch_broker(self, counters: Mapping[str, int]) -> None:
        """Show what a broker counts. At most one broker a process."""
        self.registry.register(_BrokerCounts(counters))

    def render(self) -> tuple[bytes, str]:
        """All metrics in the Prometheus text format, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
