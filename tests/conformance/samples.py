"""Jobs, runs and transitions for the suites: small, explicit, and placed in time by the test."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from duly.core.machine import Transition
from duly.core.model import FunctionTask, Job, JobId, Run, RunState, Worker, WorkerId

T0 = 1_800_000_000_000_000
SECOND = 1_000_000
W1 = WorkerId("worker-1")
W2 = WorkerId("worker-2")


def job(name: str, /, **fields: Any) -> Job:
    """A job whose id is `name`."""
    given: dict[str, Any] = {
        "task": FunctionTask(name="app:work"),
        "schedule": "every 1m",
        "created_at": T0,
        "updated_at": T0,
        "anchored_at": T0,
    }
    return Job(id=JobId(name), **(given | fields))


def run(name: str, at: int = 0, /, **fields: Any) -> Run:
    """The run of a job at T0 + `at`."""
    given: dict[str, Any] = {"job_id": JobId(name), "scheduled_at": T0 + at, "due_at": T0 + at}
    return Run(**(given | fields))


def ended(name: str, at: int = 0, state: RunState = RunState.SUCCEEDED, **fields: Any) -> Run:
    """A run that started in time and has ended."""
    given: dict[str, Any] = {
        "state": state,
        "attempt": 1,
        "worker": W1,
        "dispatched_at": T0 + at,
        "started_at": T0 + at,
        "finished_at": T0 + at + 5,
        "lateness": 0,
    }
    return run(name, at, **(given | fields))


def missed(name: str, at: int = 0, /, **fields: Any) -> Run:
    """A run that never started."""
    return run(name, at, state=RunState.MISSED, finished_at=T0 + at + 5, **fields)


def move(was: Run, opened: tuple[Run, ...] = (), *, columns_only: bool = False, **becomes: Any) -> Transition:
    """The transition of a run from what it is to what it becomes."""
    after = replace(was, **becomes)
    return Transition(was.state, was.attempt, was.worker, after, opened, columns_only, was.cancel is not None)


def dispatch(was: Run, worker: WorkerId = W1, opened: tuple[Run, ...] = ()) -> Transition:
    """Give a run to a worker: the usual transition that writes columns only."""
    return move(
        was,
        opened,
        columns_only=True,
        state=RunState.DISPATCHED,
        attempt=was.attempt + 1,
        worker=worker,
        dispatched_at=was.due_at,
    )


def start(was: Run, lateness: int = 0, **becomes: Any) -> Transition:
    """Its code has begun."""
    return move(was, state=RunState.RUNNING, started_at=was.due_at + lateness, lateness=lateness, **becomes)


def succeed(was: Run, opened: tuple[Run, ...] = (), **becomes: Any) -> Transition:
    """It has ended well."""
    begun = {"started_at": was.due_at, "lateness": 0} if was.started_at is None else {}
    given = {"state": RunState.SUCCEEDED, "finished_at": was.due_at + 5, **begun}
    return move(was, opened, **(given | becomes))


def retry(was: Run, due_at: int, **becomes: Any) -> Transition:
    """Back to waiting, for another attempt at T0 + `due_at`."""
    given: dict[str, Any] = {"state": RunState.WAITING, "worker": WorkerId(""), "dispatched_at": None}
    return move(was, **(given | {"due_at": T0 + due_at, "started_at": None} | becomes))


def worker(name: WorkerId = W1, /, **fields: Any) -> Worker:
    """A worker with four slots."""
    given: dict[str, Any] = {"id": name, "slots": 4}
    return Worker(**(given | fields))
