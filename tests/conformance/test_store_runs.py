"""The Store port, clause by clause: due, apply, load, page_runs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from conformance.harness import Harness
from conformance.samples import (
    T0,
    W1,
    W2,
    dispatch,
    ended,
    job,
    missed,
    move,
    retry,
    run,
    start,
    succeed,
)
from duly.core.errors import Fenced, Malformed
from duly.core.machine import Transition
from duly.core.model import Attempt, Failure, JobId, Output, Run, RunKey, RunState, WorkerId
from duly.ports import RunQuery

FAR = T0 + 10**12


async def given(harness: Harness, *runs: Run) -> None:
    """Jobs with these runs, one job for each id among them."""
    by_job: dict[str, list[Run]] = {}
    for one in runs:
        by_job.setdefault(one.job_id, []).append(one)
    await harness.store.create([(job(name), mine) for name, mine in by_job.items()])


async def stored(harness: Harness, *keys: RunKey) -> list[Run | None]:
    """The runs as `load` tells them."""
    return [pair and pair[0] for pair in await harness.store.load(keys)]


async def keys(harness: Harness, **query: Any) -> list[tuple[str, int]]:
    """(job, offset from T0) of all pages of a query."""
    found: list[tuple[str, int]] = []
    cursor = None
    while True:
        page = await harness.store.page_runs(RunQuery(**query, cursor=cursor))
        found += [(one.job_id, one.scheduled_at - T0) for one in page.items]
        cursor = page.next
        if cursor is None:
            return found


def same_shard(harness: Harness, count: int) -> list[str]:
    """Names of jobs that share the shard of "a"."""
    names = (f"{letter}{i}" for i in range(2_000) for letter in "abc")
    return [name for name in names if harness.shard(name) == harness.shard()][:count]


# -- due ----------------------------------------------------------------------------------------------------


async def test_due_is_ordered_by_due_at_then_job_then_scheduled_at(harness: Harness) -> None:
    """Whatever the order in which they came."""
    x, y = sorted(same_shard(harness, 2))
    await given(harness, run(y, 5), run(x, 9), run(x, 3, due_at=T0 + 5), run(x, 5), run(y, 1), run(x, 2))
    due = await harness.store.due(harness.shard(), FAR, None, 10)
    assert [(r.job_id, r.scheduled_at - T0) for r, _ in due] == [(y, 1), (x, 2), (x, 3), (x, 5), (y, 5), (x, 9)]
    assert [j.id for _, j in due] == [y, x, x, x, y, x]


async def test_due_ends_with_until_itself(harness: Harness) -> None:
    """due_at <= until."""
    await given(harness, run("a", 1), run("a", 2), run("a", 3))
    assert [r.scheduled_at - T0 for r, _ in await harness.store.due(harness.shard(), T0 + 2, None, 10)] == [1, 2]


async def test_due_goes_on_strictly_after_the_cursor_within_a_burst(harness: Harness) -> None:
    """Runs due at one instant are neither shown twice nor skipped at a page's edge."""
    names = sorted(same_shard(harness, 7))
    await given(harness, *(run(name, 5) for name in names))
    seen: list[str] = []
    after = None
    while page := await harness.store.due(harness.shard(), FAR, after, 2):
        seen += [r.job_id for r, _ in page]
        last = page[-1][0]
        after = (last.due_at, last.job_id, last.scheduled_at)
    assert seen == names


async def test_due_shows_waiting_runs_only(harness: Harness) -> None:
    """What is out or has ended is not due; a retry is due at its new time."""
    await given(harness, run("a", 1), run("a", 2), run("a", 3), run("a", 4))
    out = [dispatch(run("a", at)) for at in (1, 2, 3)]
    await harness.store.apply(out)
    await harness.store.apply([succeed(out[0].run), retry(out[1].run, 50)])
    due = await harness.store.due(harness.shard(), FAR, None, 10)
    assert [(r.scheduled_at - T0, r.due_at - T0, r.attempt) for r, _ in due] == [(4, 4, 0), (2, 50, 1)]


# -- apply --------------------------------------------------------------------------------------------------


async def test_apply_of_nothing_has_no_losers(harness: Harness) -> None:
    """And writes nothing."""
    assert await harness.store.apply([]) == []


@pytest.mark.parametrize(
    "was",
    [
        {"was_state": RunState.WAITING},
        {"was_state": RunState.RUNNING},
        {"was_attempt": 0},
        {"was_attempt": 2},
        {"was_worker": W2},
        {"was_worker": WorkerId("")},
    ],
)
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", ["columns", "document", "back", "end"])
async def test_apply_compares_state_attempt_and_worker(
    harness: Harness, was: dict[str, Any], many: bool, kind: str
) -> None:
    """A transition from anything else than what is stored loses, and changes nothing; others of the batch win."""
    await given(harness, run("a"), run("b"), run("c"))
    out = {name: dispatch(run(name)).run for name in "abc"}
    await harness.store.apply([dispatch(run(name)) for name in "abc"])

    def made(of: Run) -> Transition:
        next_run = (run(of.job_id, 60),)
        match kind:
            case "columns":
                return move(of, next_run, columns_only=True, dispatched_at=T0 + 9)
            case "document":
                return move(of, next_run, state=RunState.RUNNING, started_at=T0 + 9, lateness=9)
            case "back":
                return replace(retry(of, 500), opened=next_run)
            case _:
                return succeed(of, next_run)

    loser = replace(made(out["b"]), **was)
    batch = [made(out["a"]), loser, made(out["c"])] if many else [loser]
    assert await harness.store.apply(batch) == [1 if many else 0]
    assert await stored(harness, out["b"].key, run("b", 60).key) == [out["b"], None]
    if many:
        assert await stored(harness, out["a"].key, run("a", 60).key) == [batch[0].run, run("a", 60)]
        assert await stored(harness, out["c"].key, run("c", 60).key) == [batch[2].run, run("c", 60)]


@pytest.mark.parametrize("kind", ["dispatch", "end"])
async def test_apply_to_a_waiting_run_that_a_change_replaced_loses(harness: Harness, kind: str) -> None:
    """It is another run at the same instant: what was decided on the old definition is void."""
    await given(harness, run("a", 60))
    new = run("a", 60, job_version=2, priority=9)
    await harness.store.change(job("a", version=2), 1, [new])

    def decided(on: Run) -> Transition:
        if kind == "dispatch":
            return dispatch(on, opened=(run("a", 90),))
        return move(on, (run("a", 90),), state=RunState.SKIPPED, finished_at=T0)

    assert await harness.store.apply([decided(run("a", 60))]) == [0]
    assert await stored(harness, new.key, run("a", 90).key) == [new, None]
    assert await harness.store.apply([decided(new)]) == []
    assert await stored(harness, new.key) == [decided(new).run]


@pytest.mark.parametrize("others", [0, 3])
async def test_apply_compares_whether_a_cancel_was_noted(harness: Harness, others: int) -> None:
    """What was decided before the cancel loses, alone and in a batch; what was decided after it wins."""
    waiting = [run("a"), *(run(f"b{number}") for number in range(others))]
    await given(harness, *waiting)
    assert await harness.store.apply([dispatch(one) for one in waiting]) == []
    out = [pair[0] for pair in await harness.store.load([one.key for one in waiting]) if pair]
    assert await harness.store.apply([move(out[0], cancel="asked")]) == []
    assert await harness.store.apply([succeed(one) for one in out]) == [0]
    noted = (await stored(harness, out[0].key))[0]
    assert noted is not None
    assert noted.cancel == "asked"
    assert await harness.store.apply([move(noted, state=RunState.CANCELLED, finished_at=T0)]) == []


async def test_apply_to_an_unknown_run_loses(harness: Harness) -> None:
    """As for one that was replaced."""
    await given(harness, run("a"))
    assert await harness.store.apply([dispatch(run("a", 7)), dispatch(run("nobody"))]) == [0, 1]


async def test_apply_to_a_finished_run_loses(harness: Harness) -> None:
    """Terminal is final, even to the attempt that ended it."""
    await given(harness, run("a"))
    out = dispatch(run("a")).run
    await harness.store.apply([dispatch(run("a"))])
    await harness.store.apply([succeed(out)])
    assert await harness.store.apply([succeed(out, result=msgspec.Raw(b"2"))]) == [0]
    assert await stored(harness, out.key) == [succeed(out).run]


async def test_apply_that_writes_columns_only_is_seen_everywhere(harness: Harness) -> None:
    """State, attempt, worker and dispatched_at, over a document that was not written again."""
    await given(harness, run("a", priority=7))
    transition = dispatch(run("a", priority=7), W2)
    assert await harness.store.apply([transition]) == []
    [(active, _)] = await harness.store.active(harness.shard(), None, 10)
    assert active == transition.run
    assert await stored(harness, transition.run.key) == [transition.run]
    assert list((await harness.store.page_runs(RunQuery())).items) == [transition.run]


async def test_apply_writes_the_whole_document(harness: Harness) -> None:
    """Every field of a run comes back as it went in."""
    await given(harness, run("a"))
    await harness.store.apply([dispatch(run("a"))])
    out = dispatch(run("a")).run
    full = replace(
        succeed(out).run,
        state=RunState.FAILED,
        ordinal=4,
        late=True,
        lateness=2_000_000,
        late_cause="no_capacity",
        reason="why",
        cancel="asked",
        exit_code=3,
        error=Failure(kind="exit", message="exit 3", detail="é\n"),
        outputs=(Output(path="a/b.txt", size=3, digest="sha256:" + "0" * 64),),
        logs={"stdout": "sha256:" + "1" * 64},
        isolation="sandbox",
        attempts=(Attempt(number=1, worker=W1, state="failed", logs={"stderr": "sha256:" + "2" * 64}),),
        failures=2,
        crashes=1,
        held_by="overlap",
        covers_until=T0 + 5,
        retry_of=T0 - 5,
    )
    assert await harness.store.apply([Transition(out.state, out.attempt, out.worker, full)]) == []
    assert await stored(harness, out.key) == [full]


async def test_apply_keeps_a_result(harness: Harness) -> None:
    """JSON, byte for byte."""
    await given(harness, run("a"))
    out = dispatch(run("a")).run
    await harness.store.apply([dispatch(run("a"))])
    await harness.store.apply([succeed(out, result=msgspec.Raw(b'{"x": [1, 2.50]}'))])
    [found] = await stored(harness, out.key)
    assert found is not None
    assert found.result is not None
    assert bytes(found.result) == b'{"x": [1, 2.50]}'


async def test_apply_moves_what_ends_to_history(harness: Harness) -> None:
    """It is no longer active or due, and still loaded."""
    await given(harness, run("a"))
    out = dispatch(run("a")).run
    await harness.store.apply([dispatch(run("a"))])
    await harness.store.apply([succeed(out)])
    assert await harness.store.active(harness.shard(), None, 10) == []
    assert await harness.store.due(harness.shard(), FAR, None, 10) == []
    assert await keys(harness, states=(RunState.SUCCEEDED,)) == [("a", 0)]


async def test_apply_opens_runs_with_the_transition(harness: Harness) -> None:
    """A next run to wait for, and records of occurrences that were missed."""
    await given(harness, run("a"))
    opened = (missed("a", 60), missed("a", 120), run("a", 180))
    await harness.store.apply([move(run("a"), opened, state=RunState.MISSED, finished_at=T0 + 150)])
    assert await stored(harness, *(r.key for r in opened)) == list(opened)
    assert [r.scheduled_at - T0 for r, _ in await harness.store.due(harness.shard(), FAR, None, 10)] == [180]


@pytest.mark.parametrize("opened", [run("a", 60, priority=9), missed("a", 60)])
async def test_apply_leaves_opened_runs_that_exist_waiting(harness: Harness, opened: Run) -> None:
    """They stay as they are."""
    await given(harness, run("a"), run("a", 60))
    assert await harness.store.apply([dispatch(run("a"), opened=(opened,))]) == []
    assert await stored(harness, opened.key) == [run("a", 60)]


@pytest.mark.parametrize("opened", [run("a", 60), missed("a", 60)])
async def test_apply_never_opens_a_finished_run_again(harness: Harness, opened: Run) -> None:
    """What fired does not fire twice."""
    await given(harness, run("a"), ended("a", 60))
    assert await harness.store.apply([dispatch(run("a"), opened=(opened,))]) == []
    assert await stored(harness, opened.key) == [ended("a", 60)]
    assert await harness.store.due(harness.shard(), FAR, None, 10) == []


async def test_apply_carries_out_two_transitions_of_one_run_in_order(harness: Harness) -> None:
    """The second is judged by what the first left."""
    await given(harness, run("a"), run("b"))
    out = dispatch(run("a"))
    begun = start(out.run)
    batch = [out, begun, dispatch(run("b")), out, succeed(begun.run), begun]
    assert await harness.store.apply(batch) == [3, 5]
    assert await stored(harness, out.run.key) == [succeed(begun.run).run]


async def test_apply_may_follow_a_run_that_the_same_call_opens(harness: Harness) -> None:
    """In order, again."""
    await given(harness, run("a"))
    first = dispatch(run("a"), opened=(run("a", 60),))
    assert await harness.store.apply([first, dispatch(run("a", 60))]) == []
    assert await stored(harness, run("a", 60).key) == [dispatch(run("a", 60)).run]


async def test_apply_takes_a_large_batch(harness: Harness) -> None:
    """With one loser in the middle of a thousand."""
    names = same_shard(harness, 999)
    await given(harness, *(run(name) for name in names))
    batch = [dispatch(run(name), opened=(run(name, 60),)) for name in names]
    batch.insert(500, dispatch(run("nobody")))
    assert await harness.store.apply(batch) == [500]
    assert len(await harness.store.active(harness.shard(), None, 2_000)) == 999
    assert len(await harness.store.due(harness.shard(), FAR, None, 2_000)) == 999


async def test_apply_gives_a_retry_its_new_time(harness: Harness) -> None:
    """And takes the old one away."""
    await given(harness, run("a"))
    out = dispatch(run("a")).run
    await harness.store.apply([dispatch(run("a"))])
    again = retry(out, 500, failures=1, late=True, lateness=77)
    assert await harness.store.apply([again]) == []
    assert await stored(harness, out.key) == [again.run]
    assert [r for r, _ in await harness.store.due(harness.shard(), FAR, None, 10)] == [again.run]
    second = dispatch(again.run, W2)
    assert await harness.store.apply([second]) == []
    assert await stored(harness, out.key) == [second.run]


async def test_apply_with_the_current_fence_writes(harness: Harness) -> None:
    """The term's holder."""
    await given(harness, run("a"))
    term = await harness.store.hold(harness.shard(), "me", 100)
    assert await harness.store.apply([dispatch(run("a"))], shard=harness.shard(), fence=term.fence) == []
    assert await harness.store.apply([dispatch(run("a"))], shard=harness.shard(), fence=term.fence) == [0]


@pytest.mark.parametrize("off", [-1, 1])
async def test_apply_with_another_fence_is_fenced(harness: Harness, off: int) -> None:
    """Nothing is written."""
    await given(harness, run("a"))
    term = await harness.store.hold(harness.shard(), "me", 100)
    with pytest.raises(Fenced):
        await harness.store.apply([dispatch(run("a"))], shard=harness.shard(), fence=term.fence + off)
    assert await stored(harness, run("a").key) == [run("a")]


async def test_apply_with_a_fence_before_there_was_a_term_is_fenced(harness: Harness) -> None:
    """No term, no fence."""
    await given(harness, run("a"))
    with pytest.raises(Fenced):
        await harness.store.apply([dispatch(run("a"))], shard=harness.shard(), fence=0)


async def test_apply_without_a_fence_may_span_shards(harness: Harness) -> None:
    """Losers are told by their place in the call."""
    names = [f"j{i}" for i in range(20)]
    await given(harness, *(run(name) for name in names))
    await harness.store.apply([dispatch(run("j3")), dispatch(run("j11"))])
    assert await harness.store.apply([dispatch(run(name)) for name in names]) == [3, 11]


# -- load ---------------------------------------------------------------------------------------------------


async def test_load_answers_in_the_order_asked(harness: Harness) -> None:
    """Hot, finished and unknown ones, each with its job."""
    await given(harness, run("a"), ended("b"), run("c"))
    await harness.store.apply([dispatch(run("c"))])
    asked = [run("c").key, (JobId("a"), T0 + 1), run("b").key, run("a").key, run("c").key]
    out = dispatch(run("c")).run
    assert await harness.store.load(asked) == [
        (out, job("c")),
        None,
        (ended("b"), job("b")),
        (run("a"), job("a")),
        (out, job("c")),
    ]
    assert await harness.store.load([]) == []


async def test_load_answers_many_at_once(harness: Harness) -> None:
    """More than are looked up on the spot."""
    names = [f"j{i}" for i in range(100)]
    await given(harness, *(run(name) for name in names))
    found = await harness.store.load([run(name).key for name in names])
    assert [pair and pair[0].job_id for pair in found] == names


# -- page_runs ----------------------------------------------------------------------------------------------


async def history(harness: Harness) -> None:
    """Runs of three jobs in most states, some late, on two workers, some due apart from their scheduled time."""
    await harness.store.create(
        [
            (
                job("a"),
                [
                    ended("a", 10),
                    ended("a", 20, RunState.FAILED, late=True),
                    missed("a", 30),
                    run("a", 40),
                    run("a", 50),
                    run("a", 60, due_at=T0 + 95),
                    run("a", 70),
                ],
            ),
            (
                job("b", namespace="other"),
                [
                    ended("b", 10, worker=W2),
                    ended("b", 25, late=True, worker=W2),
                    ended("b", 30, RunState.LOST),
                    run("b", 45),
                    run("b", 65, due_at=T0 + 66),
                ],
            ),
            (job("c"), [ended("c", 20, RunState.CANCELLED), run("c", 80)]),
        ]
    )
    first, second, third = dispatch(run("a", 40)), dispatch(run("b", 45), W2), dispatch(run("a", 50))
    await harness.store.apply([first, second, third])
    await harness.store.apply([start(second.run, 5_000_000, late=True), retry(third.run, 90, late=True, lateness=9)])


ALL = "a10 b10 a20 c20 b25 a30 b30 a40 b45 a50 a60 b65 a70 c80"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ALL),
        ({"namespace": "other"}, "b10 b25 b30 b45 b65"),
        ({"namespace": "nowhere"}, ""),
        ({"job_id": "a"}, "a10 a20 a30 a40 a50 a60 a70"),
        ({"job_id": "a", "namespace": "other"}, ""),
        ({"job_id": "nobody"}, ""),
        ({"job_id": "a", "states": (RunState.WAITING, RunState.MISSED)}, "a30 a50 a60 a70"),
        ({"states": (RunState.WAITING,)}, "a50 a60 b65 a70 c80"),
        ({"states": (RunState.DISPATCHED,)}, "a40"),
        ({"states": (RunState.RUNNING, RunState.DISPATCHED)}, "a40 b45"),
        ({"states": (RunState.RUNNING, RunState.WAITING)}, "b45 a50 a60 b65 a70 c80"),
        ({"states": (RunState.SUCCEEDED,)}, "a10 b10 b25"),
        ({"states": (RunState.FAILED, RunState.LOST)}, "a20 b30"),
        ({"states": (RunState.FAILED, RunState.FAILED)}, "a20"),
        ({"states": (RunState.FAILED, RunState.SUCCEEDED)}, "a10 b10 a20 b25"),
        ({"states": (RunState.CANCELLED, RunState.WAITING)}, "c20 a50 a60 b65 a70 c80"),
        ({"states": (RunState.QUARANTINED,)}, ""),
        ({"since": T0 + 20}, "a20 c20 b25 a30 b30 a40 b45 a50 a60 b65 a70 c80"),
        ({"until": T0 + 20}, "a10 b10"),
        ({"since": T0 + 25, "until": T0 + 60}, "b25 a30 b30 a40 b45 a50"),
        ({"since": T0 + 30, "until": T0 + 30}, ""),
        ({"since": T0 + 20, "until": T0 + 70, "job_id": "a"}, "a20 a30 a40 a50 a60"),
        ({"late": True}, "a20 b25 b45 a50"),
        ({"late": True, "states": (RunState.SUCCEEDED, RunState.RUNNING)}, "b25 b45"),
        ({"late": True, "job_id": "a"}, "a20 a50"),
        ({"late": False, "states": (RunState.SUCCEEDED,)}, "a10 b10"),
        ({"worker": W2}, "b10 b25 b45"),
        ({"worker": W1}, "a10 a20 c20 b30 a40"),
        ({"worker": W1, "states": (RunState.DISPATCHED,)}, "a40"),
        ({"worker": W1, "states": (RunState.WAITING,)}, ""),
    ],
)
async def test_page_runs_filters(harness: Harness, query: dict[str, Any], expected: str) -> None:
    """Every filter given holds, hot and finished together, newest first or oldest first, in pages of any size."""
    await history(harness)
    oldest = [(word[0], int(word[1:])) for word in expected.split()]
    for limit in (1, 3, 100):
        assert await keys(harness, **query, oldest_first=True, limit=limit) == oldest, limit
        assert await keys(harness, **query, oldest_first=False, limit=limit) == oldest[::-1], limit


async def test_page_runs_keeps_to_the_limit(harness: Harness) -> None:
    """At least one row, at most a thousand."""
    await given(harness, *(run("a", i) for i in range(600)), *(ended("a", -i) for i in range(1, 600)))
    assert len((await harness.store.page_runs(RunQuery(limit=5_000))).items) == 1_000
    assert len((await harness.store.page_runs(RunQuery(limit=-1))).items) == 1


async def test_page_runs_cursor_stays_valid_while_runs_come_and_go(harness: Harness) -> None:
    """Runs that end, or are opened, between two pages: none is shown twice, none that stays is left out."""
    await given(harness, *(run("a", at) for at in (10, 20, 30, 40, 50)))
    page = await harness.store.page_runs(RunQuery(limit=2, oldest_first=True))
    seen = [one.scheduled_at - T0 for one in page.items]
    out = [dispatch(run("a", at)) for at in (20, 30)]
    await harness.store.apply(out)
    await harness.store.apply([succeed(one.run, (run("a", 5), run("a", 45))) for one in out])
    while page.next is not None:
        page = await harness.store.page_runs(RunQuery(limit=2, oldest_first=True, cursor=page.next))
        seen += [one.scheduled_at - T0 for one in page.items]
    assert seen == [10, 20, 30, 40, 45, 50]


@pytest.mark.parametrize("cursor", ["", "x", "!!!!", "WyJjcmVhdGVkIiwiYSJd", "WyJydW4iLDFlOTksImEiXQ"])
async def test_page_runs_refuses_a_malformed_cursor(harness: Harness, cursor: str) -> None:
    """Also one that belongs to jobs, and one beyond time."""
    with pytest.raises(Malformed):
        await harness.store.page_runs(RunQuery(cursor=cursor))


async def test_apply_compares_the_version_of_the_job_that_decided(harness: Harness) -> None:
    """An end that opens what follows was decided by the job as it was: after a change it has to be decided anew."""
    await harness.store.create([(job("a", schedule="after 1m"), [run("a")])])
    out = dispatch(run("a"))
    await harness.store.apply([out])
    done = succeed(out.run)
    await harness.store.change(job("a", schedule="after 1m", state="paused", version=2), 1, [])
    assert await harness.store.apply([replace(done, was_job=1)]) == [0]
    assert await harness.store.apply([replace(done, was_job=2)]) == []
