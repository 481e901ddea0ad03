"""Command tasks through a worker: real programs, real signals, real trees."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from duly.core.model import MAX_LOG_BYTES, CommandTask, Limits
from workers.bench import SECOND, Bench, call, shell, working


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with working(tmp_path) as found:
        yield found


def processes_of(run_id: str) -> list[int]:
    """Every living process that was started for a run."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                environment = (folder / "environ").read_bytes()
                state = (folder / "stat").read_bytes().rpartition(b")")[2].split()[0]
            except OSError:
                continue
            if f"DULY_RUN_ID={run_id}".encode() in environment.split(b"\0") and state != b"Z":
                found.append(int(folder.name))
    return found


async def test_exit_zero_is_success_with_its_output(bench: Bench) -> None:
    run = await bench.give(shell("echo hello; echo trouble >&2; mkdir output/a; echo data > output/a/b.txt"))
    event = await bench.succeeded(run)
    assert event.exit_code == 0
    assert event.isolation == "process"
    assert await bench.text(event.logs["stdout"]) == b"hello\n"
    assert await bench.text(event.logs["stderr"]) == b"trouble\n"
    assert [(output.path, output.size) for output in event.outputs] == [("a/b.txt", 5)]
    assert await bench.text(event.outputs[0].digest) == b"data\n"


async def test_code_and_inputs_are_there_and_the_directory_is_fresh_and_private(bench: Bench) -> None:
    script = b'#!/bin/sh\ncat input/deep/in.txt; pwd; ls; stat -c %a .; echo "$@"'
    code, _ = await bench.blobs.put(script, limit=1_000)
    data, _ = await bench.blobs.put(b"some input\n", limit=1_000)
    inputs = {"deep/in.txt": data}
    for argv in ((), ("./task", "--month", "2026-11")):
        event = await bench.succeeded(await bench.give(CommandTask(code=code, argv=argv, inputs=inputs)))
        lines = (await bench.text(event.logs["stdout"])).decode().splitlines()
        assert lines[0] == "some input"
        assert lines[1].startswith(str(bench.scratch))
        assert lines[2:5] == ["input", "output", "task"]
        assert lines[5] == "700"
        assert lines[6] == " ".join(argv[1:])
    await bench.until(lambda: not list(bench.scratch.glob("*/commands/*")))


async def test_it_sees_the_environment_of_the_job_and_of_the_run_and_nothing_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_WORKER", "canary")
    run = await bench.give(shell("env", env={"GREETING": "hello"}))
    event = await bench.succeeded(run)
    env = dict(line.split("=", 1) for line in (await bench.text(event.logs["stdout"])).decode().splitlines())
    for added_by_the_shell in ("PWD", "_", "SHLVL", "OLDPWD"):
        env.pop(added_by_the_shell, None)
    assert env.pop("GREETING") == "hello"
    assert env.pop("DULY_RUN_ID") == run.id
    assert env.pop("DULY_JOB_ID") == run.job_id
    assert env.pop("DULY_ATTEMPT") == "1"
    assert env.pop("DULY_SCHEDULED_AT").endswith("Z")
    home = env.pop("HOME")
    assert env.pop("DULY_INPUT") == f"{home}/input"
    assert env.pop("DULY_OUTPUT") == f"{home}/output"
    assert env.pop("LANG") == "C.UTF-8"
    assert env.pop("PATH") == os.environ["PATH"]
    assert env == {}


async def test_stdin_is_the_text_of_the_job_or_empty(bench: Bench) -> None:
    event = await bench.succeeded(await bench.give(CommandTask(argv=("cat",), stdin="grüße\n")))
    assert await bench.text(event.logs["stdout"]) == "grüße\n".encode()
    event = await bench.succeeded(await bench.give(CommandTask(argv=("cat",))))
    assert event.logs == {}


@pytest.mark.parametrize("code", [1, 3, 255])
async def test_another_exit_code_is_a_failure_with_the_end_of_stderr(bench: Bench, code: int) -> None:
    event = await bench.failed(await bench.give(shell(f"echo why >&2; echo kept > output/x; exit {code}")))
    assert event.error.kind == "exit"
    assert event.error.message == f"exited with {code}"
    assert event.error.detail == "why\n"
    assert event.exit_code == code
    assert event.retryable
    assert not event.crashed
    assert [output.path for output in event.outputs] == ["x"]


async def test_a_program_that_is_killed_says_by_which_signal(bench: Bench) -> None:
    event = await bench.failed(await bench.give(shell("kill -SEGV $$")))
    assert event.error.kind == "signal"
    assert "SIGSEGV" in event.error.message
    assert event.exit_code == 128 + signal.SIGSEGV


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (CommandTask(argv=("no-such-program-here",)), "no program 'no-such-program-here'"),
        (CommandTask(), "needs code, or argv"),
        (CommandTask(argv=("./task",), inputs={"../escape": "sha256:" + "0" * 64}), "../escape"),
        (CommandTask(code="sha256:" + "0" * 64), "does not hold sha256:000"),
        (CommandTask(argv=("true",), isolation="sandbox"), "no sandbox"),
        (CommandTask(argv=("true",), isolation="wasm"), "no WebAssembly"),
        (CommandTask(argv=("./missing",)), "No such file"),
    ],
)
async def test_what_cannot_run_fails_with_the_reason_and_is_not_retried(
    bench: Bench, task: CommandTask, text: str
) -> None:
    event = await bench.failed(await bench.give(task))
    assert event.error.kind == "input"
    assert text in event.error.message
    assert not event.retryable
    assert event.started_at is None


async def test_a_script_without_an_interpreter_line_is_explained(bench: Bench) -> None:
    code, _ = await bench.blobs.put(b"echo hello\n", limit=100)
    event = await bench.failed(await bench.give(CommandTask(code=code)))
    assert "#!/bin/sh" in event.error.message


async def test_no_command_starts_before_its_instant(bench: Bench) -> None:
    runs = [await bench.give(shell("true"), due=200_000 + 60_000 * index) for index in range(6)]
    for run in runs:
        event = await bench.succeeded(run)
        assert 0 <= event.started_at - run.due_at < SECOND


async def test_a_program_that_ignores_the_signal_is_killed_after_the_grace(bench: Bench) -> None:
    run = await bench.give(shell("trap '' TERM; while :; do sleep 0.01; done"), timeout=200_000)
    event = await bench.failed(run)
    assert event.error.kind == "timeout"
    assert event.finished_at - event.started_at >= 700_000  # type: ignore[operator]  # both are set by then
    assert not processes_of(run.id)


async def test_a_program_that_ends_at_the_signal_is_not_waited_for(tmp_path: Path) -> None:
    async with working(tmp_path, grace=15 * SECOND) as bench:
        run = await bench.give(shell("trap 'echo bye; exit 0' TERM; while :; do sleep 0.01; done"), timeout=200_000)
        event = await bench.ended(run, within=10)
        assert await bench.text(event.logs["stdout"]) == b"bye\n"  # type: ignore[union-attr]  # it is an end


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in (0, 1, 2):
            os.close(fd)
        while True:
            time.sleep(1)
    os._exit(0)
os.wait()
open("output/ready", "w").close()
"""


@pytest.mark.parametrize("ends", ["by itself", "at its timeout"])
async def test_a_daemon_in_a_session_of_its_own_dies_with_the_run(bench: Bench, ends: str) -> None:
    code = DAEMON if ends == "by itself" else DAEMON + "time.sleep(100)"
    run = await bench.give(CommandTask(argv=(sys.executable, "-c", code)), timeout=2 * SECOND)
    event = await bench.ended(run)
    assert [output.path for output in event.outputs] == ["ready"]  # type: ignore[union-attr]  # it is an end
    assert not processes_of(run.id)


async def test_twenty_megabytes_of_output_are_drained_and_cut(bench: Bench) -> None:
    run = await bench.give(shell("head -c 20000000 /dev/zero; echo end >&2"))
    event = await bench.succeeded(run)
    text = await bench.text(event.logs["stdout"])
    assert text[:MAX_LOG_BYTES] == b"\0" * MAX_LOG_BYTES
    assert b"was cut" in text[MAX_LOG_BYTES:]
    assert len(text) < MAX_LOG_BYTES + 200
    assert await bench.text(event.logs["stderr"]) == b"end\n"


async def test_a_running_commands_stream_can_be_followed(bench: Bench, tmp_path: Path) -> None:
    run = await bench.give(shell(f"echo first; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo second"))
    data = b""
    while data != b"first\n":
        data += (await bench.read_log(run, offset=len(data), wait=SECOND)).data
    (tmp_path / "go").touch()
    event = await bench.succeeded(run)
    assert await bench.text(event.logs["stdout"]) == b"first\nsecond\n"


@pytest.mark.parametrize(
    ("script", "kind", "text"),
    [
        ("ln -s /etc/passwd output/x", "input", "symbolic link"),
        ("ln -s /etc output/x", "input", "symbolic link"),
        ("mkfifo output/x", "input", "a pipe"),
        ("echo x > secret; ln secret output/x", "input", "hard link"),
        ("truncate -s 2M output/x", "limit", "larger than 1048576"),
        ("cd output; seq 1 1001 | xargs touch", "limit", "more than 1000"),
        ("printf x > \"output/a$(printf '\\001')b\"", "input", "control"),
        ("printf x > \"output/$(printf '\\377')\"", "input", "not UTF-8"),
    ],
)
async def test_outputs_that_are_not_plain_files_of_bounded_size_are_refused(
    tmp_path: Path, script: str, kind: str, text: str
) -> None:
    async with working(tmp_path, max_output=1 << 20) as bench:
        task = shell(script, limits=Limits(file_size=1 << 30))
        event = await bench.failed(await bench.give(task))
        assert event.error.kind == kind
        assert text in event.error.message
        assert event.outputs == ()
        assert not event.retryable


async def test_outputs_above_the_folder_are_not_looked_at(bench: Bench) -> None:
    event = await bench.succeeded(await bench.give(shell("echo x > output/../../../stray; echo y > output/y")))
    assert [output.path for output in event.outputs] == ["y"]


async def test_too_much_cpu_is_a_limit(bench: Bench) -> None:
    task = shell("while :; do :; done", limits=Limits(cpu=SECOND))
    event = await bench.failed(await bench.give(task))
    assert event.error.kind == "limit"
    assert "1s of CPU" in event.error.message


async def test_too_large_a_file_is_a_limit(bench: Bench) -> None:
    task = CommandTask(argv=("dd", "if=/dev/zero", "of=big", "bs=1M", "count=3"), limits=Limits(file_size=1 << 20))
    event = await bench.failed(await bench.give(task))
    assert event.error.kind == "limit"
    assert "file" in event.error.message


async def test_memory_and_open_files_are_limited(bench: Bench) -> None:
    code = "bytearray(500_000_000)"
    task = CommandTask(argv=(sys.executable, "-c", code), limits=Limits(memory=200_000_000))
    event = await bench.failed(await bench.give(task))
    assert "MemoryError" in event.error.detail
    event = await bench.succeeded(await bench.give(shell("ulimit -n; ulimit -c", limits=Limits(open_files=77))))
    assert await bench.text(event.logs["stdout"]) == b"77\n0\n"


async def test_it_gains_no_privileges_and_inherits_no_descriptors(bench: Bench) -> None:
    run = await bench.give(shell("grep NoNewPrivs /proc/self/status; ls /proc/$$/fd"))
    event = await bench.succeeded(run)
    lines = (await bench.text(event.logs["stdout"])).decode().split()
    assert lines == ["NoNewPrivs:", "1", "0", "1", "2"]


async def test_ignored_signals_are_not_passed_on(bench: Bench) -> None:
    event = await bench.succeeded(await bench.give(shell("grep SigIgn /proc/self/status")))
    ignored = int((await bench.text(event.logs["stdout"])).split()[1], 16)
    threads = 0b11 << 31  # 32 and 33 are the C library's own; make leaves them ignored, and nobody may set them
    assert ignored & ~threads == 0


async def test_cancelling_before_the_instant_leaves_no_process(bench: Bench, tmp_path: Path) -> None:
    for unless_started in (False, True):
        run = await bench.give(shell(f"touch {tmp_path}/mark"), due=30 * SECOND)
        await bench.cancel(run, unless_started=unless_started)
        if unless_started:
            assert (await bench.released(run)).reason == "changed"
        else:
            assert (await bench.stopped(run)).started_at is None
    runner = bench.worker._runners["command"]
    await bench.until(lambda: not runner._commands)  # type: ignore[attr-defined]  # the runner of commands
    assert not (tmp_path / "mark").exists()


async def test_cancelling_a_running_command_kills_its_tree(bench: Bench) -> None:
    run = await bench.give(shell("sleep 100 & sleep 100"))
    await bench.started(run)
    await bench.cancel(run)
    event = await bench.stopped(run)
    assert event.started_at is not None
    assert not processes_of(run.id)


async def test_if_only_the_supervisor_is_killed_the_whole_tree_dies(bench: Bench) -> None:
    code = DAEMON + "time.sleep(100)"
    run = await bench.give(CommandTask(argv=(sys.executable, "-c", code)))
    await bench.until(lambda: len(processes_of(run.id)) == 2 and bench.events.get(run.key))
    (command,) = bench.worker._runners["command"]._commands.values()  # type: ignore[attr-defined]  # the runner of commands
    os.kill(command.supervisor.process.pid, signal.SIGKILL)
    event = await bench.failed(run)
    assert event.crashed
    assert not processes_of(run.id)


async def test_stopping_the_worker_kills_every_tree(tmp_path: Path) -> None:
    async with working(tmp_path) as bench:
        running = await bench.give(CommandTask(argv=(sys.executable, "-c", DAEMON + "time.sleep(100)")))
        staged = await bench.give(shell("sleep 100"), due=60 * SECOND)
        await bench.until(lambda: len(processes_of(running.id)) == 2)
    assert not processes_of(running.id)
    assert not processes_of(staged.id)
    assert not list((tmp_path / "scratch").iterdir())


async def test_commands_and_functions_share_the_slots(bench: Bench, tmp_path: Path) -> None:
    busy = shell(f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done")
    commands = [await bench.give(busy) for _ in range(2)]
    for run in commands:
        await bench.started(run)
    assert bench.worker.capacity("s0")["process"] == 2
    assert (await bench.released(await bench.give(shell("true")))).reason == "no_capacity"
    assert (await bench.released(await bench.give(call("nothing")))).reason == "no_capacity"
    (tmp_path / "go").touch()
    for run in commands:
        await bench.succeeded(run)
    await bench.succeeded(await bench.give(call("nothing")))
    await bench.succeeded(await bench.give(shell("true")))
