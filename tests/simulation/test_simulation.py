"""Real roles in virtual time: seeds that must be clean, seeds that must replay, and mutants that must be caught."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from random import Random  # noqa: TID251 - a simulation is made of chance, all of it from one seed

import pytest

from simulation.loop import LIFE, SECOND, Deadlock, Life, NodeClock, VirtualLoop
from simulation.mutants import MUTANTS, hunt
from simulation.sweep import sweep
from simulation.world import simulate

TESTS = Path(__file__).parent.parent
CLEAN = 48  # seeds in the gate; `make soak` runs thousands
BATCH = 6

# Each found something once, in a small world. What, is told by the commit that mended it.
REGRESSIONS = (
    1,  # a report that was decided before a cancel undid it
    2,  # an occurrence cancelled ahead of its time ended the schedule at the next change
    12,  # a Violation inside a task of the world went unnoticed
    17,  # what a scheduler had committed and not sent before it died was sent by nobody
    19,  # a fixed-delay job that was resumed had no run
    28,  # an at-most-once run was started again: its worker had begun it without a valid lease
    33,  # a takeover that failed half-way led without knowing what was out
    36,  # behind a slow store, beats of seconds ago were believed
    41,  # a cancel for overlap gave up an attempt that was just being committed
    50,  # a schedule ended at an occurrence that was waiting to be tried again
    85,  # as 2, with a change of the schedule
    1016,  # an attempt was given to a worker that had not been told of its lease, and so did not stop in time
    1071,  # a worker that came back under a new id took its Assigns for doubles of the former one's
    20,  # a fixed delay that became `every 10s` took its last end along, and waited for it once the clock was set back
    116,  # a paused job's next run, opened by an end decided before the pause, was started
)
OF_THE_RING = (
    8,  # once the clock had been set back, a job that was resumed waited for an instant before it was made
    13,  # a change of a job took a shard that did not answer for one without waiting runs; a scheduler with an older
    # slot map than its shard's looked for a run on another shard, and took it for ended
)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(0, CLEAN, BATCH))
def test_no_invariant_breaks_whatever_happens(first: int) -> None:
    """Crashes, freezes, partitions, lost and doubled messages, unknown outcomes, steps of clocks: all promises hold."""
    swept = sweep(range(first, first + BATCH))
    assert [outcome.violation for outcome in swept.violations] == []
    assert swept.counts["firings"] > 100
    assert swept.counts["terms"] > BATCH
    assert sum(swept.faults.values()) > 10 * BATCH


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_sweep_is_not_clean_for_want_of_trouble() -> None:
    """Every kind of fault, refusal, takeover and second attempt has happened somewhere in a few seeds."""
    swept = sweep(range(200, 216))
    assert swept.violations == []
    assert swept.missing() == []


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_a_seed_that_found_something_is_clean_now(seed: int) -> None:
    """Failing seeds are kept."""
    assert simulate(seed, shape="small").violation is None


@pytest.mark.parametrize("seed", OF_THE_RING)
def test_a_seed_of_three_shards_that_found_something_is_clean_now(seed: int) -> None:
    """Failing seeds of large worlds are kept, too."""
    assert simulate(seed, shape="ring").violation is None


def test_the_same_seed_is_the_same_world() -> None:
    """The trace of every accepted transition is the same, in another process with other hashes of strings too."""
    here = simulate(7)
    assert simulate(7).trace == here.trace
    assert simulate(8).trace != here.trace
    code = "from simulation.world import simulate; print(simulate(7).trace)"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(TESTS)}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here.trace


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_caught(mutant: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With one safeguard taken away, the referee notices within fifty seeds."""
    catch = hunt(mutant)
    assert catch.caught is not None, f"{mutant} survived: an invariant is missing"
    with capsys.disabled():
        where = f"seeds {catch.seeds:2}  {catch.shape:6} invariant {catch.caught[0]:2}, {catch.caught[1]}"
        sys.stdout.write(f"\n{mutant:34} {where}\n")


# -- the loop itself ----------------------------------------------------------------------------------------


def test_time_moves_only_when_nothing_can_run() -> None:
    """An hour of sleep takes no time, and ends at its microsecond."""
    loop = VirtualLoop(Random(1))
    clock = NodeClock(loop)
    loop.run_until_complete(clock.sleep(3600 * SECOND + 1))
    assert clock.monotonic() == 3600 * SECOND + 1
    loop.end()


def test_a_killed_process_runs_nothing_more() -> None:
    """No `finally`, no `except`: it is dropped where it stands."""
    loop = VirtualLoop(Random(1))
    clock, life, told = NodeClock(loop), Life("a", 1, 0), []

    async def work() -> None:
        try:
            await clock.sleep(10)
            told.append("woken")
        finally:
            told.append("cleaned up")

    async def world() -> None:
        loop.start(life, work())
        await clock.sleep(5)
        life.up = False
        await clock.sleep(20)
        assert told == []

    loop.run_until_complete(loop.start(None, world()))
    loop.end()


def test_a_frozen_process_goes_on_later() -> None:
    """What came due meanwhile runs when it is thawed, not before."""
    loop = VirtualLoop(Random(1))
    clock, life, woken = NodeClock(loop), Life("a", 1, 0), []

    async def work() -> None:
        assert LIFE.get() is life
        await clock.sleep(10)
        woken.append(clock.monotonic())

    async def world() -> None:
        loop.start(life, work())
        await clock.sleep(5)
        life.frozen = True
        await clock.sleep(100)
        assert woken == []
        loop.thaw(life)
        await clock.sleep(1)
        assert woken == [105]

    loop.run_until_complete(loop.start(None, world()))
    loop.end()


def test_a_loop_without_anything_to_come_says_so() -> None:
    """Instead of waiting for ever."""
    loop = VirtualLoop(Random(1))

    async def forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        loop.run_until_complete(forever())
    loop.end()
