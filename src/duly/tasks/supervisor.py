"""Supervisors of commands, seen from the worker: the process of `launch.py` and the socket to it.

Python takes some milliseconds to start, so a few wait in reserve once commands are used at all. One that is in
reserve knows nothing yet; it becomes a command's when it is sent a spec, and serves no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

LAUNCH: Final = str(Path(__file__).with_name("launch.py"))


class Supervisor:
    """One process. What it says is told to `hear`, and then `ended`, once its socket closes."""

    def __init__(self, process: subprocess.Popen[bytes], link: socket.socket) -> None:
        self.process = process
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._lines = b""
        self._hear: Callable[[dict[str, Any]], None] = lambda line: None
        self._ended: Callable[[], None] = lambda: None

    @staticmethod
    async def start() -> Supervisor:
        """Spawn one."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            process = await asyncio.to_thread(
                subprocess.Popen,
                [sys.executable, "-I", "-S", LAUNCH, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env={},
                cwd="/",
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return Supervisor(process, ours)

    async def supervise(
        self, spec: dict[str, Any], hear: Callable[[dict[str, Any]], None], ended: Callable[[], None]
    ) -> None:
        """Make it a command's."""
        self._hear, self._ended = hear, ended
        raw = json.dumps(spec).encode()
        await self._loop.sock_sendall(self._link, struct.pack(">I", len(raw)) + raw)
        self._loop.add_reader(self._link, self._readable)

    def go(self, due: int) -> None:
        """Let the program begin at `due`, µs of CLOCK_MONOTONIC."""
        self._say(b"G" + struct.pack(">q", due))

    def terminate(self) -> None:
        """SIGTERM to the program's group."""
        self._say(b"T")

    def kill(self) -> None:
        """SIGKILL to the whole tree."""
        self._say(b"K")

    def _say(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a dead one is noticed by the end of its socket
            self._link.send(data)

    def _readable(self) -> None:
        try:
            data = self._link.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._link)
            self._ended()
            return
        *lines, self._lines = (self._lines + data).split(b"\n")
        for line in lines:
            self._hear(json.loads(line))

    async def close(self) -> None:
        """Let it go: what is left of its tree dies. Returns when it has ended."""
        if self._link.fileno() >= 0:
            self._loop.remove_reader(self._link)
            self._link.close()
        await asyncio.to_thread(self.process.wait)


class Supervisors:
    """Hands supervisors out, and keeps `reserve` more ready once the first was asked for."""

    def __init__(self, reserve: int) -> None:
        self._reserve = reserve
        self._ready: deque[Supervisor] = deque()
        self._filling: asyncio.Task[None] | None = None
        self._closed = False

    async def take(self) -> Supervisor:
        """One for a command."""
        found = self._ready.popleft() if self._ready else None
        if self._filling is None and not self._closed:
            self._filling = asyncio.get_running_loop().create_task(self._fill())
        return found if found is not None else await Supervisor.start()

    async def _fill(self) -> None:
        try:
            while len(self._ready) < self._reserve and not self._closed:
                self._ready.append(await Supervisor.start())
        finally:
            self._filling = None

    async def close(self) -> None:
        """End those in reserve."""
        self._closed = True
        if self._filling is not None:
            await asyncio.gather(self._filling, return_exceptions=True)
        await asyncio.gather(*(supervisor.close() for supervisor in self._ready))
        self._ready.clear()


def kill_marked(mark: bytes, attempt: bytes) -> None:
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
