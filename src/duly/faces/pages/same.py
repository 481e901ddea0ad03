"""The same as curl and as a command: what a form would do, for those who want to repeat it."""

from __future__ import annotations

import shlex
from typing import Any, Final

import msgspec

from duly.core.contract import CommandSpec, JobSpec, JobView

_READ_ONLY: Final = frozenset(JobView.__struct_fields__) - frozenset(JobSpec.__struct_fields__)


def sparse(job: JobView | JobSpec) -> dict[str, Any]:
    """A job as its client may have written it: without what is read-only or the default."""
    plain: dict[str, Any] = msgspec.to_builtins(job)
    least: dict[str, Any] = msgspec.to_builtins(JobSpec(task=job.task, schedule=job.schedule))
    return {
        name: value
        for name, value in plain.items()
        if name not in _READ_ONLY and (name in ("task", "schedule") or least.get(name) != value)
    }


def as_curl(job: JobView | JobSpec, *, job_id: str | None = None) -> str:
    """A request that makes the job, or changes that one."""
    body = msgspec.json.encode(sparse(job)).decode()
    method, path = ("POST", "/v1/jobs") if job_id is None else ("PATCH", f"/v1/jobs/{job_id}")
    head = f'curl -X {method} "$DULY_SERVER{path}"'
    return f"{head} \\\n  -H 'Content-Type: application/json' \\\n  -d {shlex.quote(body)}"


def as_cli(job: JobView | JobSpec) -> str | None:
    """A command that makes the job, where the command line can: commands with their code at hand."""
    task = job.task
    if not isinstance(task, CommandSpec) or task.code is None:
        return None
    words = ["duly", "create", "./task", "--schedule", job.schedule]
    if job.name:
        words += ["--name", job.name]
    if job.timezone != "UTC":
        words += ["--timezone", job.timezone]
    for path in task.inputs:
        words += ["--input", path]
    arguments = task.argv[1:]
    return shlex.join(words) + ("" if not arguments else " -- " + shlex.join(arguments))
