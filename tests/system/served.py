"""`duly up` as a real process for tests: on a free loopback port, stopped or killed by its pid."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

import msgspec

from duly import Duly
from duly.core.contract import EventView

T = TypeVar("T")
PAUSE = threading.Event()  # never set: waiting on it is a pause between two looks


def until(look: Callable[[], T | None], *, within: float = 30, what: str = "it") -> T:
    """The first truthy answer of `look`, asked every 20 ms; AssertionError after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not happen within {within} s"
        PAUSE.wait(0.02)


class Served:
    """A directory, and the `duly up` over it; it can be killed and started again."""

    def __init__(
        self, directory: Path, *options: str, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.url = ""
        self._options = options
        self._cwd = cwd
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Duly:
        """Start it and wait until it answers; returns a client."""
        command = [sys.executable, "-m", "duly.cli", "up", "--dir", str(self.directory), "--port", "0", "--json"]
        process = self._process = subprocess.Popen(
            [*command, *self._options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._cwd,
            env=self._env,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            _, stderr = process.communicate(timeout=30)
            raise AssertionError(f"duly up did not start: {stderr}")
        self.url = msgspec.json.decode(line)["url"]
        return Duly(self.url)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> tuple[int, str]:
        """SIGTERM; returns the exit status and what it wrote to stderr."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> tuple[int, str]:
        process, self._process = self._process, None
        if process is None:
            return 0, ""
        if process.poll() is None:
            os.kill(process.pid, number)
        if process.stdout is None or process.stdout.closed:
            return process.wait(timeout=30), ""
        _, stderr = process.communicate(timeout=30)
        return process.returncode, stderr


@contextlib.contextmanager
def streamed(urls: Sequence[str]) -> Iterator[list[list[EventView]]]:
    """The events of each server as they come, once all of them stream."""
    seen: list[list[EventView]] = [[] for _ in urls]
    with contextlib.ExitStack() as stack:
        for url, events in zip(urls, seen, strict=True):
            address = urlsplit(url)
            link = stack.enter_context(socket.create_connection((address.hostname, address.port)))
            link.sendall(f"GET /v1/events HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
            lines = stack.enter_context(link.makefile("rb"))
            assert any(line == b": connected\n" for line in lines)
            reader = threading.Thread(target=_read, args=(lines, events))
            reader.start()
            stack.callback(reader.join)
            stack.callback(link.shutdown, socket.SHUT_RDWR)
        yield seen


def _read(lines: BinaryIO, events: list[EventView]) -> None:
    """A frame is a chunk of its own, so that no line of one is broken."""
    for line in lines:
        if line.startswith(b"data: "):
            events.append(msgspec.json.decode(line[6:], type=EventView))  # noqa: PERF401 - as they come


def skipped(events: Sequence[EventView], job_id: str) -> list[str]:
    """The runs of a job that ended as skipped, each told once."""
    ended = [event for event in list(events) if event.job_id == job_id and event.type == "run.finished"]
    found = [event.run_id or "" for event in ended if event.data["state"] == "skipped"]
    assert len(set(found)) == len(found), "told twice"
    return found
