"""`duly crontab import`."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from duly.commands.connection import Connection, pairs, usage
from duly.commands.exits import FAILED
from duly.commands.progress import counting
from duly.commands.terminal import note, put_json, table

if TYPE_CHECKING:
    from duly.core.crontab import Entry

_HERE = Connection()


def import_crontab(
    file: Annotated[str, Parameter(name="FILE", help="A crontab; - reads stdin, as of `crontab -l`.")],
    *,
    dry_run: Annotated[bool, Parameter(negative=(), help="Only show what would be made.")] = False,
    system: Annotated[
        bool | None, Parameter(help="The lines name users; by default for /etc/crontab and /etc/cron.d.")
    ] = None,
    timezone: Annotated[str | None, Parameter(help="Where the file sets none; this machine's by default.")] = None,
    label: Annotated[tuple[str, ...], Parameter(negative=(), help="NAME=VALUE for the jobs; repeatable.")] = (),
    connection: Connection = _HERE,
) -> int:
    """Make jobs of the lines of a crontab. Importing the same file again makes nothing new."""
    from duly.core.crontab import Remark, parse_crontab

    path = Path(file)
    text = _read(file)
    place = "-" if file == "-" else str(path.resolve())
    crontab = parse_crontab(
        text,
        identity=f"{socket.gethostname()}:{place}",
        system=_is_system(place) if system is None else system,
        timezone=timezone or local_timezone(),
    )
    labels = pairs(label, "--label")
    items: list[dict[str, Any]] = []
    if dry_run:
        items = [_document(entry, next_run_at=_next(entry)) for entry in crontab.entries]
    else:
        with connection.client() as client, counting("importing", len(crontab.entries), quiet=connection.json) as made:
            for entry in crontab.entries:
                job = entry.job(labels)
                view = client.create(key=entry.key, task=job.pop("task"), schedule=job.pop("schedule"), **job)
                items.append(_document(entry, next_run_at=view.next_run_at, id=view.id, state=view.state))
                made(1)
                if view.state == "deleted":
                    crontab.notes.append(Remark(entry.line, "its job was made by an import before and deleted since"))
    if connection.json:
        problems = [{"line": one.line, "detail": one.text} for one in crontab.problems]
        notes = [{"line": one.line, "detail": one.text} for one in crontab.notes]
        put_json({"dry_run": dry_run, "items": items, "problems": problems, "notes": notes})
    else:
        rows = [
            (item["line"], item.get("id"), item["name"], item["schedule"], item["timezone"], item["next_run_at"])
            for item in items
        ]
        table(("LINE", "JOB", "NAME", "SCHEDULE", "TIME ZONE", "NEXT"), rows, empty="no entries")
        for one in crontab.notes:
            note(f"line {one.line}: {one.text}")
        for one in crontab.problems:
            sys.stderr.write(f"duly: line {one.line} not imported: {one.text}\n")
    return FAILED if crontab.problems else 0


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(errors="surrogateescape")
    except OSError as error:
        usage(f"{file}: {error.strerror}")
        raise


def _is_system(place: str) -> bool:
    return place == "/etc/crontab" or place.startswith("/etc/cron.d/")


def local_timezone() -> str:
    """The IANA name of this machine's time zone, UTC if it has none."""
    named = os.environ.get("TZ", "").lstrip(":")
    if "/" in named or named == "UTC":
        return named
    link = os.path.realpath("/etc/localtime")
    _, found, name = link.partition("/zoneinfo/")
    if found:
        return name.removeprefix("posix/").removeprefix("right/").replace("Etc/UTC", "UTC")
    try:
        return Path("/etc/timezone").read_text().strip() or "UTC"
    except OSError:
        return "UTC"


def _next(entry: Entry) -> str | None:
    from duly.adapters.system_clock import SystemClock
    from duly.core.instants import format_instant
    from duly.core.schedule import parse_schedule

    now = SystemClock().wall()
    at = parse_schedule(entry.schedule, timezone=entry.timezone, anchor=now, seed=entry.key).next_after(now)
    return None if at is None else format_instant(at)


def _document(entry: Entry, **more: Any) -> dict[str, Any]:
    return {
        "line": entry.line,
        "name": entry.name,
        "schedule": entry.schedule,
        "timezone": entry.timezone,
        "command": entry.command,
        "user": entry.user,
        **more,
    }
