"""`duly up` killed with SIGKILL in the middle of work, and started again: nothing acknowledged is lost."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from duly import Duly
from duly.core.contract import RunView
from duly.core.errors import NotFound
from system.served import Served, until

SLEEPER = ["/bin/sh", "-c", "echo begun; sleep 60 & wait"]


def last_run(duly: Duly, job_id: str) -> RunView | None:
    """The newest run of a job."""
    return next(iter(duly.runs(job_id=job_id, limit=1).items), None)


def in_state(duly: Duly, job_id: str, *states: str) -> RunView | None:
    """The newest run of a job, once it is in one of the states."""
    run = last_run(duly, job_id)
    return run if run is not None and run.state in states else None


def command(argv: list[str]) -> dict[str, object]:
    """A command task."""
    return {"kind": "command", "argv": argv}


def test_nothing_acknowledged_is_lost(serve: Callable[..., Served], tmp_path: Path) -> None:
    """Jobs and outcomes stay; waiting runs fire; what ran is tried again, or lost, as its delivery says."""
    marks = tmp_path / "marks"
    marks.mkdir()
    once = "import os,sys; os.close(os.open(sys.argv[1] + '/' + os.environ['DULY_RUN_ID'], os.O_CREAT | os.O_EXCL))"
    served = serve()
    with served.start() as duly:
        done = duly.create(task=command(["/bin/echo", "done"]), schedule="now")
        until(lambda: in_state(duly, done.id, "succeeded"), what="the first command")
        soon = [
            duly.create(task=command([sys.executable, "-c", once, str(marks)]), schedule="in 3s", retry=1)
            for _ in range(20)
        ]
        again = duly.create(task=command(SLEEPER), schedule="now")
        at_most = duly.create(task=command(SLEEPER), schedule="now", delivery="at_most_once")
        ticking = duly.create(task=command(["/bin/true"]), schedule="every 1s")
        deleted = duly.create(task=command(["/bin/true"]), schedule="in 3s")
        duly.delete(deleted.id)
        for job in (again, at_most):
            until(lambda job=job: in_state(duly, job.id, "running"), what="running")
    served.kill()

    with served.start() as duly:
        assert duly.get(done.id).last_run is not None
        lost = until(lambda: in_state(duly, at_most.id, "lost"), what="lost")
        assert lost.error is not None
        assert lost.error.kind == "worker_lost"
        retried = until(lambda: in_state(duly, again.id, "running"), what="the second attempt")
        assert (retried.attempt, retried.attempts[0].state) == (2, "lost")
        until(lambda: duly.log(retried.id, attempt=2) == "begun\n", what="its log")
        for job in soon:
            run = until(lambda job=job: in_state(duly, job.id, "succeeded", "failed"), what="a waiting run")
            assert run.state == "succeeded", run
            assert {attempt.state for attempt in run.attempts[:-1]} <= {"released"}
        assert len(list(marks.iterdir())) == len(soon), "each ran, and none twice"
        before = duly.runs(job_id=ticking.id, state=["succeeded"]).items
        until(lambda: len(duly.runs(job_id=ticking.id, state=["succeeded"]).items) > len(before), what="a tick")
        ticks = [run.scheduled_at for run in duly.runs(job_id=ticking.id, limit=1000).items]
        assert len(ticks) == len(set(ticks))
        gone = last_run(duly, deleted.id)
        assert gone is None or gone.state == "cancelled"
    status, stderr = served.stop()
    assert status == 0, stderr


def test_a_killed_servers_commands_end_with_it(serve: Callable[..., Served], tmp_path: Path) -> None:
    """The processes of a command, daemons included, do not outlive the server that was to watch them."""
    mark = f"{tmp_path.name}-stray"
    served = serve()
    with served.start() as duly:
        script = f"setsid bash -c 'exec -a {mark} sleep 300' & exec -a {mark} sleep 300"
        job = duly.create(task=command(["/bin/bash", "-c", script]), schedule="now")
        until(lambda: in_state(duly, job.id, "running"), what="running")
        until(lambda: len(processes(mark)) == 2, what="both processes")
    served.kill()
    until(lambda: not processes(mark), what="the end of both processes")


def processes(mark: str) -> list[int]:
    """The pids whose command line begins with a mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if line.startswith(mark.encode()):
                found.append(int(entry.name))
    return found


def test_sigterm_hands_back_what_runs(serve: Callable[..., Served]) -> None:
    """A drain ends within its grace; the run waits again with no attempt counted, and is taken up at the next start."""
    served = serve(env={"DULY_GRACE": "200ms"})
    with served.start() as duly:
        job = duly.create(task=command(SLEEPER), schedule="now", retry=1)
        until(lambda: in_state(duly, job.id, "running"), what="running")
    status, stderr = served.stop()
    assert status == 0, stderr
    with served.start() as duly:
        run = until(lambda: in_state(duly, job.id, "running"), what="running again")
        assert [attempt.state for attempt in run.attempts] == ["released", "running"]
        duly.cancel(run.id)
        until(lambda: in_state(duly, job.id, "cancelled"), what="cancelled")


def test_one_directory_has_one_server(serve: Callable[..., Served], tmp_path: Path) -> None:
    """A second `duly up` over the same directory is refused and says whose it is."""
    served = serve()
    with served.start():
        second = Served(served.directory)
        with pytest.raises(AssertionError, match=str(served.pid)):
            second.start()
        second.kill()


def test_unknown_ids_are_told_apart_from_a_missing_server(serve: Callable[..., Served]) -> None:
    """NotFound carries the id; it is not a connection error."""
    served = serve()
    with served.start() as duly, pytest.raises(NotFound, match="0197a000"):
        duly.get("0197a000-0000-7000-8000-000000000001")
