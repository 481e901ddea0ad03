"""The worker as a role: what it takes, holds, tells and lets go."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from duly.core.messages import Assign, Assignment, Released, inbox
from duly.core.model import WorkerId
from duly.roles.attempts import Shard
from duly.roles.offset import Offset
from duly.tasks.attempt import BACKLOG, MAX_BACKLOG, UNMEASURED, Tempo
from workers.bench import SECOND, call, shell, working


async def test_the_first_beat_comes_at_once_with_what_the_worker_is(tmp_path: Path) -> None:
    async with working(tmp_path, functions_in="threads", slots=3, labels={"zone": "eu"}) as bench:
        beat = bench.beats[0]
        assert beat.worker.id == "w"
        assert beat.worker.slots == 3
        assert beat.worker.labels == {"zone": "eu"}
        assert beat.worker.functions is None  # anything importable
        assert beat.worker.state == "ready"
        assert beat.held == ()
        assert beat.capacity == {"process": 0, "async": 0}  # it has no lease yet, and could not tell when to stop
        await bench.until(lambda: len(bench.beats) > 1)
        assert bench.beats[1].capacity == {"process": 3 + UNMEASURED, "async": 1_000 + UNMEASURED}


async def test_beats_tell_what_is_held_and_the_last_assign_seen(tmp_path: Path) -> None:
    async with working(tmp_path, functions_in="threads", beat_every=50_000) as bench:
        run = await bench.give(call("nothing"), due=30 * SECOND)
        await bench.until(lambda: bench.beats[-1].held == ((run.key, 1),))
        assert bench.beats[-1].seen == {"s0": 1}


async def test_doubled_and_older_assigns_are_ignored(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    async with working(tmp_path, functions_in="threads") as bench:
        assignment = bench.make(call("touch", str(mark)), attempt=3)
        message = Assign(shard="s0", fence=1, number=1, batch=(assignment,))
        older = Assignment(msgspec.structs.replace(assignment.run, attempt=2), assignment.job)
        await bench.broker.publish(inbox(WorkerId("w")), message)
        await bench.broker.publish(inbox(WorkerId("w")), message)
        await bench.broker.publish(inbox(WorkerId("w")), Assign(shard="s0", fence=1, number=2, batch=(older,)))
        assert (await bench.succeeded(assignment.run)).attempt == 3
        await bench.broker.publish(inbox(WorkerId("w")), message)  # once more, after its end
        bench.number = 2
        await bench.succeeded(await bench.give(call("nothing")))
        assert len(mark.read_text().split()) == 1
        assert bench.worker.attempts.counts["doubled"] == 3


async def test_an_assign_that_was_under_way_for_long_is_not_begun(tmp_path: Path) -> None:
    """Its scheduler has looked at beats without it meanwhile, so it may have been given up."""
    async with working(tmp_path, functions_in="threads") as bench:
        began = bench.clock.monotonic() - 3600 * SECOND  # by the scheduler's clock, which begins elsewhere

        async def assign(number: int, delay: float, fence: int = 1) -> Assignment:
            assignment = bench.make(call("nothing"))
            sent = bench.clock.monotonic() - began - int(delay * SECOND)
            message = Assign(shard="s0", fence=fence, number=number, batch=(assignment,), sent=sent)
            await bench.broker.publish(inbox(WorkerId("w")), message)
            return assignment

        await bench.succeeded((await assign(1, 0.5)).run)
        late = await assign(2, 4)
        await bench.succeeded((await assign(3, 0)).run)
        await bench.succeeded((await assign(4, 4, fence=2)).run)  # of a new one it is not known what is usual
        assert bench.worker.attempts.counts["late"] == 1
        assert not any(key == late.run.key for report in bench.reports for key, _ in report.events)


async def test_a_newer_attempt_replaces_the_one_that_is_held_without_a_word(tmp_path: Path) -> None:
    async with working(tmp_path) as bench:
        assignment = bench.make(call("wait_for", str(tmp_path / "never")))
        await bench.assign(assignment)
        await bench.started(assignment.run)
        newer = Assignment(
            msgspec.structs.replace(assignment.run, attempt=2),
            msgspec.structs.replace(assignment.job, task=call("nothing")),
        )
        await bench.assign(newer)
        event = await bench.succeeded(newer.run)
        assert event.attempt == 2


async def test_messages_for_other_shards_and_other_ids_change_nothing(tmp_path: Path) -> None:
    async with working(tmp_path, functions_in="threads") as bench:
        assignment = bench.make(call("nothing"))
        other = Assignment(msgspec.structs.replace(assignment.run, worker=WorkerId("other")), assignment.job)
        await bench.broker.publish(
            inbox(WorkerId("w")), Assign(shard="elsewhere", fence=1, number=1, batch=(assignment,))
        )
        await bench.broker.publish(inbox(WorkerId("w")), Assign(shard="s0", fence=1, number=2, batch=(other,)))
        await bench.succeeded(await bench.give(call("nothing")))
        assert bench.ending(assignment.run) is None
        assert len(bench.worker.attempts) == 0


async def test_stale_attempts_are_killed_without_a_word(tmp_path: Path) -> None:
    async with working(tmp_path, beat_every=50_000) as bench:
        runs = [await bench.give(call("wait_for", str(tmp_path / "never")))]
        runs.append(await bench.give(shell("sleep 100")))
        for run in runs:
            await bench.started(run)
        bench.stale = tuple((run.key, 1) for run in runs)
        await bench.until(lambda: len(bench.worker.attempts) == 0)
        bench.stale = ()
        await bench.succeeded(await bench.give(call("nothing")))
        assert [bench.ending(run) for run in runs] == [None, None]


async def test_a_worker_that_is_not_answered_kills_what_it_runs_before_its_lease_ends(tmp_path: Path) -> None:
    async with working(tmp_path, beat_every=50_000, lease_margin=200_000) as bench:
        bench.lease = 600_000
        run = await bench.give(call("wait_for", str(tmp_path / "never"), str(tmp_path / "pid")))
        await bench.started(run)
        bench.beating = False
        last = len(bench.beats)
        await bench.until(lambda: len(bench.beats) > last)
        silent_since = bench.clock.monotonic()
        await bench.until(lambda: len(bench.worker.attempts) == 0)
        assert bench.clock.monotonic() - silent_since < 600_000
        assert bench.ending(run) is None
        pid = int((tmp_path / "pid").read_text())
        await bench.until(lambda: not _runs(bench, pid))
        bench.beating = True
        await bench.until(lambda: bench.worker.attempts.shards["s0"].trusted_until > bench.clock.monotonic())
        await bench.succeeded(await bench.give(call("nothing")))


def _runs(bench: object, pid: int) -> bool:
    """Some seat with that process still runs a function."""
    seats = bench.worker._runners["function"].sync.seats  # type: ignore[attr-defined]  # the runner of functions
    return any(seat.pid == pid and seat.busy_since() for seat in seats)


async def test_a_worker_taken_for_lost_comes_back_under_a_new_id(tmp_path: Path) -> None:
    async with working(tmp_path, functions_in="threads", beat_every=50_000) as bench:
        staged = await bench.give(call("nothing"), due=30 * SECOND)
        bench.lease = 0
        await bench.until(lambda: bench.beats[-1].worker.id != "w")
        bench.lease = 5 * SECOND
        fresh = bench.beats[-1].worker.id
        assert fresh.startswith("w.")
        assert bench.beats[-1].held == ()
        await bench.until(lambda: bench.worker.attempts.shards["s0"].trusted_until is not None)
        assignment = bench.make(call("nothing"))
        current = bench.worker.attempts.shards["s0"].id
        again = Assignment(msgspec.structs.replace(assignment.run, worker=current), assignment.job)
        await bench.assign(again)
        assert (await bench.succeeded(again.run)).worker == current
        assert bench.ending(staged) is None


async def test_draining_gives_back_what_has_not_begun_and_lets_the_rest_finish(tmp_path: Path) -> None:
    async with working(tmp_path, grace=5 * SECOND) as bench:
        running = await bench.give(call("wait_for", str(tmp_path / "go")))
        await bench.started(running)
        staged = await bench.give(call("nothing"), due=30 * SECOND)
        draining = bench.worker.spawn(bench.worker.drain(), "drain")
        event = await bench.released(staged)
        assert (event.reason, event.started) == ("drained", False)
        assert bench.worker.capacity("s0") == {"process": 0, "async": 0}
        late = await bench.give(call("nothing"))
        assert (await bench.released(late)).reason == "drained"
        (tmp_path / "go").touch()
        await bench.succeeded(running)
        await draining
        assert bench.beats[-1].worker.state == "draining"


async def test_what_outlasts_the_grace_of_a_drain_is_given_back_as_started(tmp_path: Path) -> None:
    async with working(tmp_path, grace=200_000) as bench:
        runs = [
            await bench.give(call("wait_for", str(tmp_path / "never"))),
            await bench.give(call("wait_for_async", str(tmp_path / "never"), mode="async")),
            await bench.give(shell("sleep 100")),
        ]
        for run in runs[:2]:
            await bench.started(run)
        await bench.until(lambda: all(bench.events.get(run.key) for run in runs))
        await bench.worker.drain()
        for run in runs:
            event = await bench.released(run)
            assert (event.reason, event.started) == ("drained", True)


async def test_capacity_leaves_out_what_is_held_for_other_shards(tmp_path: Path) -> None:
    async with working(tmp_path, functions_in="threads") as bench:
        worker = bench.worker
        worker.attempts.shards["s1"] = Shard("s1", worker.id, worker._reporter("s1"), Offset())
        worker.attempts.shards["s1"].trusted_until = 2**62
        before = worker.capacity("s1")["process"]
        await bench.give(call("nothing"), due=30 * SECOND)
        await bench.until(lambda: len(worker.attempts) == 1)
        assert worker.capacity("s1")["process"] == before - 1
        assert worker.capacity("s0")["process"] == before


def test_the_backlog_allowance_is_fifty_milliseconds_of_the_free_slots() -> None:
    tempo = Tempo()
    assert tempo.allowance(4) == UNMEASURED
    assert tempo.allowance(0) == 0
    for _ in range(50):
        tempo.finished(10_000 * 32, 32)
    assert tempo.allowance(4) == pytest.approx(4 * BACKLOG / 10_000, abs=1)
    assert tempo.allowance(0) == 0
    for _ in range(50):
        tempo.finished(3_600 * SECOND, 1)
    assert tempo.allowance(4) == 0
    for _ in range(100):
        tempo.finished(32, 32)
    assert tempo.allowance(4) == MAX_BACKLOG


async def test_scratch_of_workers_that_are_gone_is_removed_and_that_of_living_ones_is_not(tmp_path: Path) -> None:
    async with working(tmp_path, functions_in="threads") as bench:
        (alive,) = bench.scratch.iterdir()
        left = bench.scratch / "duly-worker-left"
        left.mkdir()
        (left / ".lock").touch()
        async with working(tmp_path, functions_in="threads"):
            assert alive.exists()
            await bench.until(lambda: not left.exists())
            assert len(list(bench.scratch.iterdir())) == 2


async def test_a_release_is_told_by_the_attempts_own_worker_id(tmp_path: Path) -> None:
    async with working(tmp_path, functions_in="threads") as bench:
        run = await bench.give(call("nothing"), due=30 * SECOND)
        await bench.cancel(run, unless_started=True)
        event = await bench.released(run)
        assert event == Released(attempt=1, worker=WorkerId("w"), reason="changed")
