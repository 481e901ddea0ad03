"""What has ended stays ended, and what has begun is not begun anew, however the clock is set and the job is changed.

The real store and the real use-cases of a servicer; in the place of a scheduler and a worker stands a loop that carries
out the same decisions (`core.machine`) one after the other, so that Hypothesis finds and shrinks sequences of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from random import Random  # noqa: TID251 - ids must be the same for a given example
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from conformance.harness import STORES, Harness
from duly.adapters.local_broker import LocalBroker
from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.core.contract import JobSpec
from duly.core.definition import decode
from duly.core.errors import DulyError
from duly.core.instants import MILLISECOND, SECOND
from duly.core.machine import Dispatch, Overlapped, Transition, step
from duly.core.messages import Succeeded
from duly.core.model import NULL, JobId, Run, RunState, WorkerId
from duly.ports import RunQuery
from duly.roles.servicer import Servicer
from duly.telemetry import Telemetry

LEAD = 500 * MILLISECOND
WORKER = WorkerId("w")
TIMES = ("every 10s", "every 15s", "*/10 * * * * *", "every 1s", "in 20s", "after 10s")
STEPS = (-2000, -300, -60, -11, -2, 2, 11, 60, 300, 2000)
UNFINISHED = (RunState.WAITING, RunState.DISPATCHED, RunState.RUNNING)


class OneJob(RuleBasedStateMachine):
    """One job, and everything that may happen to it."""

    kind = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = contextlib.AsyncExitStack()
        self.folder = self.stack.enter_context(tempfile.TemporaryDirectory())
        self.harness: Harness = self.wait(self.stack.enter_async_context(STORES[self.kind](Path(self.folder))))
        self.store, self.clock = self.harness.store, self.harness.clock
        self.servicer = Servicer(
            name="a",
            store=self.store,
            broker=LocalBroker(self.clock),
            blobs=ObstoreBlobs(Path(self.folder) / "blobs", clock=self.clock),
            clock=self.clock,
            entropy=Random(1).randbytes,
            dice=lambda: 0.5,
            telemetry=Telemetry(),
        )
        self.begun: set[int] = set()
        self.ended: dict[int, Run] = {}

    def wait(self, work: Any) -> Any:
        """The answer."""
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        """Nothing is left."""
        self.wait(self.stack.aclose())
        self.loop.close()

    @initialize(
        schedule=st.sampled_from(TIMES),
        max_lateness=st.sampled_from(["1s", "15s"]),
        misfire=st.sampled_from(["run_latest", "run_all", "skip"]),
        overlap=st.sampled_from(["skip", "queue", "allow"]),
        kept=st.sampled_from([0, 0, 1, 100]),
        max_runs=st.sampled_from([None, None, 3]),
    )
    def create(self, schedule: str, **fields: Any) -> None:
        """The job."""
        fields["keep"] = {"runs": fields.pop("kept"), "for": "1d"}
        body = {"task": {"kind": "function", "name": "m:f"}, "schedule": schedule, **fields}
        self.job = JobId(self.wait(self.servicer.create_job(decode(msgspec.json.encode(body), JobSpec)))[0].id)
        self.shard = self.store.shard_of(self.job)
        self.look()

    # -- time -----------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 4, 10, 25]))
    def time_passes(self, seconds: int) -> None:
        """Nobody does anything meanwhile."""
        self.wait(self.harness.passes(seconds * SECOND))

    @rule(seconds=st.sampled_from(STEPS))
    def the_clock_is_set(self, seconds: int) -> None:
        """Forward or back."""
        self.clock.skew += seconds * SECOND
        self.wait(self.harness.passes(self.harness.told_within))

    @rule(turns=st.integers(2, 8), seconds=st.sampled_from([5, 10]), forgotten=st.sampled_from([True, True, False]))
    def all_goes_well(self, turns: int, seconds: int, forgotten: bool) -> None:
        """Runs are handed out and succeed, turn after turn."""
        for _ in range(turns):
            self.wait(self.harness.passes(seconds * SECOND))
            self.dispatch()
            self.finish()
        if forgotten:
            self.forget()

    # -- what clients ask for ---------------------------------------------------------------------------------

    def ask(self, work: Any) -> None:
        """It may be refused: there is nothing to cancel, or the job has gone with its last run."""
        with contextlib.suppress(DulyError):
            self.wait(work)
        self.look()

    @rule(between=st.sampled_from([*STEPS, None, None]))
    def pause(self, between: int | None) -> None:
        """The job may be resumed later, or at once, or once the clock has been set."""
        self.ask(self.servicer.pause_job(self.job))
        if between is not None:
            self.the_clock_is_set(between)
            self.resume()

    @rule()
    def resume(self) -> None:
        """The servicer's use-case."""
        self.ask(self.servicer.resume_job(self.job))

    @rule(
        patch=st.sampled_from(
            [{"priority": 7}, {"jitter": "2s"}, {"jitter": "0s"}, {"max_runs": None}, {"labels": {"a": "b"}}]
            + [{"schedule": each} for each in TIMES[:4]]
        )
    )
    def edit(self, patch: dict[str, Any]) -> None:
        """One that changes its times, or one that does not."""
        self.ask(self.servicer.update_job(self.job, patch))

    @rule()
    def cancel_the_next(self) -> None:
        """Ahead of its time, maybe."""
        hot = [run for run in self.runs() if not run.state.terminal]
        if hot:
            self.ask(self.servicer.cancel_run(hot[0].id))

    # -- what the others do -----------------------------------------------------------------------------------

    @rule()
    def dispatch(self) -> None:
        """What is due is handed out, or becomes what its policy says."""
        now = self.wait(self.store.now(self.shard))
        fence = self.wait(self.store.hold(self.shard, "o", 10 * SECOND)).fence
        for run, job in self.wait(self.store.due(self.shard, now + LEAD, None, 50)):
            out = [each for each in self.runs() if each.state.active]
            event = Overlapped() if out and job.overlap != "allow" else Dispatch(WORKER)
            outcome = step(run, job, event, now)
            if isinstance(outcome, Transition) and not self.wait(
                self.store.apply([outcome], shard=self.shard, fence=fence)
            ):
                self.judge(outcome.run)
            self.look()

    def judge(self, run: Run) -> None:
        """An occurrence is handed out for the first time once, and never after its end."""
        if run.state != RunState.DISPATCHED or run.attempt != 1:
            return
        at = run.scheduled_at
        assert at not in self.ended, f"it was {self.ended[at].state.word}: {self.ended[at].reason}"
        assert at not in self.begun
        self.begun.add(at)

    @rule()
    def finish(self) -> None:
        """What is out succeeds."""
        now = self.wait(self.store.now(self.shard))
        for run, job in self.wait(self.store.active(self.shard, None, 50)):
            done = Succeeded(attempt=run.attempt, worker=WORKER, started_at=now, finished_at=now, result=NULL)
            outcome = step(run, job, done, now)
            assert isinstance(outcome, Transition)
            self.wait(self.store.apply([outcome]))
        self.look()

    @rule()
    def forget(self) -> None:
        """The keeper prunes."""
        self.wait(self.store.prune(1_000))
        self.look()

    def runs(self) -> list[Run]:
        """Of the job, oldest first."""
        return list(self.wait(self.store.page_runs(RunQuery(job_id=self.job, oldest_first=True, limit=1_000))).items)

    def look(self) -> None:
        """Whatever has ended is remembered, past what the store keeps; nothing that had ended waits again."""
        for run in self.runs():
            if run.state.terminal:
                self.ended.setdefault(run.scheduled_at, run)
            else:
                before = self.ended.get(run.scheduled_at)
                assert before is None, f"{run.id} is {run.state.word} and was {before.state.word}"


@pytest.mark.parametrize(("kind", "examples"), [("memory", 20), ("postgres", 4)])
def test_nothing_is_made_undone(kind: str, examples: int) -> None:
    """Steps of the clock, pauses, changes, cancels and pruning, in any order."""
    machine = type(f"OneJob_{kind}", (OneJob,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
