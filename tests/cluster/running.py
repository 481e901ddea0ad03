"""A real `duly cluster` for tests, asked and hurt by its own commands and by signals to the pids that it names."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from duly.cluster.control import ask
from system.served import until

TESTS = Path(__file__).parent.parent


class RunningCluster:
    """The command's process, and what it told when it was ready."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes], told: dict[str, Any]) -> None:
        self.directory = directory
        self.process = process
        self.url: str = told["url"]
        self.servicers: list[str] = told["servicers"]
        self.ready_s: float = told["ready_s"]

    def ask(self, do: str, name: str = "") -> dict[str, dict[str, Any]]:
        """Ask for something; the members by name afterwards."""
        told = asyncio.run(ask(self.directory / "control", {"do": do, "name": name}))
        return {member["name"]: member for member in told["members"]}

    def shards(self) -> list[dict[str, Any]]:
        """The shards, with who leads each and how its standby does."""
        told = asyncio.run(ask(self.directory / "control", {"do": "status"}))
        return list(told["shards"])

    def pid(self, name: str) -> int:
        """Of a member that runs."""
        return int(self.ask("status")[name]["pid"])

    def kill(self, name: str) -> None:
        """SIGKILL; returns when another life of it is ready."""
        before = self.ask("status")[name]["restarts"]
        self.ask("kill", name)
        until(lambda: self._again(name, before), within=30, what=f"the restart of {name}")

    def _again(self, name: str, before: int) -> bool:
        now = self.ask("status")[name]
        return bool(now["restarts"] > before and now["state"] == "ready")

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """SIGSTOP, and SIGCONT at the end."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask the cluster to end; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@contextlib.contextmanager
def running_cluster(directory: Path, *options: str) -> Iterator[RunningCluster]:
    """A cluster over the directory, ended with the block; its logs are told if it fails to start."""
    with start(directory, options) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            process.wait(timeout=60)
            raise AssertionError(
                f"duly cluster did not start: {(directory.parent / 'cluster.err').read_text()[-4_000:]}"
            )
        try:
            yield RunningCluster(directory, process, msgspec.json.decode(line))
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=60)


def start(directory: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
    """The command, just started."""
    command = [sys.executable, "-m", "duly.cli", "cluster", "--dir", str(directory), "--port", "0", "--json"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DULY_")}
    with (directory.parent / "cluster.err").open("ab") as err:
        return subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=err,
            cwd=directory.parent,
            env={**environment, "PYTHONPATH": str(TESTS)},
        )
