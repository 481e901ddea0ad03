"""Any sequence of writes leaves a store as a few dicts would be left: Hypothesis against a small model.

The model knows nothing of batches, indexes, caches or documents; every answer and every read is held against it.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from conformance.harness import STORES, Harness
from conformance.samples import T0, W1, W2, dispatch, job, missed, retry, run, start, succeed
from duly.core.errors import Fenced
from duly.core.machine import Transition
from duly.core.model import Job, JobId, Run, RunKey, RunState, WorkerId
from duly.ports import Collision, JobQuery, RunQuery

NAMES = st.sampled_from(["a", "b", "c", "d"])
TIMES = st.integers(0, 5)
WORKERS = st.sampled_from([W1, W2])


class Model:
    """What a store is: jobs, and runs of which the terminal ones never change."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.runs: dict[RunKey, Run] = {}

    def open(self, runs: tuple[Run, ...] | list[Run]) -> None:
        """Those that exist stay."""
        for one in runs:
            self.runs.setdefault(one.key, one)

    def create(self, of: Job, runs: list[Run]) -> Job | None:
        """Unless the id is taken."""
        if of.id in self.jobs:
            return self.jobs[of.id]
        self.jobs[of.id] = of
        self.open(runs)
        return None

    def apply(self, t: Transition) -> bool:
        """True if it won."""
        stored = self.runs.get(t.run.key)
        if stored is None or stored.state >= RunState.SUCCEEDED:
            return False
        if (stored.state, stored.attempt, stored.worker) != (t.was_state, t.was_attempt, t.was_worker):
            return False
        if stored.state == RunState.WAITING and stored.job_version != t.run.job_version:
            return False
        self.runs[t.run.key] = t.run
        self.open(t.opened)
        return True

    def change(self, of: Job, was_version: int, opened: list[Run], keep_waiting: bool) -> Job | Collision | None:
        """As the port says."""
        was = self.jobs.get(of.id)
        if was is None or was.version != was_version:
            return None
        for one in sorted(opened, key=lambda each: each.scheduled_at):
            there = self.runs.get(one.key)
            if there is not None and there.state != RunState.WAITING:
                return Collision(one.scheduled_at)
        self.jobs[of.id] = of
        for key, one in list(self.runs.items()):
            if key[0] != of.id or one.state != RunState.WAITING:
                continue
            if of.state == "deleted" or (not keep_waiting and one.attempt == 0 and not one.manual):
                del self.runs[key]
        self.open(opened)
        return of


class StoreMachine(RuleBasedStateMachine):
    """Random writes to a store and to the model."""

    kind = "memory"
    transitions: Bundle[Transition] = Bundle("transitions")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = contextlib.AsyncExitStack()
        self.directory = tempfile.TemporaryDirectory()
        opened = STORES[self.kind](Path(self.directory.name))
        self.harness: Harness = self.loop.run_until_complete(self.stack.enter_async_context(opened))
        self.store = self.harness.store
        self.model = Model()
        self.fences: dict[str, int] = {}

    def wait(self, call: Any) -> Any:
        """Run a verb to its end."""
        return self.loop.run_until_complete(call)

    def teardown(self) -> None:
        self.loop.run_until_complete(self.stack.aclose())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.directory.cleanup()

    @initialize()
    def some_jobs(self) -> None:
        """Something to begin with."""
        items = [(job("a"), [run("a", 0), run("a", 1)]), (job("b"), [run("b", 0)])]
        assert self.wait(self.store.create(items)) == [self.model.create(*item) for item in items]

    @rule(
        items=st.lists(
            st.tuples(NAMES, st.lists(st.tuples(TIMES, st.booleans()), max_size=3, unique_by=lambda x: x[0])),
            min_size=1,
            max_size=4,
        )
    )
    def create(self, items: list[tuple[str, list[tuple[int, bool]]]]) -> None:
        """Jobs, known or new, with runs that wait or were missed."""
        made = [
            (job(name, name=f"{name}{len(times)}"), [(missed if gone else run)(name, at) for at, gone in times])
            for name, times in items
        ]
        assert self.wait(self.store.create(made)) == [self.model.create(*item) for item in made]

    @rule(
        target=transitions,
        keys=st.lists(st.tuples(NAMES, TIMES), min_size=1, max_size=5),
        kind=st.sampled_from(["dispatch", "start", "succeed", "retry", "miss"]),
        worker=WORKERS,
        at=TIMES,
        opened=st.booleans(),
        records=st.booleans(),
    )
    def decide(
        self,
        keys: list[tuple[str, int]],
        kind: str,
        worker: WorkerId,
        at: int,
        opened: bool,
        records: bool,
    ) -> Any:
        """Transitions made from what is stored now; some are carried out later, when they may be stale."""
        made = []
        for name, when in keys:
            was = self.model.runs.get((JobId(name), T0 + when), run(name, when))
            following = (run(name, at),) * opened + (missed(name, at + 1),) * records
            match kind:
                case "dispatch":
                    made.append(dispatch(was, worker, following))
                case "start":
                    made.append(replace(start(was, at), opened=following))
                case "succeed":
                    made.append(succeed(was, following))
                case "retry":
                    made.append(replace(retry(was, at, attempt=was.attempt + 1), opened=following))
                case _:
                    made.append(Transition(was.state, was.attempt, was.worker, missed(name, when), following))
        return multiple(*made)

    @rule(batch=st.lists(transitions, min_size=1, max_size=6))
    def apply(self, batch: list[Transition]) -> None:
        """In one call; the losers are those of the model, one after the other."""
        batch = [t for t in batch if t.run.job_id in self.model.jobs]
        losers = [i for i, t in enumerate(batch) if not self.model.apply(t)]
        assert self.wait(self.store.apply(batch)) == losers

    @rule(t=transitions, stale=st.booleans())
    def apply_fenced(self, t: Transition, stale: bool) -> None:
        """With the fence that is in force, or with one that is not."""
        if t.run.job_id not in self.model.jobs:
            return
        shard = self.store.shard_of(t.run.job_id)
        fence = self.wait(self.store.hold(shard, "me", 10)).fence
        if stale:
            with pytest.raises(Fenced):
                self.wait(self.store.apply([t], shard=shard, fence=fence - 1))
        else:
            losers = [] if self.model.apply(t) else [0]
            assert self.wait(self.store.apply([t], shard=shard, fence=fence)) == losers

    @rule(
        name=NAMES,
        behind=st.sampled_from([0, 0, 0, 1]),
        times=st.lists(TIMES, max_size=2, unique=True),
        keep_waiting=st.booleans(),
        state=st.sampled_from(["active", "active", "paused", "deleted"]),
        manual=st.booleans(),
    )
    def change(self, name: str, behind: int, times: list[int], keep_waiting: bool, state: Any, manual: bool) -> None:
        """A job, at its version or behind it."""
        was = self.model.jobs.get(name, job(name))
        changed = replace(was, version=was.version + 1, state=state, labels={"v": str(was.version)})
        opened = (
            [run(name, at, manual=manual, priority=9, job_version=changed.version) for at in times]
            if state != "deleted"
            else []
        )
        expected = self.model.change(changed, was.version - behind, opened, keep_waiting)
        assert (
            self.wait(self.store.change(changed, was.version - behind, opened, keep_waiting=keep_waiting)) == expected
        )

    @invariant()
    def runs_are_the_models(self) -> None:
        """By key, by page and by what is due and active."""
        keys = [(JobId(name), T0 + at) for name in "abcd" for at in range(8)]
        runs = self.model.runs
        found = self.wait(self.store.load(keys))
        expected = [(runs[key], self.model.jobs[key[0]]) if key in runs else None for key in keys]
        assert found == expected
        page = self.wait(self.store.page_runs(RunQuery(oldest_first=True)))
        assert list(page.items) == sorted(runs.values(), key=lambda one: (one.scheduled_at, one.job_id))
        for shard in self.store.shards:
            here = [one for one in runs.values() if self.store.shard_of(one.job_id) == shard]
            waiting = [one for one in here if one.state == RunState.WAITING]
            due = self.wait(self.store.due(shard, T0 + 100, None, 100))
            assert [one for one, _ in due] == sorted(
                waiting, key=lambda one: (one.due_at, one.job_id, one.scheduled_at)
            )
            out = self.wait(self.store.active(shard, None, 100))
            assert [one for one, _ in out] == sorted(
                (one for one in here if one.state.active), key=lambda one: (one.job_id, one.scheduled_at)
            )

    @invariant()
    def jobs_are_the_models(self) -> None:
        """With their rows and labels."""
        page = self.wait(self.store.page_jobs(JobQuery()))
        assert [row.job for row in page.items] == [self.model.jobs[name] for name in sorted(self.model.jobs)]
        for row in page.items:
            mine = [one for one in self.model.runs.values() if one.job_id == row.job.id]
            started = [one for one in mine if one.state.terminal and one.lateness is not None]
            assert row.finished == all(one.state.terminal for one in mine)
            assert row.next_run_at == min((one.due_at for one in mine if one.state == RunState.WAITING), default=None)
            assert row.last_run == max(started, key=lambda one: one.scheduled_at, default=None)
            for key, value in row.job.labels.items():
                page = self.wait(self.store.page_jobs(JobQuery(labels=((key, value),))))
                assert row.job.id in [other.job.id for other in page.items]

    @invariant()
    def counts_are_the_models(self) -> None:
        """Though nobody counts rows."""
        stats = self.wait(self.store.stats())
        states = [one.state for one in self.model.runs.values()]
        assert sum(s.waiting for s in stats) == states.count(RunState.WAITING)
        assert sum(s.dispatched for s in stats) == states.count(RunState.DISPATCHED)
        assert sum(s.running for s in stats) == states.count(RunState.RUNNING)
        assert sum(s.jobs for s in stats) == sum(one.state != "deleted" for one in self.model.jobs.values())
        for state in (RunState.SUCCEEDED, RunState.MISSED):
            assert sum(s.ended.get(state.word, 0) for s in stats) == states.count(state)


@pytest.mark.parametrize(
    ("kind", "examples"),
    [("memory", 60), ("file", 15), ("sharded", 25), ("postgres", 12), ("sharded-postgres", 5)],
)
def test_a_store_is_its_model(kind: str, examples: int) -> None:
    """Whatever is done to it."""
    machine = type(f"StoreMachine_{kind}", (StoreMachine,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
