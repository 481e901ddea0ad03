"""What a command task execs, with which files, environment and limits, and how its end reads."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any, Final

from duly.core.errors import DulyError, NotFound
from duly.core.instants import SECOND, format_duration, format_instant
from duly.core.model import MAX_LOG_BYTES, CommandTask, Failure, Run
from duly.ports import Blobs
from duly.tasks.attempt import MAX_DETAIL
from duly.tasks.outputs import Refused, safe_name

OPEN_FILES: Final = 1_024
PROCESSES: Final = 1_024  # of one command at a time, zombies included
CROWDED: Final = Failure(kind="limit", message=f"had more than {PROCESSES:,} processes at a time")
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


def make_folders(folder: Path) -> None:
    """The private folders of one attempt."""
    for path in (folder, folder / "work", folder / "work" / "input", folder / "work" / "output"):
        path.mkdir(mode=0o700)


async def fetch_files(task: CommandTask, work: Path, blobs: Blobs) -> None:
    """Put code and inputs in place. Raises NotRunnable."""
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
            await blobs.fetch(digest, str(path), executable=executable)
        except NotFound as error:
            raise NotRunnable(f"the blob store does not hold {digest}") from error
        except DulyError as error:
            raise NotRunnable(f"{digest} could not be fetched: {error}", retryable=True) from error


def program_of(task: CommandTask, work: Path, path: str) -> tuple[str, list[str]]:
    """The file to exec and its arguments. Raises NotRunnable."""
    if task.isolation in REFUSED_LEVELS:
        raise NotRunnable(f"isolation {task.isolation!r} is not available: {REFUSED_LEVELS[task.isolation]}")
    argv = list(task.argv) or (["./task"] if task.code is not None else [])
    if not argv:
        raise NotRunnable("a command needs code, or argv with a program of the worker's")
    program = str(work / argv[0]) if "/" in argv[0] else shutil.which(argv[0], path=path)
    if program is None:
        raise NotRunnable(f"there is no program {argv[0]!r} on this worker's PATH")
    return program, argv


def limits_of(task: CommandTask, max_output: int) -> dict[str, int]:
    """What the supervisor sets: cpu in whole seconds, memory and file_size in bytes, open_files."""
    limits = {"file_size": max_output, "open_files": OPEN_FILES}
    if task.limits is not None:
        asked = {
            "cpu": None if task.limits.cpu is None else max(1, -(-task.limits.cpu // SECOND)),
            "memory": task.limits.memory,
            "file_size": task.limits.file_size,
            "open_files": task.limits.open_files,
        }
        limits.update({name: value for name, value in asked.items() if value is not None})
    return limits


def launch_spec(task: CommandTask, run: Run, folder: Path, max_output: int) -> dict[str, Any]:
    """The spec that `launch.py` is given. Writes the file that is to be stdin. Raises NotRunnable."""
    work = folder / "work"
    path = task.env.get("PATH") or os.environ.get("PATH") or DEFAULT_PATH
    program, argv = program_of(task, work, path)
    stdin = ""
    if task.stdin is not None:
        stdin = str(folder / "stdin")
        Path(stdin).write_text(task.stdin, encoding="utf-8")
    return {
        "work": str(work),
        "program": program,
        "argv": argv,
        "env": {
            "PATH": path,
            "HOME": str(work),
            "LANG": "C.UTF-8",
            **task.env,
            "DULY_RUN_ID": run.id,
            "DULY_JOB_ID": run.job_id,
            "DULY_ATTEMPT": str(run.attempt),
            "DULY_SCHEDULED_AT": format_instant(run.scheduled_at),
            "DULY_INPUT": str(work / "input"),
            "DULY_OUTPUT": str(work / "output"),
        },
        "stdin": stdin,
        "stdout": str(folder / "log.stdout"),
        "stderr": str(folder / "log.stderr"),
        "keep": MAX_LOG_BYTES,
        "processes": PROCESSES,
        "limits": limits_of(task, max_output),
    }


def not_executable(task: CommandTask, number: int) -> Failure:
    """Why exec refused."""
    name = (list(task.argv) or ["./task"])[0]
    if number == errno.ENOEXEC:
        message = f"{name} is not a program: a script needs a first line like #!/bin/sh"
    else:
        message = f"{name} cannot be executed: {os.strerror(number)}"
    return Failure(kind="input", message=message)


def failure_of(task: CommandTask, status: int, cpu_used: float, stderr: str) -> Failure | None:
    """How the program's end reads; None for exit 0. `status`: an exit code, or minus a signal; cpu in seconds."""
    if status == 0:
        return None
    detail = _tail(stderr)
    if status > 0:
        return Failure(kind="exit", message=f"exited with {status}", detail=detail)
    cpu = None if task.limits is None else task.limits.cpu
    if cpu is not None and (status == -signal.SIGXCPU or (status == -signal.SIGKILL and cpu_used * SECOND >= cpu)):
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
