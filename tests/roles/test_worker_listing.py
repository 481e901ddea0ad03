"""What a worker does with the attempts that an answer to its beat lists: each is begun once, whatever else has told."""

from __future__ import annotations

from pathlib import Path

import msgspec

from duly.core.messages import Assignment, Beat, Released
from duly.core.model import RunState
from workers.bench import SECOND, Bench, call, working

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
