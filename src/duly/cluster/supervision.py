"""One process: started, watched, restarted when it ends by itself, stopped when asked.

    stopped ──start──▶ starting ──ready──▶ ready
       ▲                  ▲ └────────┬───────┘ ended by itself
       │                  └──pause── pausing         the pause doubles, 100 ms to 5 s, until it has lived for 10 s
       └──ended── stopping ◀──stop───┘               asked to end; after its grace, killed; always by its own pid

Its end is tied to this process by `tether.py`, and its output goes to a file of bounded size.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from duly.core.errors import TimedOut, Unavailable
from duly.core.instants import MILLISECOND, SECOND
from duly.ports import Clock

log = logging.getLogger("duly.cluster")

FIRST_PAUSE: Final = 100 * MILLISECOND
LAST_PAUSE: Final = 5 * SECOND
HOPELESS: Final = 3  # lives without becoming ready, after which who waits for that is told
NOT_STARTED: Final = 127
USAGE: Final = 2  # exit code of a role whose settings are wrong: another life will not help
KILLED_WITHIN: Final = 5 * SECOND  # SIGKILL waits only for what the kernel does not interrupt
STEADY: Final = 10 * SECOND  # whoever has lived this long is restarted without a pause to speak of
LOOK: Final = 20 * MILLISECOND  # between two looks at what only a file tells
LOG_BYTES: Final = 16 * 1024 * 1024  # then the log is moved to <name>.log.1
LINE: Final = 64 * 1024  # of what a role says when it is ready

_TETHER: Final = Path(__file__).with_name("tether.py")

State = Literal["stopped", "starting", "ready", "pausing", "stopping"]


class Account(NamedTuple):
    """Whom a program runs as."""

    user: int
    group: int


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """What to start. `grace` in µs, between `end` and SIGKILL.

    `ready` looks from outside, given the pid; without it, the program says on its stdout, in one line of JSON, that
    it is ready. `listen`: a listening socket that it is given. `orphaned`: what the kernel sends it when its
    parent dies.
    """

    argv: tuple[str, ...]
    log: Path
    folder: Path = Path("/")
    env: Mapping[str, str] = {}
    end: signal.Signals = signal.SIGTERM
    orphaned: signal.Signals = signal.SIGKILL
    grace: int = 30 * SECOND
    account: Account | None = None
    listen: int | None = None
    ready: Callable[[int], bool] | None = None


class Supervised:
    """A program that is kept running. `program` is asked before each start, so that it may change."""

    def __init__(
        self, name: str, program: Callable[[], Program], *, clock: Clock, changed: Callable[[], None] | None = None
    ) -> None:
        self.name = name
        self.state: State = "stopped"
        self.pid: int | None = None
        self.restarts = 0
        self.stillborn = 0  # lives in a row that ended before it was ready
        self.told: dict[str, object] = {}  # what it said when it was ready
        self._program = program
        self._clock = clock
        self._changed = changed
        self._wanted = False
        self._keeping: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._up = asyncio.Event()
        self._over = asyncio.Event()
        self._over.set()
        self._reaped = asyncio.Event()  # its end was seen to: `pid` and `state` tell of it
        self._poke = asyncio.Event()
        self._heard = b""
        self._was_up = False  # in the last life
        self._status = 0  # of the last life that has ended
        self._lived: Program | None = None  # what runs

    def start(self) -> None:
        """Begin to keep it running."""
        if not self._wanted:
            self._wanted = True
            self._poke.clear()
            self._keeping = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def ready(self, within: int) -> dict[str, object]:
        """What it says once it is ready. Raises TimedOut, or Unavailable if it keeps ending, with its last words."""
        deadline = self._clock.monotonic() + within
        while not await self._clock.wait(self._up, 200 * MILLISECOND):
            if self._keeping is not None and self._keeping.done():
                await self._keeping
            if self.state == "pausing" and (self.stillborn >= HOPELESS or self._status == USAGE):
                raise Unavailable(f"{self.name} does not start: {self.last_words()}")
            if self._clock.monotonic() > deadline:
                raise TimedOut(f"{self.name} is not ready after {within // SECOND} s: {self.last_words()}")
        return self.told

    async def stop(self) -> None:
        """Ask it to end, and return when it has."""
        self._wanted = False
        self._poke.set()
        process = self._process
        if process is not None:
            self._is("stopping")
            program = self._lived or self._program()
            process.send_signal(program.end)  # by Popen: never a pid that was reaped and may be another's
            process.send_signal(signal.SIGCONT)  # one that is frozen would not see the other
            if not await self._clock.wait(self._over, program.grace):
                log.warning("%s does not end, killing it", self.name)
                process.kill()
                await self._over.wait()
        if self._keeping is not None:
            await self._keeping
            self._keeping = None
        self._is("stopped")

    async def kill(self) -> None:
        """SIGKILL, as a crash would: it is restarted if it is wanted. Returns when it has ended, within 5 seconds."""
        if self._process is not None:
            self._process.kill()
            if not await self._clock.wait(self._reaped, KILLED_WITHIN):
                raise TimedOut(f"{self.name} was killed, and has not ended after {KILLED_WITHIN // SECOND} s")

    def last_words(self, limit: int = 2_000) -> str:
        """The end of its log."""
        try:
            with self._program().log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - limit))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""

    # -- one life after the other ---------------------------------------------------------------------------

    async def _keep(self) -> None:
        pause = FIRST_PAUSE
        while True:
            began = self._clock.monotonic()
            status = self._status = await self._live()
            if not self._wanted:
                return
            self.restarts += 1
            self.stillborn = 0 if self._was_up else self.stillborn + 1
            if self._clock.monotonic() - began >= STEADY:
                pause = FIRST_PAUSE
            log.warning("%s ended (%s); starting it again in %d ms", self.name, _how(status), pause // MILLISECOND)
            self._is("pausing")
            if await self._clock.wait(self._poke, pause):
                return
            pause = min(2 * pause, LAST_PAUSE)

    async def _live(self) -> int:
        """From its start to its end; its exit status."""
        program = self._lived = self._program()
        loop = asyncio.get_running_loop()
        try:
            process = self._process = launch(program)
        except OSError as problem:  # its folder, or Python itself, is out of this account's reach
            with program.log.open("a") as output:
                output.write(f"not started: {problem}\n")
            return NOT_STARTED
        self.pid = process.pid
        self._over.clear()
        self._reaped.clear()
        self._was_up = False
        self._is("starting")
        pidfd = os.pidfd_open(process.pid)
        loop.add_reader(pidfd, self._over.set)
        looking = None
        if program.ready is not None:
            looking = asyncio.create_task(self._look(program.ready, process.pid))
        elif process.stdout is not None:
            self._heard = b""
            os.set_blocking(process.stdout.fileno(), False)
            loop.add_reader(process.stdout.fileno(), self._hear, process.stdout.fileno())
        try:
            await self._over.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            self._up.clear()
            if looking is not None:
                looking.cancel()
            if process.stdout is not None:
                loop.remove_reader(process.stdout.fileno())
                process.stdout.close()
            if not self._over.is_set():  # this task is cancelled: nothing is left behind
                process.kill()
            status = process.wait()
            self._process, self.pid = None, None
            self._over.set()
            self._reaped.set()
        return status

    async def _look(self, ready: Callable[[int], bool], pid: int) -> None:
        while not ready(pid):
            await self._clock.sleep(LOOK)
        self._ready({})

    def _hear(self, fd: int) -> None:
        """The first line says that it is ready; more is read, so that the pipe never fills, and forgotten."""
        try:
            piece = os.read(fd, LINE)
        except BlockingIOError:
            return
        if not piece:
            asyncio.get_running_loop().remove_reader(fd)
            return
        if self._up.is_set() or len(self._heard) > LINE:
            return
        self._heard += piece
        line, newline, _ = self._heard.partition(b"\n")
        if newline:
            with contextlib.suppress(ValueError):
                self._ready(json.loads(line))

    def _ready(self, told: dict[str, object]) -> None:
        self.told = told
        self._was_up = True
        self._up.set()
        self._is("ready")

    def _is(self, state: State) -> None:
        self.state = state
        if self._changed is not None:
            self._changed()


def launch(program: Program) -> subprocess.Popen[bytes]:
    """Start it, tied to the calling thread: when that ends, however that came, it gets the signal for orphans."""
    tie = {
        "parent": os.getpid(),
        "signal": int(program.orphaned),
        "account": program.account,
        "listen": program.listen,
    }
    turn_over(program.log)
    with program.log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(_TETHER), json.dumps(tie), *program.argv],
            stdin=subprocess.DEVNULL,
            stdout=output if program.ready is not None else subprocess.PIPE,
            stderr=output,
            cwd=program.folder,
            env=dict(program.env),
            pass_fds=() if program.listen is None else (program.listen,),
            start_new_session=True,  # Ctrl-C is for the supervisor, who ends the others in order
        )


def turn_over(path: Path) -> None:
    """Move a log that has grown aside. Whoever writes to it goes on at its beginning: it is opened for appending."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES:
            shutil.copyfile(path, path.with_name(f"{path.name}.1"))
            os.truncate(path, 0)


def _how(status: int) -> str:
    return f"exit code {status}" if status >= 0 else signal.Signals(-status).name
