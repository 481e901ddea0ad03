"""Child processes: what is captured, what dies with them, what moves."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from duly.core.model import MAX_LOG_BYTES
from duly.tasks.capture import TRUNCATED
from workers.bench import SECOND, Bench, call, working


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with working(tmp_path) as found:
        yield found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(bench: Bench) -> list[Any]:
    return bench.worker._runners["function"].sync.seats  # type: ignore[attr-defined]  # the runner of functions


async def test_what_a_function_prints_and_logs_is_kept(bench: Bench) -> None:
    event = await bench.succeeded(await bench.give(call("speak", 3)))
    assert await bench.text(event.logs["stdout"]) == b"to stdout\n" * 3
    errors = (await bench.text(event.logs["stderr"])).decode()
    assert errors.startswith("to stderr\n")
    assert "WARNING app: a warning" in errors
    assert "INFO app: an info" in errors
    assert errors.count("INFO duly.run: to the run's log") == 1
    assert not list(bench.scratch.rglob("*.stdout"))


async def test_runs_that_print_nothing_have_no_logs(bench: Bench) -> None:
    assert (await bench.succeeded(await bench.give(call("nothing")))).logs == {}


async def test_coroutines_that_interleave_keep_their_own_streams(bench: Bench) -> None:
    runs = [await bench.give(call("speak_async", f"word-{index}", mode="async")) for index in range(10)]
    for index, run in enumerate(runs):
        event = await bench.succeeded(run)
        assert await bench.text(event.logs["stdout"]) == f"word-{index}\n".encode() * 5


async def test_a_thread_of_a_function_belongs_to_its_run(bench: Bench) -> None:
    run = await bench.give(call("in_thread"))
    event = await bench.succeeded(run)
    assert event.result is not None
    assert msgspec.json.decode(event.result) == run.id
    assert await bench.text(event.logs["stdout"]) == b"from a thread\n"


async def test_a_stream_is_cut_at_ten_mebibytes(bench: Bench) -> None:
    event = await bench.succeeded(await bench.give(call("shout", 12 * 1024 * 1024)))
    text = await bench.text(event.logs["stdout"])
    assert len(text) == MAX_LOG_BYTES + len(TRUNCATED)
    assert text.endswith(TRUNCATED)


async def test_a_running_functions_stream_can_be_followed(bench: Bench, tmp_path: Path) -> None:
    run = await bench.give(call("speak_and_wait", str(tmp_path / "go")))
    chunk = await bench.read_log(run, wait=5 * SECOND)
    while not chunk.data:
        chunk = await bench.read_log(run, wait=5 * SECOND)
    assert chunk.data == b"first\n"
    assert (await bench.read_log(run, offset=6)).data == b""
    assert (await bench.read_log(run, "stderr")).data == b""
    (tmp_path / "go").touch()
    await bench.succeeded(run)
    after = await bench.read_log(run)
    assert not after.held
    assert after.ended


async def test_a_killed_child_fails_what_it_had_started_and_nothing_else(bench: Bench, tmp_path: Path) -> None:
    held = bench.make(call("wait_for", str(tmp_path / "go"), str(tmp_path / "pid")))
    await bench.assign(held)
    await bench.until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    queued = [bench.make(call("touch", str(tmp_path / "touched")), due=100_000) for _ in range(50)]
    await bench.assign(*queued)
    os.kill(pid, signal.SIGKILL)
    event = await bench.failed(held.run)
    assert event.crashed
    assert event.error.kind == "signal"
    assert "SIGKILL" in event.error.message
    for assignment in queued:
        await bench.succeeded(assignment.run)
    assert len((tmp_path / "touched").read_text().split()) == 50
    await bench.until(lambda: len(children(bench)) == 2, "the replacement")


async def test_children_that_die_idle_take_no_run_along(bench: Bench, tmp_path: Path) -> None:
    staged = [bench.make(call("touch", str(tmp_path / "touched")), due=400_000) for _ in range(40)]
    await bench.assign(*staged)
    await bench.until(lambda: all(seat.ready for seat in children(bench)))
    for seat in list(children(bench)):
        os.kill(seat.pid, signal.SIGKILL)
    for assignment in staged:
        event = await bench.succeeded(assignment.run)
        assert event.started_at >= assignment.run.due_at
    assert len((tmp_path / "touched").read_text().split()) == 40


@pytest.mark.parametrize(
    ("task", "kind", "text"),
    [
        (call("die", 7), "exit", "exited with 7"),
        (call("kill_self", int(signal.SIGSEGV)), "signal", "SIGSEGV"),
        (call("die", 0, mode="async"), "exit", "exited with 0"),
    ],
)
async def test_a_function_that_ends_its_process_crashes_alone(bench: Bench, task: Any, kind: str, text: str) -> None:
    event = await bench.failed(await bench.give(task))
    assert event.crashed
    assert event.error.kind == kind
    assert text in event.error.message
    assert event.started_at is not None
    await bench.succeeded(await bench.give(call("nothing", mode=task.mode)))


async def test_a_timeout_raises_in_the_function_and_runs_its_finally(bench: Bench, tmp_path: Path) -> None:
    run = await bench.give(call("swallow", str(tmp_path / "never")), timeout=50_000)
    event = await bench.failed(run)
    assert event.error.kind == "timeout"
    assert (tmp_path / "never.finally").exists()
    assert all(seat.pid for seat in children(bench))


async def test_a_function_that_ignores_the_signal_is_killed_after_the_grace(bench: Bench, tmp_path: Path) -> None:
    run = await bench.give(call("ignore_signals", str(tmp_path / "said")), timeout=50_000)
    event = await bench.failed(run)
    assert event.error.kind == "timeout"
    assert not event.crashed
    assert (tmp_path / "said").exists()
    assert event.started_at is not None
    assert event.finished_at - event.started_at >= 500_000


async def test_what_a_function_started_dies_with_its_child(bench: Bench, tmp_path: Path) -> None:
    run = await bench.give(call("leave_child", str(tmp_path / "pid")))
    await bench.until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    assert alive(pid)
    next(seat for seat in children(bench) if seat.busy_since()).kill()
    await bench.failed(run)
    await bench.until(lambda: not alive(pid))


async def test_stopping_the_worker_ends_its_children(tmp_path: Path) -> None:
    async with working(tmp_path) as bench:
        await bench.succeeded(await bench.give(call("nothing")))
        await bench.until(lambda: all(seat.pid for seat in children(bench)))
        pids = [seat.pid for seat in children(bench)]
        assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)
    assert not list((tmp_path / "scratch").iterdir())


async def test_a_broken_app_fails_its_runs_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_app.py").write_text("import os\nif os.environ.get('BROKEN'): raise RuntimeError('no config')\n")
    with (tmp_path / "broken_app.py").open("a") as file:
        file.write("from duly.tasks.registry import FunctionRegistry\napp = FunctionRegistry()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    async with working(tmp_path, apps=("broken_app:app",)) as bench:
        await bench.until(lambda: all(seat.ready for seat in children(bench)))
        monkeypatch.setenv("BROKEN", "1")
        for seat in list(children(bench)):
            seat.kill()
        await bench.until(lambda: not any(seat.ready for seat in children(bench)))
        event = await bench.failed(await bench.give(call("nothing")))
        assert "no config" in event.error.message
