"""Reports: batched, repeated until answered, never in the way of a lone event."""

from __future__ import annotations

from pathlib import Path

import pytest

from duly.core.messages import MAX_REPORT
from duly.roles.offset import Offset, OwnClock
from duly.testing import ManualClock
from workers.bench import Bench, call, working


async def _many(bench: Bench, count: int) -> None:
    for start in range(0, count, 500):
        await bench.assign(*[bench.make(call("nothing")) for _ in range(min(500, count - start))])


async def test_events_go_in_batches_and_none_is_told_twice(tmp_path: Path) -> None:
    async with working(tmp_path, functions_in="threads") as bench:
        await _many(bench, 2_000)
        await bench.until(lambda: len(bench.events) == 2_000)
        assert all(len(report.events) <= MAX_REPORT for report in bench.reports)
        assert len(bench.reports) < 200
        assert all(len(events) == 1 for events in bench.events.values())
        assert bench.reports[-1].capacity["process"] >= 2


async def test_a_report_that_is_not_answered_is_repeated_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import duly.roles.reporter as reporter

    monkeypatch.setattr(reporter, "ANSWER_WITHIN", 50_000)
    async with working(tmp_path, functions_in="threads") as bench:
        bench.deaf = 3
        run = await bench.give(call("nothing"))
        await bench.succeeded(run)
        assert bench.deaf == 0


async def test_only_what_may_win_the_next_time_is_told_again(tmp_path: Path) -> None:
    async with working(tmp_path, functions_in="threads") as bench:
        words = bench.worker.attempts.shards["s0"].reporter.words
        bench.refuse = ["lost_race"]
        await bench.succeeded(await bench.give(call("nothing")))
        bench.refuse = ["stale_attempt"]
        refused = await bench.give(call("nothing"))
        await bench.until(lambda: words["stale_attempt"])
        bench.refuse = ["duplicate"]
        doubled = await bench.give(call("nothing"))
        await bench.until(lambda: words["duplicate"])
        await bench.succeeded(await bench.give(call("nothing")))
        assert bench.ending(refused) is None
        assert bench.ending(doubled) is None
        assert dict(words) == {"lost_race": 1, "stale_attempt": 1, "duplicate": 1}


async def test_with_too_much_unanswered_no_more_work_is_taken(tmp_path: Path) -> None:
    async with working(tmp_path, functions_in="threads") as bench:
        reporter = bench.worker.attempts.shards["s0"].reporter
        bench.deaf = 1_000
        for start in range(0, 12_000, 500):
            await bench.assign(*[bench.make(call("nothing")) for _ in range(500)])
            await bench.until(lambda: len(bench.worker.attempts) < 1_000, str(start))
        await bench.until(lambda: reporter.backed_up)
        assert bench.worker.capacity("s0") == {"process": 0, "async": 0}


def test_the_offset_is_never_above_the_truth() -> None:
    """The low end of what the answers allow: a run may start late by it, never early."""
    offset = Offset()
    assert offset.value is None
    offset.add(1_000, 1_100, 501_050)
    assert (offset.value, offset.width) == (499_950, 100)
    offset.add(2_000, 2_040, 502_010)
    assert (offset.value, offset.width) == (499_970, 40)
    offset.add(3_000, 23_000, 513_000)  # a slow answer does not spoil what is known
    assert offset.value == 499_970
    assert offset.width <= 42


def test_a_shared_clock_is_read_and_not_estimated() -> None:
    """Whatever the answers say and however slow they are; a step is seen at once."""
    clock = ManualClock()
    offset = OwnClock(clock)
    offset.add(0, 900_000, 5)
    assert (offset.value, offset.width) == (clock.wall() - clock.monotonic(), 0)
    clock.skew += 3_600_000_000
    offset.hear(1_000_000, 5)
    assert offset.value == clock.wall() - clock.monotonic()


def test_a_clock_that_has_stepped_is_believed_anew() -> None:
    offset = Offset()
    for at in range(0, 10_000, 1_000):
        offset.add(at, at + 50, 1_000_000 + at + 25)
    offset.add(20_000, 20_050, 3_600_000_000 + 20_025)
    assert offset.value is not None
    assert abs(offset.value - 3_600_000_000) <= 25


def test_a_drifting_clock_is_followed() -> None:
    offset = Offset()
    for second in range(120):
        at = second * 1_000_000
        offset.add(at, at + 50, 5_000_000 + at + 25 + 10 * second)
    assert offset.value is not None
    assert abs(offset.value - 5_001_190) < 100
