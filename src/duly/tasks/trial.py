"""Whether commands can run here: one is run as command tasks are, and what keeps it from it is told in words."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from duly.core.model import CommandTask, JobId, Run
from duly.tasks.executor import microseconds
from duly.tasks.program import NotRunnable, failure_of, launch_spec, make_folders, not_executable
from duly.tasks.supervisor import Supervisor

WITHIN: Final = 20.0  # seconds
WROTE: Final = b"it ran\n"


class _Heard:
    """What a supervisor said."""

    def __init__(self) -> None:
        self.words: dict[str, Any] = {}
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()

    def hear(self, line: dict[str, Any]) -> None:
        """One line."""
        self.words |= line
        self.ready.set()

    def silent(self) -> None:
        """It will say no more."""
        self.ready.set()
        self.ended.set()


async def try_command(scratch: Path) -> str | None:
    """Run an uploaded program below `scratch`, under a supervisor and with limits. None if all of it works."""
    folder = Path(tempfile.mkdtemp(prefix="trial-", dir=scratch)) / "attempt"
    try:
        make_folders(folder)
        program = folder / "work" / "task"
        program.write_text("#!/bin/sh\necho it ran\n")
        program.chmod(0o700)
        return await _run(folder)
    except OSError as error:
        return f"{error.filename or 'a process'}: {os.strerror(error.errno or 0)}"
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)


async def _run(folder: Path) -> str | None:
    task = CommandTask(argv=("./task",))
    heard = _Heard()
    try:
        spec = launch_spec(task, Run(job_id=JobId("trial"), scheduled_at=0, due_at=0), folder, 1 << 20)
    except NotRunnable as error:
        return str(error)
    supervisor = await Supervisor.start()
    try:
        async with asyncio.timeout(WITHIN):
            await supervisor.supervise(spec, heard.hear, heard.silent)
            await heard.ready.wait()
            supervisor.go(microseconds())
            await heard.ended.wait()
    except TimeoutError:
        return f"its supervisor did not answer within {WITHIN:g} s"
    finally:
        await supervisor.close()
    return _verdict(task, folder, heard.words)


def _verdict(task: CommandTask, folder: Path, words: dict[str, Any]) -> str | None:
    if words.get("refused"):
        return not_executable(task, words["refused"]).message
    if "status" not in words:
        return "its supervisor ended without a word"
    failure = failure_of(task, words["status"], words["cpu"], str(folder / "log.stderr"))
    if failure is not None:
        return f"{failure.message} {failure.detail}".strip()
    return None if (folder / "log.stdout").read_bytes() == WROTE else "its output was not captured"
