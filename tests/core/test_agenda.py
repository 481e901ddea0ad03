"""The agenda: urgency, ageing, capacity, labels, overlap, and its bound."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from duly.core.agenda import AGEING, OVERLAP_GRACE, Agenda
from duly.core.instants import SECOND
from duly.core.model import FunctionTask, Job, JobId, Run, RunState, Worker, WorkerId

NOW = 1_800_000_000 * SECOND
LEAD = SECOND // 2


def pair(
    name: str, *, due: int = NOW, priority: int = 5, scheduled: int | None = None, **fields: object
) -> tuple[Run, Job]:
    """A waiting run and its job; `name` is the job's id."""
    job = Job(
        id=JobId(name), task=FunctionTask(name="m:f"), schedule="now", created_at=NOW, updated_at=NOW, anchored_at=NOW
    )
    job = msgspec.structs.replace(job, priority=priority, **fields)
    return Run(job_id=job.id, scheduled_at=due, due_at=due, priority=priority), job


def agenda(*pairs: tuple[Run, Job], capacity: int = 100, **worker: object) -> Agenda:
    """An agenda that knows the pairs and one worker, w."""
    made = Agenda()
    seat(made, "w", capacity, **worker)
    made.add(pairs, NOW)
    return made


def seat(made: Agenda, name: str, capacity: int, **worker: object) -> None:
    made.seat(msgspec.convert({"id": name, "slots": 1, **worker}, Worker), {"process": capacity, "async": capacity})


def picked(made: Agenda, now: int = NOW, limit: int = 512) -> list[str]:
    """The job ids in the order picked."""
    return [placement.job.id for placement in made.pick(now, LEAD, limit)]


def test_priority_goes_first_then_the_earliest_deadline() -> None:
    """9 before 0; within a priority due_at + max_lateness decides."""
    made = agenda(
        pair("low", priority=0),
        pair("patient", max_lateness=9 * SECOND),
        pair("hurried", due=NOW + 1, max_lateness=SECOND),
        pair("high", priority=9, due=NOW + 2),
    )
    assert picked(made) == ["high", "hurried", "patient", "low"]


def test_nothing_is_picked_before_its_lead() -> None:
    """A run enters when its instant is at most the lead away, and the agenda knows when that is."""
    made = agenda(pair("soon", due=NOW + LEAD), pair("later", due=NOW + LEAD + 1))
    assert picked(made) == ["soon"]
    assert made.next_wake(LEAD) == NOW + 1
    assert picked(made, NOW + 1) == ["later"]
    assert made.next_wake(LEAD) is None


def test_waiting_raises_a_run_step_by_step() -> None:
    """Ageing: a full AGEING overdue is worth one step of priority."""
    made = agenda(pair("old", due=NOW - 5 * AGEING, priority=4), pair("new", priority=8))
    assert picked(made) == ["old", "new"]


def test_without_capacity_nothing_is_given_and_others_are_not_held_up() -> None:
    """A group whose workers are full waits; another group's runs go."""
    made = agenda(pair("a", requires={"zone": "eu"}), pair("b"), capacity=1)
    assert picked(made) == ["b"]
    seat(made, "eu", 1, labels={"zone": "eu"})
    assert picked(made) == ["a"]


def test_capacity_is_what_is_offered_less_what_is_out() -> None:
    """An ended attempt frees its place; a worker's word corrects the count."""
    made = agenda(*(pair(f"j{n}", due=NOW + n) for n in range(5)), capacity=2)
    assert picked(made) == ["j0", "j1"]
    assert picked(made) == []
    assert made.ended((JobId("j0"), NOW), 1)
    assert picked(made) == ["j2"]
    made.offer(WorkerId("w"), {"process": 4, "async": 0})
    assert picked(made) == ["j3", "j4"]


def test_a_worker_that_knows_the_function_is_preferred() -> None:
    """While it is full the run waits for it; when it is gone any that fits takes it, and will say what is wrong."""
    made = agenda(pair("a"), functions=["other:g"])
    seat(made, "knowing", 1, functions=["m:f"])
    (placement,) = made.pick(NOW, LEAD, 9)
    assert placement.worker == "knowing"
    made.add([pair("b")], NOW)
    assert picked(made) == []
    made.unseat(WorkerId("knowing"))
    (placement,) = made.pick(NOW, LEAD, 9)
    assert placement.worker == "w"


def test_a_run_is_held_while_its_job_has_another_out() -> None:
    """It is placed once the other has ended; when its instant comes first, the policy is asked."""
    made = agenda(pair("a"))
    assert picked(made) == ["a"]
    following = pair("a", due=NOW + SECOND)
    made.add([following], NOW)
    assert picked(made, NOW + SECOND) == []
    assert list(made.overlapped(NOW + SECOND)) == []
    ((run, _, out),) = made.overlapped(NOW + SECOND + OVERLAP_GRACE)
    assert run == following[0]
    assert out == [((JobId("a"), NOW), 1, WorkerId("w"))]
    made.ended((JobId("a"), NOW), 1)
    (placement,) = made.pick(NOW + SECOND, LEAD, 9)
    assert placement.held_by == "overlap"


def test_overlap_allow_is_not_held() -> None:
    """Both runs of one job are out."""
    made = agenda(pair("a", overlap="allow"), pair("a", due=NOW + 1, overlap="allow"))
    assert picked(made) == ["a", "a"]


def test_what_is_known_or_out_is_not_taken_twice() -> None:
    """Refills bring the same rows again; a run that came back with another attempt replaces what was known."""
    made = agenda(pair("a"))
    assert made.add([pair("a")], NOW) == 0
    assert picked(made) == ["a"]
    assert made.add([pair("a")], NOW) == 0
    run, job = pair("a")
    made.ended(run.key, 1)
    again = msgspec.structs.replace(run, attempt=1)
    assert made.add([(again, job)], NOW) == 1
    (placement,) = made.pick(NOW, LEAD, 9)
    assert placement.run.attempt == 1


def test_a_changed_job_is_forgotten() -> None:
    """Its waiting runs are dropped from memory, the others stay."""
    made = agenda(pair("a"), pair("b"))
    made.forget_job(JobId("a"))
    assert picked(made) == ["b"]


def test_what_was_heard_late_is_said_to_be_caught_up() -> None:
    """Overdue when first heard of: catch_up; overdue when placed: no_capacity."""
    made = agenda(pair("down", due=NOW - SECOND), capacity=0)
    made.add([pair("full")], NOW)
    seat(made, "w", 9)
    causes = {placement.job.id: placement.held_by for placement in made.pick(NOW + SECOND, LEAD, 9)}
    assert causes == {"down": "catch_up", "full": "no_capacity"}


def test_taking_over_knows_what_is_out() -> None:
    """Attempts of the former term hold their job and their slots."""
    run, job = pair("a", due=NOW - SECOND)
    out = msgspec.structs.replace(run, state=RunState.RUNNING, attempt=2, worker=WorkerId("w"))
    made = Agenda()
    made.take_over([(out, job)])
    seat(made, "w", 1)
    made.add([pair("a"), pair("b")], NOW)
    assert picked(made) == []
    assert made.is_out(out.key, 2)
    assert made.out_at(WorkerId("w")) == [(out.key, 2)]
    assert not made.ended(out.key, 1), "an older attempt's end frees nothing"
    made.ended(out.key, 2)
    assert set(picked(made)) == {"a"}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(-100, 100), st.integers(1, 50)), max_size=60),
    st.integers(1, 20),
)
def test_bounded_and_complete(items: list[tuple[int, int, int]], bound: int) -> None:
    """Never more than the bound in memory; every run taken is picked exactly once."""
    made = Agenda(bound)
    seat(made, "w", 1000)
    pairs = [
        pair(f"j{index}", due=NOW + offset * 1000, priority=priority, max_lateness=late * 1000)
        for index, (priority, offset, late) in enumerate(items)
    ]
    taken = made.add(pairs, NOW)
    assert taken == min(bound, len(pairs)) == len(made)
    seen: list[str] = []
    while batch := picked(made, limit=7):
        seen.extend(batch)
    assert sorted(seen) == sorted(run.job_id for run, _ in pairs[:taken])
    assert len(made) == 0
