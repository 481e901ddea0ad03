"""A server that is frozen past its lease and wakes; one that is told to stop twice; tasks that block their loop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from duly import Duly
from duly.core.contract import RunView
from system.rounds import TESTS
from system.served import PAUSE, Served, until

SLEEPER = ["/bin/sh", "-c", "sleep 60"]


def newest(duly: Duly, job_id: str, *states: str) -> RunView | None:
    """The newest run of a job, once it is in one of the states."""
    run = next(iter(duly.runs(job_id=job_id, limit=1).items), None)
    return run if run is not None and run.state in states else None


def attempts_seen(marks: Path) -> set[str]:
    """Run and attempt of every mark; none may be there twice."""
    names = {path.name for path in marks.iterdir()}
    assert not [name for name in names if name.endswith(".twice")]
    return names


def test_frozen_past_its_lease(serve: Callable[..., Served], tmp_path: Path) -> None:
    """SIGSTOP for longer than a lease, SIGCONT: no attempt runs twice, what ran is tried again, ticks go on."""
    marks = tmp_path / "marks"
    marks.mkdir()
    served = serve(
        "--app", "system.marking:app", "--slots", "4", env={"PYTHONPATH": str(TESTS), "DULY_LEASE": "3s"}, cwd=tmp_path
    )
    with served.start() as duly:
        task = {"kind": "function", "name": "system.marking:mark", "args": [str(marks)]}
        ticking = duly.create(task=task, schedule="every 1s", overlap="allow", misfire="run_all")
        long = duly.create(task={"kind": "command", "argv": SLEEPER}, schedule="now", retry={"base": "100ms"})
        until(lambda: newest(duly, long.id, "running"), what="the command")
        until(lambda: len(attempts_seen(marks)) >= 2, what="two ticks")
        os.kill(served.pid, signal.SIGSTOP)
        PAUSE.wait(4)
        os.kill(served.pid, signal.SIGCONT)
        before = len(attempts_seen(marks))
        until(lambda: len(attempts_seen(marks)) >= before + 6, what="the ticks since, and more")
        again = until(lambda: newest(duly, long.id, "running"), what="the command again")
        assert again.attempt in (1, 2)
        duly.cancel(again.id)
        until(lambda: newest(duly, long.id, "cancelled"), what="its end")
        runs = duly.runs(job_id=ticking.id, limit=1000).items
        ended = [run for run in runs if run.state not in ("waiting", "dispatched", "running")]
        assert {run.state for run in ended} == {"succeeded"}
        for run in ended:
            assert f"{run.id}.{run.attempt}" in attempts_seen(marks), run
        seconds = sorted(run.scheduled_at[:19] for run in runs)
        assert len(set(seconds)) == len(seconds)
    assert served.stop()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(serve: Callable[..., Served], number: signal.Signals) -> None:
    """No half state: what ran is tried again after the next start."""
    served = serve(env={"DULY_GRACE": "60s"})
    with served.start() as duly:
        argv = ["/bin/sh", "-c", "trap '' TERM; sleep 60"]
        job = duly.create(task={"kind": "command", "argv": argv}, schedule="now", retry={"base": "100ms"})
        until(lambda: newest(duly, job.id, "running"), what="running")
        os.kill(served.pid, number)
        until(lambda: _draining(served.url), what="the drain")
        for _ in range(5):
            try:
                os.kill(served.pid, number)
            except ProcessLookupError:
                break
    status, _ = served.stop()
    assert status == 1
    with served.start() as duly:

        def again() -> RunView | None:
            run = newest(duly, job.id, "running")
            return run if run is not None and run.attempt == 2 else None

        duly.cancel(until(again, what="a second attempt").id)
    served.kill()


def _draining(url: str) -> bool:
    """Its worker says so."""
    return any(worker["state"] == "draining" for worker in httpx2.get(f"{url}/v1/workers").json()["items"])


def test_a_coroutine_that_blocks_its_loop_costs_no_lease(serve: Callable[..., Served], tmp_path: Path) -> None:
    """Async functions have a process of their own: while one sleeps without awaiting, commands tick and beats go on."""
    served = serve(
        "--app", "system.marking:app", "--slots", "2", env={"PYTHONPATH": str(TESTS), "DULY_LEASE": "3s"}, cwd=tmp_path
    )
    with served.start() as duly:
        task = {"kind": "function", "name": "system.marking:block", "args": [4.0]}
        ticking = duly.create(task={"kind": "command", "argv": ["true"]}, schedule="every 1s", max_lateness="2s")
        job = duly.create(task=task, schedule="now")
        done = until(lambda: newest(duly, job.id, "succeeded", "failed", "lost"), what="its end")
        assert (done.state, done.attempt) == ("succeeded", 1)
        ticks = [run for run in duly.runs(job_id=ticking.id, limit=100).items if run.state == "succeeded"]
        assert len(ticks) >= 3
        assert not [run for run in ticks if run.attempt > 1]
    assert served.stop()[0] == 0
