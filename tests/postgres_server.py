"""A real PostgreSQL for tests: the one of `duly cluster`, without the syncing, in a directory of its own."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from duly.cluster.postgres_server import PostgresServer, free_ports
from duly.cluster.supervision import launch

READY_WITHIN = 30.0  # seconds
PAUSE = threading.Event()  # never set: waiting on it is a pause between two looks


@contextlib.contextmanager
def postgres_server(*options: str) -> Iterator[str]:
    """Runs a server; yields its address, with its password. `options` go to `-c`."""
    home = Path(tempfile.mkdtemp(prefix="duly-postgres-"))
    try:
        server = PostgresServer(
            home,
            port=free_ports(1)[0],
            password="for-tests",
            log=home / "log",
            durable=False,
            options=("shared_buffers=32MB", *options),
        )
        server.make()
        program = server.program()
        process = launch(program)
        try:
            end = time.monotonic() + READY_WITHIN
            while not server.is_ready(process.pid):
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"postgres did not come up: {server.log.read_text()[-2_000:]}")
                PAUSE.wait(0.01)
            yield server.url
        finally:
            process.send_signal(program.end)
            process.wait(30)
    finally:
        shutil.rmtree(home, ignore_errors=True)
