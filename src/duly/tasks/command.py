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
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from duly.core.errors import DulyError
from duly.core.instants import SECOND
from duly.core.model import CommandTask, Failure, Output
from duly.ports import Blobs
from duly.tasks.alarm import Alarm
from duly.tasks.attempt import GIVE_BACK_AFTER, Held, Sink, Stage, Tempo
from duly.tasks.executor import microseconds
from duly.tasks.instant import short_of
from duly.tasks.outputs import Refused, keep_logs, keep_outputs
from duly.tasks.pool import Pool
from duly.tasks.program import CROWDED, NotRunnable, failure_of, fetch_files, launch_spec, make_folders, not_executable
from duly.tasks.removal import remove_tree
from duly.tasks.supervisor import Supervisor, Supervisors, kill_marked

GO_AHEAD: Final = 20_000  # µs before its instant, a command takes its slot and is told to go
PREPARED: Final = 24  # commands beyond the slots that have a process waiting
READY_WITHIN: Final = 30.0  # seconds for a supervisor to come up
RESERVE: Final = 2  # supervisors that wait without a command
LONGEST_QUEUE: Final = 2_000_000  # µs past due, after which a command goes back although others make progress


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
        self.crowded = False  # it had more processes than it may
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        self.supervisor: Supervisor | None = None

    @property
    def task(self) -> CommandTask:
        """What to run."""
        return self.held.job.task  # type: ignore[return-value]  # the worker chose the runner by the task's kind

    def kill(self) -> None:
        """The whole tree."""
        if self.supervisor is not None:
            self.supervisor.kill()


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
        self._supervisors = Supervisors(RESERVE)
        self._running = 0
        self._closing = False
        self._last_progress = 0  # µs
        self._serial = 0

    async def start(self) -> None:
        """Get ready."""
        await asyncio.to_thread(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        self._alarm = Alarm()
        self._prepared = asyncio.Semaphore(self._stage.slots + PREPARED)
        # Starting a process is CPU work: a few at a time, or of many that are due none would begin for long.
        self._starting = asyncio.Semaphore(os.cpu_count() or 1)
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
            command.kill()  # it may be at its exec this very moment; its end tells whether it had begun
        elif held.ending == "quiet":
            command.kill()  # another worker may have it already: no grace
        else:
            self._terminate(command)

    def _terminate(self, command: Command) -> None:
        if command.supervisor is not None:
            command.supervisor.terminate()
            asyncio.get_running_loop().call_later(self._stage.grace / SECOND, command.kill)

    def log_path(self, held: Held, stream: str) -> str | None:
        """Where its stream is written."""
        command = self._commands.get(held.ticket)
        path = None if command is None else f"{command.logs}.{stream}"
        return path if path is not None and Path(path).exists() else None

    def occupied(self) -> int:
        """Commands that run."""
        return self._running

    async def close(self) -> None:
        """Kill every tree, and wait until it is gone. The folders of those stay, for whoever owns the scratch space."""
        self._closing = True
        for command in self._commands.values():
            command.kill()
        tasks = list(self._tasks.values())
        for ticket, task in list(self._tasks.items()):
            if not self._commands[ticket].gone:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._supervisors.close()
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
        """One of those that may be prepared at a time; given back when that takes too long."""
        while True:
            now = microseconds()
            if self._hopeless(held, now):
                self._sink.given_back(held, "no_capacity")
                return False
            wait = max(held.due, held.arrived) - now + GIVE_BACK_AFTER
            try:
                await asyncio.wait_for(self._prepared.acquire(), max(wait, GIVE_BACK_AFTER // 4) / SECOND)
                return True
            except TimeoutError:
                continue

    def _hopeless(self, held: Held, now: int) -> bool:
        """It is past due, and no slot is getting free: no command got ready or ended for a while. While they do,
        the queue is one of short commands, and another worker would hardly be sooner."""
        if not held.too_late(now):
            return False
        moving = now - self._last_progress < GIVE_BACK_AFTER
        return not moving or now - max(held.due, held.arrived) > LONGEST_QUEUE

    async def _through(self, command: Command) -> None:
        held = command.held
        begun = microseconds()
        await self._prepare(command)
        ready = self._last_progress = microseconds()
        if held.arrived < held.due < ready:
            held.cause = "code_fetch"
        await self._until(held.due - GO_AHEAD)
        if not await self._slot(held):
            self._sink.given_back(held, "no_capacity")
            return
        assert command.supervisor is not None
        self._running += 1
        try:
            command.gone = True
            due = held.due
            if self._stage.shares_clock:  # as that clock stands now: a program takes longer to begin than it moves
                due = max(due, microseconds() + short_of(held.run.due_at))
            command.supervisor.go(due)
            await command.ended.wait()
        finally:
            self._running -= 1
            self._last_progress = microseconds()
            self._slots.give_back()
            self._freed.set()
        if command.started:  # what the lane can do is bounded by the preparation too
            self._tempo.finished(max(command.finished - command.started, 0) + ready - begun, 1)
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
            if self._hopeless(held, microseconds()):
                return False
            self._freed.clear()
            with contextlib.suppress(TimeoutError):  # a function's end rings no bell here: look again
                await asyncio.wait_for(self._freed.wait(), 0.005)
        return True

    # -- before ---------------------------------------------------------------------------------------------

    async def _prepare(self, command: Command) -> None:
        held, task = command.held, command.task
        await asyncio.to_thread(make_folders, command.folder)
        spec = launch_spec(task, held.run, command.folder, self._stage.max_output)
        await fetch_files(task, command.work, self._blobs)
        async with self._starting:
            command.supervisor = await self._supervisors.take()
            await command.supervisor.supervise(
                spec, lambda line: self._heard(command, line), lambda: self._silent(command)
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(command.ready.wait(), READY_WITHIN)
        if not command.pid:
            raise NotRunnable("its supervisor did not come up", retryable=True)

    # -- while it runs --------------------------------------------------------------------------------------

    def _heard(self, command: Command, line: dict[str, Any]) -> None:
        if "ready" in line:
            command.pid = line["ready"]
            command.ready.set()
        elif "started" in line:
            command.started = line["started"] // 1_000
            self._sink.started(command.held, command.started)
        elif "refused" in line:
            command.refused = line["refused"]
        elif "crowded" in line:
            command.crowded = True
        else:
            command.status = line["status"]
            command.finished = line["finished"] // 1_000
            command.cpu = line["cpu"]

    def _silent(self, command: Command) -> None:
        command.finished = command.finished or microseconds()
        command.ready.set()
        command.ended.set()

    # -- after ----------------------------------------------------------------------------------------------

    async def _tell(self, command: Command) -> None:
        held, status = command.held, command.status
        if status is None:
            await self._orphaned(command)
            return
        if not command.started and not command.refused:
            self._sink.withdrawn(held)
            return
        try:
            await self._keep_and_tell(command, status)
        except DulyError as error:  # the blob store is full, or does not answer: another try may find it better
            failure = Failure(kind="limit", message=f"its output could not be stored: {error}")
            self._sink.failed(held, command.finished, failure, started=command.started or None)

    async def _keep_and_tell(self, command: Command, status: int) -> None:
        held = command.held
        logs = await keep_logs(command.logs, self._blobs)
        if command.refused:
            self._sink.failed(
                held, command.finished, not_executable(command.task, command.refused), logs=logs, retryable=False
            )
            return
        outputs: tuple[Output, ...] = ()
        refused: Refused | None = None
        try:
            outputs = await keep_outputs(command.work / "output", self._blobs, self._stage.max_output)
        except Refused as error:
            refused = error
        exit_code = status if status >= 0 else 128 - status
        failure = failure_of(command.task, status, command.cpu, f"{command.logs}.stderr")
        if command.crowded:
            failure = CROWDED
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
        await asyncio.to_thread(kill_marked, mark, attempt)
        failure = Failure(kind="signal", message="its supervisor was killed, and the command with it")
        self._sink.failed(
            command.held,
            command.finished,
            failure,
            started=command.started or None,
            crashed=command.held.ending is None,
        )

    async def _clear(self, command: Command) -> None:
        if command.supervisor is not None:
            await command.supervisor.close()
        await asyncio.to_thread(remove_tree, command.folder, stopped=lambda: self._closing)
