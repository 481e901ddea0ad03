"""What stays on a terminal while things change: `duly top`, `duly run log -f`, progress bars. Terminals are real."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from conformance.cutting_proxy import cutting_proxy
from duly.commands.top import Snapshot
from duly.faces.client import Client

DULY = [sys.executable, "-m", "duly.cli"]


@pytest.fixture
def environment(server: str, tmp_path: Path) -> dict[str, str]:
    """Of commands against the server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DULY_")}
    return {**kept, "DULY_SERVER": server, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self.master = master
        self.shown = b""

    def until(self, text: bytes) -> None:
        """Read until the text was shown."""
        while text not in self.shown:
            assert self._read(), self.shown

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self._read():
            pass
        return self.process.wait(20)

    def _read(self) -> bool:
        try:
            data = os.read(self.master, 65_536)
        except OSError:  # the last one who had it open has closed it
            return False
        self.shown += data
        return bool(data)


@contextmanager
def on_terminal(words: list[str], environment: dict[str, str], *, stdout_too: bool = True) -> Iterator[Terminal]:
    """The command, with stderr on a terminal and stdout there or nowhere."""
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [*DULY, *words],
            stdin=slave,
            stdout=slave if stdout_too else subprocess.DEVNULL,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        try:
            yield Terminal(process, master)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(20)
    finally:
        os.close(master)


@pytest.fixture
def held(client: Client, tmp_path: Path) -> Iterator[str]:
    """A run that writes a line and waits to be released: a byte into the pipe `go` in the folder."""
    pipe = tmp_path / "go"
    os.mkfifo(pipe)
    script = f"printf 'one \\033[32mgreen\\033[0m\\033]0;t\\007\\n'; read _ < {pipe}; echo two"
    job = client.create(argv=["/bin/sh", "-c", script], schedule="now", name="held")
    yield job.id
    client.delete(job.id)


def release(folder: Path) -> None:
    """Let the held run end."""
    (folder / "go").write_text("\n")


async def test_a_log_is_followed_over_broken_connections(
    held: str, server: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """Nothing twice, nothing lost; a pipe gets every byte. Ctrl-C ends it with 130."""
    async with cutting_proxy(server) as proxy:
        words = [*DULY, "run", "log", "-f", held, "--server", proxy.url]
        how = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE, "env": environment}
        follower = await asyncio.create_subprocess_exec(*words, **how)
        other = await asyncio.create_subprocess_exec(*words, **how)
        assert follower.stdout is not None
        assert other.stdout is not None
        async with asyncio.timeout(50):
            first = await follower.stdout.readline()
            await other.stdout.readline()
            other.send_signal(signal.SIGINT)
            _, said = await other.communicate()
            cuts = proxy.cuts
            proxy.cut()
            await asyncio.to_thread(release, tmp_path)
            rest, err = await follower.communicate()
    assert first + rest == b"one \x1b[32mgreen\x1b[0m\x1b]0;t\x07\ntwo\n", err
    assert (follower.returncode, other.returncode, said) == (0, 130, b"")
    assert proxy.cuts > cuts


def test_top_on_a_terminal(held: str, environment: dict[str, str], tmp_path: Path) -> None:
    """It shows what runs, changes, and ends well with Ctrl-C; the log on a terminal keeps colours only."""
    with on_terminal(["top", "--every", "100ms"], environment) as top:
        top.until(b"RUNNING")
        top.until(b"held")
        top.shown = b""
        release(tmp_path)
        top.until(b"0 running")
        top.process.send_signal(signal.SIGINT)
        assert top.end() == 0
    with on_terminal(["run", "log", held], environment) as log:
        assert log.end() == 0
    assert log.shown == b"one \x1b[32mgreen\x1b[0m\r\ntwo\r\n"


def test_top_elsewhere(held: str, environment: dict[str, str], tmp_path: Path, client: Client) -> None:
    """One look: as text, and as JSON."""
    later = client.create(argv=["/bin/true"], schedule="in 1h", name="later")
    text = subprocess.run([*DULY, "top"], capture_output=True, env=environment, check=True, timeout=30)
    lines = text.stdout.decode().splitlines()
    assert "waiting" in lines[0]
    assert {"RUNNING", "NEXT", "LATE", "WORKERS"} <= set(lines)
    shown = subprocess.run([*DULY, "top", "--json"], capture_output=True, env=environment, check=True, timeout=30)
    look = msgspec.convert(json.loads(shown.stdout), Snapshot)
    assert [line.job for line in look.running] == ["held"]
    assert "later" in [line.job for line in look.due]
    assert look.workers
    wrong = subprocess.run([*DULY, "top", "--every", "1us"], capture_output=True, env=environment, check=False)
    assert (wrong.returncode, b"every" in wrong.stderr) == (2, True)
    client.delete(later.id)
    release(tmp_path)


def test_progress_is_for_terminals(environment: dict[str, str], tmp_path: Path, client: Client) -> None:
    """A bar of what is uploaded, on stderr; none in a pipe."""
    code = tmp_path / "task"
    code.write_bytes(b"#!/bin/sh\nexit 0\n#" + b"x" * 3_000_000)
    code.chmod(0o755)
    words = ["create", str(code), "--schedule", "in 1h", "--name", "large"]
    with on_terminal(words, environment, stdout_too=False) as create:
        assert create.end() == 0
    assert b"uploading" in create.shown
    assert b"3.0" in create.shown
    with on_terminal([*words, "--json"], environment, stdout_too=False) as create:
        assert create.end() == 0
    assert create.shown == b"", "a program reads along"
    piped = subprocess.run([*DULY, *words], capture_output=True, env=environment, check=True, timeout=30)
    assert (piped.stderr, piped.stdout.count(b"\n")) == (b"", 1)
    for job in client.jobs(name="large").items:
        assert job.task.code is not None  # type: ignore[union-attr]  # a function task
        client.delete(job.id)


def test_downloads_and_imports_have_bars_too(environment: dict[str, str], tmp_path: Path, client: Client) -> None:
    """Outputs that are fetched, the entries of a crontab; nothing with --json."""
    job = client.create(task={"kind": "command", "argv": ["sh", "-c", "head -c 3000000 /dev/zero > output/zeros"]},
                        schedule="now", name="zeros")  # fmt: skip
    client.wait(client.runs(job_id=job.id).items[0].id, 20)
    fetch = ["run", "output", job.id, "-o", str(tmp_path / "fetched")]
    with on_terminal(fetch, environment, stdout_too=False) as output:
        assert output.end() == 0
    assert b"downloading" in output.shown
    assert b"3.0/3.0 MB" in output.shown
    assert (tmp_path / "fetched" / "zeros").stat().st_size == 3_000_000
    with on_terminal([*fetch, "--json"], environment, stdout_too=False) as output:
        assert (output.end(), output.shown) == (0, b"")
    crontab = tmp_path / "crontab"
    crontab.write_text("".join(f"{n} 3 * * * true {n}\n" for n in range(60)))
    words = ["crontab", "import", str(crontab), "--label", "imported=yes"]
    with on_terminal(words, environment, stdout_too=False) as imported:
        assert imported.end() == 0
    assert b"importing" in imported.shown
    assert b"60/60" in imported.shown
    with on_terminal([*words, "--json"], environment, stdout_too=False) as imported:
        assert (imported.end(), imported.shown) == (0, b"")
    for made in client.jobs(label="imported:yes", limit=100).items:
        client.delete(made.id)
