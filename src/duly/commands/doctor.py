"""`duly doctor`: what is here, whether the server answers, and what to do about what is wrong."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from duly.commands.connection import Connection
from duly.commands.exits import FAILED, advice_for
from duly.commands.terminal import put_json, table
from duly.core.errors import DulyError, Forbidden, Unauthenticated
from duly.version import __version__

if TYPE_CHECKING:
    from duly.faces.client import Client
    from duly.settings import Settings

LEAST_FREE = 1 << 30  # bytes
MOST_OFFSET = 2.0  # seconds; the server's Date header tells whole ones

_HERE = Connection()


class Finding(NamedTuple):
    """The outcome of one check, and what to do if it is not `ok`."""

    check: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    advice: str = ""


def doctor(*, connection: Connection = _HERE) -> int:
    """Check this installation and the server, and say what to do; 1 if a check failed."""
    findings = list(_examine(connection))
    if connection.json:
        put_json({"items": [finding._asdict() for finding in findings]})
    else:
        rows = [(finding.status, finding.check, finding.detail, finding.advice) for finding in findings]
        table(("", "CHECK", "FOUND", "TO DO"), rows)
    return FAILED if any(finding.status == "failed" for finding in findings) else 0


def _examine(connection: Connection) -> Iterator[Finding]:
    yield Finding("duly", "ok", f"{__version__} in Python {platform.python_version()}")
    yield _libraries()
    try:
        settings = connection.settings().settings
    except DulyError as error:
        yield Finding("settings", "failed", str(error), "correct it; see: duly config show")
        return
    yield Finding("settings", "ok", f"server {settings.server}, directory {settings.dir}")
    yield from _directory(settings)
    with connection.client() as client:
        yield from _server(client)


def _libraries() -> Finding:
    from importlib.metadata import version

    import apsw

    return Finding("libraries", "ok", f"SQLite {apsw.sqlite_lib_version()}, tzdata {version('tzdata')}")


def _directory(settings: Settings) -> Iterator[Finding]:
    path = Path(settings.dir)
    if not path.exists():
        yield Finding("directory", "ok", f"{path} is not there yet; `duly up` makes it")
        path = path.absolute().parent
    elif not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("directory", "failed", f"{path} cannot be written by this user", "run as its owner")
    else:
        yield Finding("directory", "ok", f"{path} can be written")
    try:
        free = shutil.disk_usage(path).free
    except OSError as error:
        yield Finding("disk", "warning", f"{path}: {error.strerror}")
        return
    yield Finding(
        "disk",
        "ok" if free >= LEAST_FREE else "warning",
        f"{free / (1 << 30):,.1f} GiB free",
        "" if free >= LEAST_FREE else "make room: outputs and history need it",
    )


def _server(client: Client) -> Iterator[Finding]:
    try:
        version = client.version()
    except DulyError as error:
        yield Finding("server", "failed", error.detail, advice_for(error) or "look at the server's log")
        return
    same = version.version == __version__
    yield Finding(
        "server",
        "ok" if same else "warning",
        f"answers, version {version.version}",
        "" if same else f"this is version {__version__}; use the same on both sides",
    )
    yield _clock(client)
    try:
        client.jobs(limit=1)
    except (Unauthenticated, Forbidden) as error:
        yield Finding("token", "failed", error.detail, advice_for(error) or "")
        return
    yield Finding("token", "ok", "accepted, or none is needed")
    yield from _fleet(client)


def _clock(client: Client) -> Finding:
    from duly.adapters.system_clock import SystemClock
    from duly.faces.http_transport import HttpTransport

    before = SystemClock().wall() / 1_000_000
    transport = client.aio.transport
    theirs = client.thread.wait(transport.server_time()) if isinstance(transport, HttpTransport) else before
    after = SystemClock().wall() / 1_000_000
    if theirs is None:
        return Finding("clock", "warning", "the server does not tell its time")
    offset = max(theirs - after, before - theirs - 1, 0.0)  # their second may have begun up to one second ago
    if offset > MOST_OFFSET:
        return Finding("clock", "warning", f"{offset:,.0f} s from the server's", "let chrony or ntpd set both clocks")
    return Finding("clock", "ok", "agrees with the server's to the second")


def _fleet(client: Client) -> Iterator[Finding]:
    workers = client.workers()
    ready = [worker for worker in workers if worker.state == "ready"]
    yield Finding(
        "workers",
        "ok" if ready else "failed",
        f"{len(ready)} ready, {sum(worker.free for worker in ready)} slots free",
        "" if ready else "nothing can run: start a worker",
    )
    for shard in client.shards():
        held = shard.state == "up" and shard.term is not None
        yield Finding(
            f"shard {shard.name}",
            "ok" if held else "failed",
            f"{shard.state}, {shard.jobs:,} jobs" + (f", scheduled by {shard.term.owner}" if shard.term else ""),
            "" if held else "nothing starts there: look at its store and its schedulers",
        )
