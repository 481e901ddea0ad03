"""`duly run …`. A run is named by its id, or by a job (its id or name) for that job's newest run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from duly.commands.connection import Connection, find_job, find_run, usage
from duly.commands.exits import run_exit
from duly.commands.follow import followed
from duly.commands.progress import Advance, downloading
from duly.commands.terminal import fields, milliseconds, note, put, put_json, put_log, short_time, table
from duly.core.contract import RunStateName, RunView
from duly.core.errors import Conflict, InvalidInput

if TYPE_CHECKING:
    from duly.faces.client import Client

_HERE = Connection()

Run = Annotated[str, Parameter(name="RUN", help="Id of a run; or a job, for its newest run.")]
Runs = Annotated[str, Parameter(name="RUN", help="Ids of runs; or jobs, for their newest runs.")]


def list_runs(
    *,
    job: Annotated[str | None, Parameter(help="Only of this job: its id or name.")] = None,
    state: Annotated[tuple[RunStateName, ...], Parameter(negative=(), help="Only in this state; repeatable.")] = (),
    since: Annotated[str | None, Parameter(help="Scheduled at or after: RFC 3339, or as 2h for that long ago.")] = None,
    until: Annotated[str | None, Parameter(help="Scheduled before: RFC 3339, or as 10m for that long ago.")] = None,
    late: Annotated[bool | None, Parameter(help="Only those that started late; --no-late: only the others.")] = None,
    worker: Annotated[str | None, Parameter(help="Only of this worker.")] = None,
    limit: Annotated[int, Parameter(help="At most so many.")] = 50,
    cursor: Annotated[str | None, Parameter(help="The `next` of the page before.")] = None,
    connection: Connection = _HERE,
) -> None:
    """List runs, newest first."""
    with connection.client() as client:
        page = client.runs(
            job_id=None if job is None else find_job(client, job),
            state=state,
            since=_instant(since),
            until=_instant(until),
            late=late,
            worker=worker,
            limit=limit,
            cursor=cursor,
        )
    if connection.json:
        put_json(page)
        return
    rows = [
        (
            run.id,
            run.state,
            short_time(run.scheduled_at),
            milliseconds(run.lateness_ms),
            run.late_cause if run.late else None,
            run.attempt,
            run.worker,
            _why(run),
        )
        for run in page.items
    ]
    table(("ID", "STATE", "SCHEDULED", "LATENESS", "LATE", "ATTEMPT", "WORKER", "WHY"), rows, empty="no runs")
    if page.next is not None:
        note(f"more: --cursor {page.next}")
    if page.partial:
        note(f"without the shards that do not answer: {', '.join(page.missing_shards)}")


def show(run: Run, *, connection: Connection = _HERE) -> None:
    """Show a run and its attempts."""
    with connection.client() as client:
        view = client.get_run(find_run(client, run))
    if connection.json:
        put_json(view)
        return
    error = view.error
    fields(
        [
            ("id", view.id),
            ("job", view.job_id),
            ("state", view.state),
            ("scheduled", view.scheduled_at),
            ("started", view.started_at),
            ("finished", view.finished_at),
            ("lateness", milliseconds(view.lateness_ms)),
            ("late because", view.late_cause if view.late else None),
            ("reason", view.reason),
            ("attempt", view.attempt),
            ("worker", view.worker),
            ("exit code", view.exit_code),
            ("result", None if view.result is None else repr(view.result)),
            ("error", None if error is None else f"{error.kind}: {error.message}"),
            ("outputs", [f"{output.path} ({output.size:,} bytes)" for output in view.outputs]),
        ]
    )
    for attempt in view.attempts[:-1]:
        why = "" if attempt.error is None else f": {attempt.error.kind}: {attempt.error.message}"
        put(f"attempt {attempt.number} on {attempt.worker} {attempt.state}{why}")


def cancel(*runs: Runs, connection: Connection = _HERE) -> None:
    """End runs that wait; ask for the end of those that are out."""
    with connection.client() as client:
        views = [client.cancel(find_run(client, run)) for run in _some(runs)]
    _put_runs(views, connection)


def retry(
    *runs: Runs,
    wait: Annotated[bool, Parameter(negative=(), help="Wait for the new runs; end as the first that failed.")] = False,
    wait_timeout: Annotated[str | None, Parameter(help="Wait at most so long for each, as 10m.")] = None,
    connection: Connection = _HERE,
) -> int:
    """Run again what has ended, as new runs of the jobs."""
    waiting = wait or wait_timeout is not None
    with connection.client() as client:
        views = [client.retry(find_run(client, run)) for run in _some(runs)]
        if waiting:
            views = [client.wait(view.id, wait_timeout) for view in views]
    _put_runs(views, connection)
    codes = [run_exit(view) for view in views] if waiting else []
    return next((code for code in codes if code), 0)


def log(
    run: Run,
    *,
    follow: Annotated[bool, Parameter(alias="-f", negative=(), help="Stay until the attempt ends.")] = False,
    stream: Annotated[Literal["stdout", "stderr", "all"], Parameter(help="Which one.")] = "all",
    attempt: Annotated[int | None, Parameter(help="Which attempt; the last one by default.")] = None,
    connection: Connection = _HERE,
) -> None:
    """Print what a run has written; with -f its stderr comes on stderr. A terminal is shown text and colours only."""
    with connection.client() as client:
        run_id = find_run(client, run)
        if follow:
            pieces = followed(client, run_id, stream=stream, attempt=attempt)
            if connection.json:
                for piece in pieces:
                    put_json({"stream": piece.stream, "text": piece.data.decode(errors="replace")})
            else:
                put_log((piece.stream == "stderr" and stream == "all", piece.data) for piece in pieces)
        elif connection.json:
            streams: tuple[Literal["stdout", "stderr"], ...] = ("stdout", "stderr")
            for name in streams if stream == "all" else (stream,):
                text = client.log(run_id, stream=name, attempt=attempt)
                if text:
                    put_json({"stream": name, "text": text})
        else:
            put_log((False, data) for data in client.read_log(run_id, stream=stream, attempt=attempt))


def output(
    run: Run,
    *paths: Annotated[str, Parameter(name="PATH", help="Which files; all by default.")],
    to: Annotated[Path | None, Parameter(name=("-o", "--to"), help="A directory to put them in.")] = None,
    connection: Connection = _HERE,
) -> None:
    """List the files that a run left; with -o fetch them, with a single PATH print it."""
    with connection.client() as client:
        run_id = find_run(client, run)
        if to is None and len(paths) == 1 and not connection.json:
            for data in client.open_output(run_id, paths[0]):
                sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        found = {file.path: file for file in client.outputs(run_id)}
        missing = [path for path in paths if path not in found]
        if missing:
            raise InvalidInput(f"the run left no file {missing[0]!r}; it left: {', '.join(found) or 'none'}")
        wanted = [found[path] for path in paths or sorted(found)]
        saved: dict[str, str] = {}
        if to is not None:
            with downloading(sum(file.size for file in wanted), quiet=connection.json) as came:
                saved = {file.path: str(_fetch(client, run_id, file.path, to, came)) for file in wanted}
    if connection.json:
        items = [
            {"path": file.path, "size": file.size, "digest": file.digest}
            | ({"file": saved[file.path]} if file.path in saved else {})
            for file in wanted
        ]
        put_json({"items": items})
        return
    if saved:
        for path in saved.values():
            put(path)
    else:
        table(("PATH", "BYTES", "DIGEST"), [(file.path, file.size, file.digest) for file in wanted], empty="no files")


def explain(run: Run, *, connection: Connection = _HERE) -> None:
    """Say why a run is where it is."""
    with connection.client() as client:
        view = client.explain(find_run(client, run))
    if connection.json:
        put_json(view)
        return
    put(view.summary)
    for fact in view.facts:
        put(f"- {fact}")


def _fetch(client: Client, run_id: str, path: str, directory: Path, came: Advance) -> Path:
    root = directory.resolve()
    target = (root / path).resolve()
    if not target.is_relative_to(root):  # the server checks paths; a client does not rely on it
        raise InvalidInput(f"the run left a file with the path {path!r}, which leads out of {directory}")
    if target.is_dir():
        raise Conflict(f"{target} is a directory; fetch into another one")
    target.parent.mkdir(parents=True, exist_ok=True)
    return client.save_output(run_id, path, target, progress=came)


def _put_runs(views: list[RunView], connection: Connection) -> None:
    if connection.json:
        put_json({"items": views})
    else:
        for view in views:
            put(f"{view.id}\t{view.state}" + ("\tcancel requested" if view.cancel_requested else ""))


def _some(runs: tuple[str, ...]) -> tuple[str, ...]:
    if not runs:
        usage("name at least one run, by its id; or a job, for its newest run")
    return runs


def _why(run: RunView) -> str | None:
    return run.reason if run.error is None else f"{run.error.kind}: {run.error.message}"


def _instant(text: str | None) -> str | None:
    """RFC 3339 as it is; a duration is that long ago."""
    if text is None or "T" in text or "-" in text:
        return text
    from duly.adapters.system_clock import SystemClock
    from duly.core.instants import format_instant, parse_duration

    return format_instant(SystemClock().wall() - parse_duration(text))
