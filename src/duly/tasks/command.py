"""Command tasks: a program in a fresh directory, with its files in and out, in a process tree that ends as a whole.

    staged ──▶ directory, code, inputs, supervisor with the program's process ──▶ slot, go ──▶ exec at the instant
                                                                                              │
               outputs, logs ◀── collected once nothing of the tree is left ◀── exit, signal, time-out

What keeps a command apart is its isolation, asked for by the task and recorded on the run:

| level | what it is | here |
|---|---|---|
| process | own directory, session, environment; limits on CPU, memory, files; no new privileges; one tree | yes |
| sandbox | the same behind namespaces, without network | refused |
| wasm | a module without a system | refused |

A process-level command can read what the worker's user can read: it is for code that is trusted not to look.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from duly.core.errors import BlobCorrupt, DulyError, NotFound
from duly.core.instants import SECOND, format_duration, format_instant
from duly.core.model import MAX_LOG_BYTES, CommandTask, Failure, Output
from duly.ports import Blobs
from duly.tasks.alarm import Alarm
from duly.tasks.attempt import GIVE_BACK_AFTER, MAX_DETAIL, Held, Sink, Stage, Tempo
from duly.tasks.executor import microseconds
from duly.tasks.outputs import Refused, keep_logs, keep_outputs, safe_name
from duly.tasks.pool import Pool

LAUNCH: Final = str(Path(__file__).with_name("launch.py"))
GO_AHEAD: Final = 20_000  # µs before its instant, a command takes its slot and is told to go
PREPARED: Final = 8  # commands beyond the slots that have a process waiting
READY_WITHIN: Final = 30.0  # seconds for a supervisor to come up
OPEN_FILES: Final = 1_024
DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
REFUSED_LEVELS: Final = {
    "sandbox": "this worker has no sandbox; it offers isolation `process`",
    "wasm": "this worker runs no WebAssembly; it offers isolation `process`",
}


class NotRunnable(Exception):
    """What keeps a command from starting. `retryable`: another try may find it gone."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class Command:
    """One attempt at a command."""

    def __init__(self, held: Held, folder: Path) -> None:
        self.held = held
        self.folder = folder
        self.work = folder / "work"
        self.logs = str(folder / "log")  # the stem of <logs>.stdout and <logs>.stderr
        self.pid = 0  # of the program
        self.gone = False  # it was told to go
        self.started = 0  # µs
        self.refused = 0  # errno of exec
        self.status: int | None = None
        self.finished = 0
        self.cpu = 0.0
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        self.process: subprocess.Popen[bytes] | None = None
        self.link: socket.socket | None = None
        self._lines = b""

    @property
    def task(self) -> CommandTask:
        """What to run."""
        return self.held.job.task  # type: ignore[return-value]  # the worker chose the runner by the task's kind

    def say(self, data: bytes) -> None:
        """To the supervisor; a dead one is noticed by the end of its socket."""
        if self.link is not None:
            with contextlib.suppress(OSError):
                self.link.send(data)

    def hear(self, data: bytes) -> list[dict[str, Any]]:
        """Lines that the supervisor completed."""
        *lines, self._lines = (self._lines + data).split(b"\n")
        return [json.loads(line) for line in lines]


class CommandRunner:
    """Runs command tasks. A running command takes one of the process lane's slots, lent by the pool of functions."""

    def __init__(self, sink: Sink, blobs: Blobs, stage: Stage, *, slots: Pool, tempo: Tempo) -> None:
        self._sink = sink
        self._blobs = blobs
        self._stage = stage
        self._slots = slots
        self._tempo = tempo
        self._folder = Path(stage.scratch) / "commands"
        self._commands: dict[int, Command] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._running = 0
        self._serial = 0

    async def start(self) -> None:
        """Get ready."""
        await asyncio.to_thread(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        self._alarm = Alarm()
        self._prepared = asyncio.Semaphore(self._stage.slots + PREPARED)
        self._freed = asyncio.Event()

    def stage(self, batch: Sequence[Held]) -> None:
        """Take attempts."""
        for held in batch:
            self._serial += 1
            held.ticket = self._serial
            command = Command(held, self._folder / f"{self._serial}")
            self._commands[held.ticket] = command
            task = asyncio.get_running_loop().create_task(self._run(command), name=f"command {held.run.id}")
            self._tasks[held.ticket] = task
            task.add_done_callback(lambda task, held=held: self._done(task, held))  # type: ignore[misc]  # a default

    def _done(self, task: asyncio.Task[None], held: Held) -> None:
        """Forget it; one that was cancelled before its first step could not say so itself."""
        self._commands.pop(held.ticket, None)
        self._tasks.pop(held.ticket, None)
        if task.cancelled():
            self._sink.withdrawn(held)

    def stop(self, held: Held, *, unless_started: bool = False) -> None:
        """End an attempt."""
        command = self._commands.get(held.ticket)
        if command is None:
            return
        if not command.gone:
            self._tasks[held.ticket].cancel()
        elif unless_started:
            held.ending = None  # it begins within 20 ms, if it has not
        elif not command.started:
            command.say(b"K")  # it may be at its exec this very moment; its end tells whether it had begun
        else:
            self._terminate(command)

    def _terminate(self, command: Command) -> None:
        command.say(b"T")
        asyncio.get_running_loop().call_later(self._stage.grace / SECOND, command.say, b"K")

    def log_path(self, held: Held, stream: str) -> str | None:
        """Where its stream is written."""
        command = self._commands.get(held.ticket)
        path = None if command is None else f"{command.logs}.{stream}"
        return path if path is not None and Path(path).exists() else None

    def occupied(self) -> int:
        """Commands that run."""
        return self._running

    async def close(self) -> None:
        """Kill every tree, and wait until it is gone."""
        for command in self._commands.values():
            command.say(b"K")
        tasks = list(self._tasks.values())
        for ticket, task in list(self._tasks.items()):
            if not self._commands[ticket].gone:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._alarm.close()

    # -- one command ----------------------------------------------------------------------------------------

    async def _run(self, command: Command) -> None:
        held = command.held
        try:
            if await self._enter(held):
                try:
                    await self._through(command)
                finally:
                    self._prepared.release()
        except asyncio.CancelledError:
            self._sink.withdrawn(held)
        except NotRunnable as error:
            await self._until(held.due)  # a run does not end before it is due
            failure = Failure(kind="input", message=str(error))
            self._sink.failed(held, microseconds(), failure, retryable=error.retryable)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here, the attempt must end
            failure = Failure(kind="input", message=f"could not be run: {type(error).__name__}: {error}")
            self._sink.failed(held, microseconds(), failure, started=command.started or None)
        finally:
            await asyncio.shield(self._clear(command))

    async def _enter(self, held: Held) -> bool:
        """One of the few that may be prepared at a time; given back when that takes too long."""
        wait = max(held.due, held.arrived) + GIVE_BACK_AFTER - microseconds()
        try:
            await asyncio.wait_for(self._prepared.acquire(), max(wait, 0) / SECOND)
        except TimeoutError:
            self._sink.given_back(held, "no_capacity")
            return False
        return True

    async def _through(self, command: Command) -> None:
        held = command.held
        await self._prepare(command)
        if microseconds() > held.due:
            held.cause = "code_fetch"
        await self._until(held.due - GO_AHEAD)
        if not await self._slot(held):
            self._sink.given_back(held, "no_capacity")
            return
        self._running += 1
        try:
            command.gone = True
            command.say(b"G" + struct.pack(">q", held.due))
            await command.ended.wait()
        finally:
            self._running -= 1
            self._slots.give_back()
            self._freed.set()
        if command.started:
            self._tempo.finished(max(command.finished - command.started, 0), 1)
        await self._tell(command)

    async def _until(self, instant: int) -> None:
        if instant > microseconds():
            reached = asyncio.Event()
            call = self._alarm.at(instant, reached.set)
            try:
                await reached.wait()
            finally:
                call.cancel()

    async def _slot(self, held: Held) -> bool:
        """A slot of the lane, as soon as there is one; False once it has taken too long."""
        while not self._slots.lend():
            held.cause = held.cause or "no_capacity"
            if held.too_late(microseconds()):
                return False
            self._freed.clear()
            with contextlib.suppress(TimeoutError):  # a function's end rings no bell here: look again
                await asyncio.wait_for(self._freed.wait(), 0.005)
        return True

    # -- before ---------------------------------------------------------------------------------------------

    async def _prepare(self, command: Command) -> None:
        task = command.task
        if task.isolation in REFUSED_LEVELS:
            raise NotRunnable(f"isolation {task.isolation!r} is not available: {REFUSED_LEVELS[task.isolation]}")
        await asyncio.to_thread(_make_folders, command)
        await self._fetch(command)
        spec = self._spec(command)
        await self._launch(command, spec)

    async def _fetch(self, command: Command) -> None:
        task, work = command.task, command.work
        wanted: list[tuple[str, Path, bool]] = []
        if task.code is not None:
            wanted.append((task.code, work / "task", True))
        for name, digest in task.inputs.items():
            try:
                wanted.append((digest, work / "input" / safe_name(name), False))
            except Refused as error:
                raise NotRunnable(f"an input's name cannot be used: {error}") from error
        for digest, path, executable in wanted:
            await asyncio.to_thread(path.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
            try:
                await self._blobs.fetch(digest, str(path), executable=executable)
            except NotFound as error:
                raise NotRunnable(f"the blob store does not hold {digest}") from error
            except (BlobCorrupt, DulyError) as error:
                raise NotRunnable(f"{digest} could not be fetched: {error}", retryable=True) from error

    def _spec(self, command: Command) -> dict[str, Any]:
        task, held, work = command.task, command.held, command.work
        path = task.env.get("PATH") or os.environ.get("PATH") or DEFAULT_PATH
        argv = list(task.argv) or (["./task"] if task.code is not None else [])
        if not argv:
            raise NotRunnable("a command needs code, or argv with a program of the worker's")
        program = str(work / argv[0]) if "/" in argv[0] else shutil.which(argv[0], path=path)
        if program is None:
            raise NotRunnable(f"there is no program {argv[0]!r} on this worker's PATH")
        stdin = ""
        if task.stdin is not None:
            stdin = str(command.folder / "stdin")
            Path(stdin).write_text(task.stdin, encoding="utf-8")
        limits = {"file_size": self._stage.max_output, "open_files": OPEN_FILES}
        if task.limits is not None:
            asked = {
                "cpu": None if task.limits.cpu is None else max(1, -(-task.limits.cpu // SECOND)),
                "memory": task.limits.memory,
                "file_size": task.limits.file_size,
                "open_files": task.limits.open_files,
            }
            limits.update({name: value for name, value in asked.items() if value is not None})
        return {
            "work": str(work),
            "program": program,
            "argv": argv,
            "env": {
                "PATH": path,
                "HOME": str(work),
                "LANG": "C.UTF-8",
                **task.env,
                "DULY_RUN_ID": held.run.id,
                "DULY_JOB_ID": held.run.job_id,
                "DULY_ATTEMPT": str(held.attempt),
                "DULY_SCHEDULED_AT": format_instant(held.run.scheduled_at),
                "DULY_INPUT": str(work / "input"),
                "DULY_OUTPUT": str(work / "output"),
            },
            "stdin": stdin,
            "stdout": f"{command.logs}.stdout",
            "stderr": f"{command.logs}.stderr",
            "keep": MAX_LOG_BYTES,
            "limits": limits,
        }

    async def _launch(self, command: Command, spec: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        command.link = ours
        loop = asyncio.get_running_loop()
        try:
            command.process = await asyncio.to_thread(
                subprocess.Popen,
                [sys.executable, "-I", "-S", LAUNCH, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={},
                cwd="/",
            )
        finally:
            theirs.close()
        raw = json.dumps(spec).encode()
        await loop.sock_sendall(ours, struct.pack(">I", len(raw)) + raw)
        loop.add_reader(ours, self._heard, command)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(command.ready.wait(), READY_WITHIN)
        if not command.pid:
            raise NotRunnable("its supervisor did not come up", retryable=True)

    # -- while it runs --------------------------------------------------------------------------------------

    def _heard(self, command: Command) -> None:
        assert command.link is not None
        try:
            data = command.link.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(command.link)
            command.finished = command.finished or microseconds()
            command.ready.set()
            command.ended.set()
            return
        for line in command.hear(data):
            if "ready" in line:
                command.pid = line["ready"]
                command.ready.set()
            elif "started" in line:
                command.started = line["started"] // 1_000
                self._sink.started(command.held, command.started)
            elif "refused" in line:
                command.refused = line["refused"]
            else:
                command.status = line["status"]
                command.finished = line["finished"] // 1_000
                command.cpu = line["cpu"]

    # -- after ----------------------------------------------------------------------------------------------

    async def _tell(self, command: Command) -> None:
        held, status = command.held, command.status
        if status is None:
            await self._orphaned(command)
            return
        if not command.started and not command.refused:
            self._sink.withdrawn(held)
            return
        logs = await keep_logs(command.logs, self._blobs)
        if command.refused:
            self._sink.failed(held, command.finished, _not_executable(command), logs=logs, retryable=False)
            return
        outputs: tuple[Output, ...] = ()
        refused: Refused | None = None
        try:
            outputs = await keep_outputs(command.work / "output", self._blobs, self._stage.max_output)
        except Refused as error:
            refused = error
        exit_code = status if status >= 0 else 128 - status
        failure = _failure(command)
        if failure is None and refused is None:
            self._sink.succeeded(
                held, command.started, command.finished, None, exit_code=exit_code, outputs=outputs, logs=logs
            )
            return
        self._sink.failed(
            held,
            command.finished,
            failure or refused.failure(),  # type: ignore[union-attr]  # one of the two is there
            started=command.started,
            exit_code=exit_code,
            outputs=outputs,
            logs=logs,
            retryable=failure is not None,
        )

    async def _orphaned(self, command: Command) -> None:
        """The supervisor was killed. The kernel killed the program with it; what that left is found by its
        environment, which names the run."""
        mark = f"DULY_RUN_ID={command.held.run.id}".encode()
        attempt = f"DULY_ATTEMPT={command.held.attempt}".encode()
        await asyncio.to_thread(_kill_marked, mark, attempt)
        failure = Failure(kind="signal", message="its supervisor was killed, and the command with it")
        self._sink.failed(
            command.held,
            command.finished,
            failure,
            started=command.started or None,
            crashed=command.held.ending is None,
        )

    async def _clear(self, command: Command) -> None:
        if command.link is not None:
            asyncio.get_running_loop().remove_reader(command.link)
            command.link.close()  # the supervisor, if it still is there, kills the tree and ends
        if command.process is not None:
            await asyncio.to_thread(command.process.wait)
        await asyncio.to_thread(shutil.rmtree, command.folder, True)


def _make_folders(command: Command) -> None:
    command.folder.mkdir(mode=0o700)
    for folder in (command.work, command.work / "input", command.work / "output"):
        folder.mkdir(mode=0o700)


def _not_executable(command: Command) -> Failure:
    name = (list(command.task.argv) or ["./task"])[0]
    if command.refused == errno.ENOEXEC:
        message = f"{name} is not a program: a script needs a first line like #!/bin/sh"
    else:
        message = f"{name} cannot be executed: {os.strerror(command.refused)}"
    return Failure(kind="input", message=message)


def _failure(command: Command) -> Failure | None:
    """How the program's end reads, None for exit 0."""
    status = command.status
    assert status is not None
    if status == 0:
        return None
    detail = _tail(f"{command.logs}.stderr")
    if status > 0:
        return Failure(kind="exit", message=f"exited with {status}", detail=detail)
    limits = command.task.limits
    cpu = None if limits is None else limits.cpu
    if cpu is not None and (status == -signal.SIGXCPU or (status == -signal.SIGKILL and command.cpu * SECOND >= cpu)):
        return Failure(kind="limit", message=f"used more than its {format_duration(cpu)} of CPU", detail=detail)
    if status == -signal.SIGXFSZ:
        return Failure(kind="limit", message="wrote a file larger than its limit on file size", detail=detail)
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return Failure(kind="signal", message=f"killed by {name}", detail=detail)


def _tail(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_DETAIL))
            return file.read(MAX_DETAIL).decode("utf-8", "replace")
    except OSError:
        return ""


def _kill_marked(mark: bytes, attempt: bytes) -> None:
    """Kill every process that was started with these variables, until there is none."""
    for _ in range(100):
        found = False
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                entries = (folder / "environ").read_bytes().split(b"\0")
                state = (folder / "stat").read_bytes().rpartition(b")")[2].split()[0]
                if mark in entries and attempt in entries and state != b"Z":
                    os.kill(int(folder.name), signal.SIGKILL)
                    found = True
            except (OSError, IndexError):
                continue
        if not found:
            return
