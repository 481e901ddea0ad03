"""The Clock port: the real clock within what a test may wait, and the one moved by hand."""

from __future__ import annotations

import asyncio

import pytest

from duly.adapters.system_clock import SystemClock
from duly.testing import START, ManualClock, settle

MILLISECOND = 1_000
SECOND = 1_000_000


async def test_the_system_clock_tells_the_machines_time() -> None:
    """Microseconds: after 2025, before 2100; the monotonic one goes on."""
    clock = SystemClock()
    assert 1_735_689_600 * SECOND < clock.wall() < 4_102_444_800 * SECOND
    before = clock.monotonic()
    assert clock.monotonic() >= before


@pytest.mark.parametrize("duration", [-5, 0, 1, 300, 2_500])
async def test_the_system_clock_never_sleeps_too_short(duration: int) -> None:
    """By the monotonic clock."""
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(duration)
    assert clock.monotonic() - before >= duration


@pytest.mark.parametrize("clock", [SystemClock(), ManualClock()], ids=["system", "manual"])
async def test_wait_tells_whether_the_event_was_set(clock: SystemClock | ManualClock) -> None:
    """At once if it is set already; when it is set; or not."""
    event = asyncio.Event()
    event.set()
    assert await clock.wait(event, 0)
    assert await clock.wait(event, None)
    event.clear()
    for timeout in (None, 50 * SECOND):
        waiting = asyncio.ensure_future(clock.wait(event, timeout))
        await settle()
        assert not waiting.done()
        event.set()
        assert await waiting
        event.clear()
    waiting = asyncio.ensure_future(clock.wait(event, MILLISECOND))
    await settle()
    if isinstance(clock, ManualClock):
        await clock.advance(MILLISECOND)
    assert not await waiting


@pytest.mark.parametrize("clock", [SystemClock(), ManualClock()], ids=["system", "manual"])
async def test_a_wait_can_be_cancelled(clock: SystemClock | ManualClock) -> None:
    """As every sleep can."""
    for sleeping in (clock.wait(asyncio.Event(), 50 * SECOND), clock.sleep(50 * SECOND)):
        task = asyncio.ensure_future(sleeping)
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_the_manual_clock_stands_until_it_is_moved() -> None:
    """Both of its faces; the skew moves one."""
    clock = ManualClock()
    assert (clock.wall(), clock.monotonic()) == (START, 0)
    await clock.advance(7)
    assert (clock.wall(), clock.monotonic()) == (START + 7, 7)
    clock.skew -= 100
    assert (clock.wall(), clock.monotonic()) == (START - 93, 7)


async def test_the_manual_clock_wakes_sleepers_in_order_at_their_times() -> None:
    """Also those who go to sleep again on the way."""
    clock = ManualClock()
    woken: list[tuple[str, int]] = []

    async def sleeper(name: str, *naps: int) -> None:
        for nap in naps:
            await clock.sleep(nap)
            woken.append((name, clock.monotonic()))

    tasks = [asyncio.ensure_future(sleeper(*args)) for args in (("a", 30, 10), ("b", 10, 10, 100), ("c", 30))]
    await clock.advance(100)
    assert woken == [("b", 10), ("b", 20), ("a", 30), ("c", 30), ("a", 40)]
    assert clock.next_wake == 120
    await clock.advance(20)
    await asyncio.gather(*tasks)
    assert clock.next_wake is None
