"""What a worker does with the attempts that an answer to its beat lists: each is begun once, whatever else has told."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from duly.core.messages import Assignment, Beat, Released
from duly.core.model import RunState
from duly.roles import begun as begun_from_lists
from workers.bench import SECOND, SHARD, Bench, call, working

QUICK = 20_000  # µs between beats


def lists(bench: Bench, *assignments: Assignment) -> None:
    """From now on beats that do not hold these are told of them."""

    def out(beat: Beat) -> tuple[Assignment, ...]:
        return tuple(each for each in assignments if (each.run.key, each.run.attempt) not in beat.held)

    bench.out = out


async def test_an_attempt_that_no_message_has_told_of_is_taken_from_the_list(tmp_path: Path) -> None:
    async with working(tmp_path, functions_in="threads", beat_every=QUICK) as bench:
        assignment = bench.make(call("nothing"))
        lists(bench, assignment)
        await bench.until(lambda: bench.events.get(assignment.run.key))
        bench.out = lambda beat: ()
        await bench.succeeded(assignment.run)


async def test_an_attempt_that_came_and_went_while_the_list_was_under_way_is_not_begun_again(tmp_path: Path) -> None:
    """The list was made before its end was stored: it must not have it run twice."""
    mark = tmp_path / "mark"
    async with working(tmp_path, functions_in="threads", beat_every=QUICK) as bench:
        assignment = bench.make(call("touch", str(mark)))
        listed: list[Beat] = []

        def out(beat: Beat) -> tuple[Assignment, ...]:
            listed.append(beat)
            return (assignment,) if len(listed) == 1 else ()

        bench.answering.clear()
        bench.out = out
        await bench.until(lambda: listed)
        assert listed[0].held == ()
        await bench.assign(assignment)
        await bench.succeeded(assignment.run)
        bench.answering.set()
        await bench.until(lambda: len(listed) > 3)
        assert len(mark.read_text().split()) == 1
        assert len(bench.worker.attempts) == 0


async def test_a_message_that_comes_after_the_list_and_after_the_end_begins_nothing(tmp_path: Path) -> None:
    """It was held up in an outage of the broker, or its scheduler was frozen before it sent it."""
    mark = tmp_path / "mark"
    async with working(tmp_path, functions_in="threads", beat_every=QUICK) as bench:
        assignment = bench.make(call("touch", str(mark)))
        lists(bench, assignment)
        await bench.until(lambda: bench.events.get(assignment.run.key))
        bench.out = lambda beat: ()
        await bench.succeeded(assignment.run)
        await bench.assign(assignment)
        await bench.until(lambda: bench.worker.attempts.counts["doubled"])
        assert len(mark.read_text().split()) == 1
        assert len(bench.worker.attempts) == 0


async def test_an_attempt_that_was_dropped_is_handed_back_and_not_begun_again(tmp_path: Path) -> None:
    """Whether it had begun is told with it."""
    async with working(tmp_path, beat_every=QUICK) as bench:
        begun = bench.make(call("wait_for", str(tmp_path / "never")))
        staged = bench.make(call("nothing"), due=60 * SECOND)
        await bench.assign(begun, staged)
        await bench.started(begun.run)
        for held in bench.worker.attempts:
            bench.worker.attempts.end_quietly(held)
        running = Assignment(msgspec.structs.replace(begun.run, state=RunState.RUNNING), begun.job)
        lists(bench, running, staged)
        first, second = await bench.ended(begun.run), await bench.ended(staged.run)
        assert (first, second) == (
            Released(attempt=1, worker=bench.worker.id, reason="dropped", started=True),
            Released(attempt=1, worker=bench.worker.id, reason="dropped"),
        )


async def test_a_message_of_an_attempt_that_is_forgotten_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after so many further lists that what it names is remembered no more, whichever of those it is of."""
    monkeypatch.setattr(begun_from_lists, "REMEMBERED", 2)
    async with working(tmp_path, functions_in="threads", beat_every=QUICK) as bench:
        marks = [tmp_path / f"mark{each}" for each in range(6)]
        taken = [bench.make(call("touch", str(mark))) for mark in marks]
        for assignment in taken:
            lists(bench, assignment)
            await bench.succeeded(assignment.run)
        bench.out = lambda beat: ()
        for assignment in taken:
            await bench.assign(assignment)
        fresh = bench.make(call("nothing"))
        await bench.assign(fresh)
        await bench.succeeded(fresh.run)
        assert bench.worker.attempts.counts["late"] == 4
        assert bench.worker.attempts.counts["doubled"] == 2
        assert [len(mark.read_text().split()) for mark in marks] == [1] * 6


async def test_what_a_message_was_not_believed_for_is_begun_from_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was dispatched when others were that are forgotten, and had never been begun."""
    monkeypatch.setattr(begun_from_lists, "REMEMBERED", 1)
    mark = tmp_path / "mark"
    async with working(tmp_path, functions_in="threads", beat_every=QUICK) as bench:
        first, missed, second, third = (
            bench.make(call("nothing")),
            bench.make(call("touch", str(mark))),
            bench.make(call("nothing")),
            bench.make(call("nothing")),
        )
        for assignment in (first, second, third):
            lists(bench, assignment)
            await bench.succeeded(assignment.run)
        bench.out = lambda beat: ()
        await bench.assign(missed)
        await bench.until(lambda: bench.worker.attempts.counts["late"])
        assert not mark.exists()
        lists(bench, missed)
        await bench.succeeded(missed.run)
        bench.out = lambda beat: ()
        await bench.assign(missed)
        await bench.until(lambda: bench.worker.attempts.counts["doubled"])
        assert len(mark.read_text().split()) == 1


async def test_a_clock_that_was_set_back_since_does_not_keep_messages_from_being_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what was dispatched while the forgotten ones were is doubted, not all that is older than the last."""
    monkeypatch.setattr(begun_from_lists, "REMEMBERED", 1)
    mark = tmp_path / "mark"
    async with working(tmp_path, functions_in="threads", beat_every=QUICK) as bench:

        async def from_lists() -> list[Assignment]:
            taken = [bench.make(call("touch", str(mark))) for _ in range(3)]
            for assignment in taken:
                lists(bench, assignment)
                await bench.succeeded(assignment.run)
            bench.out = lambda beat: ()
            return taken

        taken = await from_lists()
        bench.skew = -7_200 * SECOND
        taken += await from_lists()
        bench.skew = -3_600 * SECOND
        offset = bench.worker.attempts.shards[SHARD].offset
        await bench.until(lambda: abs((offset.value or 0) + bench.clock.monotonic() - bench.now()) < SECOND)
        fresh = bench.make(call("nothing"))
        await bench.assign(fresh)
        await bench.succeeded(fresh.run)
        for assignment in taken:
            await bench.assign(assignment)
        await bench.until(lambda: bench.worker.attempts.counts["late"] + bench.worker.attempts.counts["doubled"] == 6)
        assert len(mark.read_text().split()) == 6
