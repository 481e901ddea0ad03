"""`duly job …`. A job is named by its id, or by its name if only one has it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from duly.commands.connection import Connection, find_job, usage
from duly.commands.exits import run_exit
from duly.commands.flags import JobFlags
from duly.commands.schedule import put_times
from duly.commands.terminal import fields, milliseconds, note, put, put_diff, put_json, short_time, table
from duly.core.contract import CommandSpec, FunctionSpec, HttpSpec, JobStateName, JobView, OccurrenceView
from duly.core.versions import changed as changed_fields
from duly.core.versions import diff as difference

if TYPE_CHECKING:
    from collections.abc import Callable

    from duly.faces.client import Client

_HERE = Connection()
_NONE = JobFlags()

Job = Annotated[str, Parameter(name="JOB", help="Id or name.")]
Jobs = Annotated[str, Parameter(name="JOB", help="Ids or names.")]


def list_jobs(
    *,
    name: Annotated[str | None, Parameter(help="The whole name.")] = None,
    label: Annotated[tuple[str, ...], Parameter(negative=(), help="NAME=VALUE; can be repeated.")] = (),
    state: Annotated[JobStateName | None, Parameter(help="Only in this state.")] = None,
    task: Annotated[Literal["function", "command", "http"] | None, Parameter(help="Only of this kind.")] = None,
    q: Annotated[str | None, Parameter(help="A part of the name or id.")] = None,
    order: Annotated[
        Literal["created", "-created", "name", "-name"] | None, Parameter(help="First to last; - turns it around.")
    ] = None,
    limit: Annotated[int, Parameter(help="At most so many.")] = 100,
    cursor: Annotated[str | None, Parameter(help="The `next` of the page before.")] = None,
    connection: Connection = _HERE,
) -> None:
    """List jobs."""
    with connection.client() as client:
        page = client.jobs(
            name=name,
            label=[text if ":" in text else text.replace("=", ":", 1) for text in label],
            state=state,
            task=task,
            q=q,
            order=order,
            limit=limit,
            cursor=cursor,
        )
    if connection.json:
        put_json(page)
        return
    rows = [
        (
            job.id,
            job.name,
            task_text(job),
            job.schedule,
            job.state,
            short_time(job.next_run_at),
            "" if job.last_run is None else job.last_run.state,
        )
        for job in page.items
    ]
    table(("ID", "NAME", "TASK", "SCHEDULE", "STATE", "NEXT", "LAST"), rows, empty="no jobs")
    if page.next is not None:
        note(f"more: --cursor {page.next}")
    if page.partial:
        note(f"without the shards that do not answer: {', '.join(page.missing_shards)}")


def show(job: Job, *, connection: Connection = _HERE) -> None:
    """Show a job."""
    with connection.client() as client:
        view = client.get(find_job(client, job))
    _put_job(view, connection)


def update(
    job: Job,
    *,
    schedule: Annotated[str | None, Parameter(help="Another schedule.")] = None,
    task: Annotated[str | None, Parameter(help='JSON, merged with the task: \'{"argv": ["./task", "-v"]}\'.')] = None,
    if_version: Annotated[int | None, Parameter(help="Only if it is still at this version.")] = None,
    flags: JobFlags = _NONE,
    connection: Connection = _HERE,
) -> None:
    """Change fields of a job."""
    changes: dict[str, Any] = flags.options()
    if task is not None:
        try:
            changes["task"] = json.loads(task)
        except ValueError as error:
            usage(f"--task is not JSON: {error}")
    if not changes and schedule is None:
        usage("nothing to change; see: duly job update --help")
    with connection.client() as client:
        view = client.update(find_job(client, job), if_version=if_version, schedule=schedule, **changes)
    _put_job(view, connection)


def versions(
    job: Job,
    *,
    limit: Annotated[int, Parameter(help="At most so many.")] = 100,
    cursor: Annotated[str | None, Parameter(help="The `next` of the page before.")] = None,
    connection: Connection = _HERE,
) -> None:
    """List the definitions that a job has had."""
    with connection.client() as client:
        page = client.versions(find_job(client, job), limit=limit, cursor=cursor)
    if connection.json:
        put_json(page)
        return
    rows = [
        (
            each.version,
            short_time(each.at),
            each.by,
            "now" if each.current else "",
            "" if each.changed is None else ", ".join(each.changed),
        )
        for each in page.items
    ]
    table(("VERSION", "AT", "BY", "IN FORCE", "CHANGED"), rows)
    if page.next is not None:
        note(f"more: --cursor {page.next}")


def diff(
    job: Job,
    from_version: Annotated[int | None, Parameter(name="A", help="A version; the one before B, unless named.")] = None,
    to_version: Annotated[int | None, Parameter(name="B", help="Another; the present one, unless named.")] = None,
    *,
    connection: Connection = _HERE,
) -> None:
    """Show what differs between two definitions of a job."""
    with connection.client() as client:
        job_id = find_job(client, job)
        if from_version is None or to_version is None:
            newest = client.versions(job_id, limit=2).items
            to_version = newest[0].version if to_version is None else to_version
            from_version = newest[-1].version if from_version is None else from_version
        older, newer = (client.get_version(job_id, number) for number in (from_version, to_version))
    lines = difference(older.definition, newer.definition)
    if connection.json:
        changed = changed_fields(older.definition, newer.definition)
        put_json({"from": older, "to": newer, "changed": changed, "diff": [sign + text for sign, text in lines]})
        return
    if not lines:
        note(f"versions {older.version} and {newer.version} are alike")
        return
    put(f"--- version {older.version}\t{older.at}")
    put(f"+++ version {newer.version}\t{newer.at}")
    put_diff(lines)


def restore(
    job: Job,
    version: Annotated[int, Parameter(name="VERSION", help="As duly job versions lists them.")],
    *,
    if_version: Annotated[int | None, Parameter(help="Only if it is still at this version.")] = None,
    connection: Connection = _HERE,
) -> None:
    """Define a job again as it was at a version; paused or not, it stays so."""
    with connection.client() as client:
        view = client.restore(find_job(client, job), version, if_version=if_version)
    _put_job(view, connection)


def delete(*jobs: Jobs, connection: Connection = _HERE) -> None:
    """Delete jobs; their history stays until its retention ends."""
    with connection.client() as client:
        ids = [find_job(client, job) for job in _some(jobs)]
        for job_id in ids:
            client.delete(job_id)
    if connection.json:
        put_json({"items": [{"id": job_id, "state": "deleted"} for job_id in ids]})
    else:
        for job_id in ids:
            put(f"{job_id}\tdeleted")


def pause(*jobs: Jobs, connection: Connection = _HERE) -> None:
    """Let no run of these jobs start; what runs goes on."""
    _each(jobs, connection, lambda client, job_id: client.pause(job_id))


def resume(*jobs: Jobs, connection: Connection = _HERE) -> None:
    """Let runs start again; what fell due meanwhile is not made up for."""
    _each(jobs, connection, lambda client, job_id: client.resume(job_id))


def trigger(
    *jobs: Jobs,
    wait: Annotated[bool, Parameter(negative=(), help="Wait for the runs; end as the first that failed.")] = False,
    wait_timeout: Annotated[str | None, Parameter(help="Wait at most so long for each, as 10m.")] = None,
    connection: Connection = _HERE,
) -> int:
    """Run jobs now, besides their schedules."""
    with connection.client() as client:
        runs = [client.trigger(find_job(client, job)) for job in _some(jobs)]
        if wait or wait_timeout is not None:
            runs = [client.wait(run.id, wait_timeout) for run in runs]
    if connection.json:
        put_json({"items": runs})
    else:
        for run in runs:
            put(f"{run.id}\t{run.state}")
    codes = [run_exit(run) for run in runs] if wait or wait_timeout is not None else []
    return next((code for code in codes if code), 0)


def upcoming(
    job: Job,
    *,
    count: Annotated[int, Parameter(help="How many.")] = 10,
    connection: Connection = _HERE,
) -> None:
    """Show the next times of a job."""
    with connection.client() as client:
        view = client.get(find_job(client, job))
        preview = client.preview(
            view.schedule,
            timezone=view.timezone,
            dst=view.dst,
            count=count,
            start=view.start,
            end=view.end,
            calendar=view.calendar,
            job_id=view.id,
        )
    items = preview.items if view.state == "active" else []
    if preview.kind in ("once", "delay"):  # relative to what the server knows, not to now
        at = view.next_run_at
        items = [] if at is None else [OccurrenceView(at=at, local=at)]
    if connection.json:
        put_json({"schedule": view.schedule, "timezone": view.timezone, "items": items})
        return
    note(f"{view.state}: {preview.description}")
    put_times(items)


def _each(jobs: tuple[str, ...], connection: Connection, act: Callable[[Client, str], JobView]) -> None:
    with connection.client() as client:
        views = [act(client, find_job(client, job)) for job in _some(jobs)]
    if connection.json:
        put_json({"items": views})
    else:
        for view in views:
            put(f"{view.id}\t{view.state}")


def _some(jobs: tuple[str, ...]) -> tuple[str, ...]:
    if not jobs:
        usage("name at least one job, by its id or name")
    return jobs


def task_text(job: JobView) -> str:
    """What a job runs, in a few words."""
    match job.task:
        case FunctionSpec(name=name):
            return name
        case CommandSpec(argv=argv):
            words = " ".join(argv) if argv else "./task"
            return words if len(words) <= 60 else words[:57] + "..."
        case HttpSpec(method=method, url=url):
            return f"{method} {url}"


def _put_job(job: JobView, connection: Connection) -> None:
    if connection.json:
        put_json(job)
        return
    last = job.last_run
    fields(
        [
            ("id", job.id),
            ("name", job.name),
            ("namespace", job.namespace),
            ("state", job.state),
            ("task", task_text(job)),
            ("schedule", f"{job.schedule}  ({job.timezone})"),
            ("next run", short_time(job.next_run_at)),
            ("last run", None if last is None else f"{last.state}, {milliseconds(last.lateness_ms)} late ({last.id})"),
            ("priority", job.priority),
            ("max lateness", job.max_lateness),
            ("timeout", job.timeout),
            ("attempts", job.retry.max_attempts),
            ("misfire", job.misfire),
            ("overlap", job.overlap),
            ("labels", job.labels),
            ("requires", job.requires),
            ("version", job.version),
            ("created", short_time(job.created_at)),
            ("updated", short_time(job.updated_at)),
        ]
    )
