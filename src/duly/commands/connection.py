"""Which server a command talks to, and how jobs and runs are named on the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from duly.core.errors import Conflict, NotFound

if TYPE_CHECKING:
    from duly.faces.client import Client
    from duly.settings import Loaded

COMMON = Group("Common options", sort_key=100)


@Parameter(name="*")
@dataclass(frozen=True)
class Output:
    """How the answer is written."""

    json: Annotated[bool, Parameter(group=COMMON, negative=(), help="Print JSON on stdout and nothing else.")] = False


@Parameter(name="*")
@dataclass(frozen=True)
class Connection:
    """The server, and how its answer is written."""

    json: Annotated[bool, Parameter(group=COMMON, negative=(), help="Print JSON on stdout and nothing else.")] = False
    server: Annotated[
        str | None, Parameter(group=COMMON, help="Server address; several, separated by commas, stand in for another.")
    ] = None
    token: Annotated[str | None, Parameter(group=COMMON, help="Access token; better in DULY_TOKEN.")] = None
    config: Annotated[Path | None, Parameter(group=COMMON, help="Settings file instead of ./duly.toml.")] = None

    def settings(self) -> Loaded:
        """All settings, these flags first."""
        from duly.settings import load

        return load({"server": self.server, "token": self.token}, path=self.config)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of that server."""
        from duly.faces.client import Client

        settings = self.settings().settings
        with Client.connect(settings.server, token=settings.token) as client:
            yield client


def find_job(client: Client, text: str) -> str:
    """The id of the job that is meant: its id, or its name if only one job has it."""
    from duly.core.job_ids import is_job_id

    if is_job_id(text):
        return text
    named = client.jobs(name=text, limit=100).items
    found = [job for job in named if job.state != "deleted"] or named
    if not found:
        raise NotFound(f"there is no job with the id or the name {text!r}; see: duly job list")
    if len(found) > 1:
        ids = ", ".join(job.id for job in found[:10])
        raise Conflict(f"{len(found)} jobs have the name {text!r}; name one by its id: {ids}")
    return found[0].id


def find_run(client: Client, text: str) -> str:
    """The id of the run that is meant: its id, or a job (by id or name) for its newest run that is not to come."""
    if "@" in text:
        return text
    job_id = find_job(client, text)
    runs = client.runs(job_id=job_id, limit=50).items
    if not runs:
        raise NotFound(f"job {job_id} has no run yet")
    return next((run for run in runs if run.state != "waiting"), runs[0]).id


def pairs(texts: tuple[str, ...], option: str) -> dict[str, str]:
    """`K=V` arguments as a mapping; ends the program for others."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            usage(f"{option} takes NAME=VALUE, not {text!r}")
        found[key] = value
    return found


def usage(text: str) -> None:
    """Ends the program: the command line asks for something that cannot be meant."""
    from duly.commands.exits import USAGE

    sys.stderr.write(f"duly: {text}\n")
    raise SystemExit(USAGE)
