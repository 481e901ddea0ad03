"""No run begins before its instant by the clock that its own code reads, whatever that clock has done since."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from duly.adapters.system_clock import SystemClock
from duly.core.model import HttpTask
from duly.core.steps import TOLERANCE
from workers.bench import call, shell, working

LEAD = 150_000  # µs


def _real() -> int:
    return time.time_ns() // 1_000  # noqa: TID251 - as the code of a run reads it


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs are staged by a clock that is so many µs ahead of what it shows later: it is set back meanwhile."""
    by = 20_000
    monkeypatch.setattr(SystemClock, "wall", lambda self: _real() + by)
    return by


@pytest.mark.parametrize("where", ["processes", "threads"])
@pytest.mark.parametrize("name", ["wall", "wall_async"])
@pytest.mark.usefixtures("ahead")
async def test_a_function_does_not_begin_early_when_the_clock_is_set_back_a_little(
    tmp_path: Path, where: Any, name: str
) -> None:
    mode = "async" if name.endswith("async") else "sync"
    async with working(tmp_path, functions_in=where, shares_clock=True) as bench:
        runs = [await bench.give(call(name, mode=mode), due=LEAD + 1_000 * index) for index in range(10)]
        for run in runs:
            began = msgspec.json.decode((await bench.succeeded(run)).result)
            assert began >= run.due_at


@pytest.mark.usefixtures("ahead")
async def test_a_command_does_not_begin_early_when_the_clock_is_set_back_a_little(tmp_path: Path) -> None:
    async with working(tmp_path, shares_clock=True) as bench:
        run = await bench.give(shell("date +%s%6N > output/began"), due=3 * LEAD)
        event = await bench.succeeded(run)
        began = b"".join([chunk async for chunk in bench.blobs.get(event.outputs[0].digest)])
        assert int(began) >= run.due_at


async def test_a_request_does_not_begin_early_when_the_clock_is_set_back_a_little(tmp_path: Path, ahead: int) -> None:
    task = HttpTask(method="GET", url="http://127.0.0.1:1/")
    async with working(tmp_path, shares_clock=True, allow_private_addresses=True) as bench:
        run = await bench.give(task, due=2 * LEAD)
        event = await bench.failed(run)
        assert event.started_at is not None
        assert event.started_at - ahead >= run.due_at


async def test_a_clock_that_was_set_back_for_good_does_not_hold_back_what_was_staged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SystemClock, "wall", lambda self: _real() + 3_600_000_000)
    async with working(tmp_path, functions_in="threads", shares_clock=True) as bench:
        run = await bench.give(call("wall"), due=LEAD)
        began = msgspec.json.decode((await bench.succeeded(run)).result)
        assert run.due_at - began > TOLERANCE
