"""`duly doctor`: what is here, whether the servers answer, and what to do about what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from duly.commands.connection import Connection
from duly.commands.exits import FAILED
from duly.commands.terminal import put_json, table
from duly.core.errors import DulyError

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
    from duly.commands import doctor_here, doctor_server

    yield from doctor_here.installed()
    try:
        settings = connection.settings().settings
    except DulyError as error:
        pointer = error.errors[0].pointer if error.errors else ""
        yield Finding("settings", "failed", f"{pointer} {error.detail}".strip(), "correct it; see: duly config show")
        return
    yield Finding("settings", "ok", f"server {settings.server}, directory {settings.dir}")
    yield from doctor_here.machine(settings)
    yield from doctor_server.servers(settings)
