"""No run starts before its instant, by the task's own look at the machine's clock."""

from __future__ import annotations

from collections.abc import Callable

from duly.core.instants import format_instant, parse_instant
from system.served import Served, until

RUNS = 300


def test_nothing_starts_early(serve: Callable[..., Served]) -> None:
    """Three hundred calls of time.time_ns, 5 ms apart: each tells a time at or after the one it was due at."""
    served = serve("--functions", "any")
    with served.start() as duly:
        base = parse_instant(duly.create(task={"kind": "function", "name": "time:time_ns"}, schedule="now").created_at)
        dues = [base + 1_500_000 + 5_000 * index for index in range(RUNS)]
        handles = duly.submit_many("time:time_ns", [()] * RUNS, at=[format_instant(due) for due in dues])
        assert len(handles) == RUNS

        def finished() -> bool:
            return duly.stats().ended.get("succeeded", 0) > RUNS

        until(finished, what="all runs")
        started = {run.scheduled_at: run.result for run in duly.runs(limit=1000).items if run.result is not None}
    early = [due - started[format_instant(due)] // 1_000 for due in dues if started[format_instant(due)] < due * 1_000]
    assert early == [], f"µs too early: {early}"
