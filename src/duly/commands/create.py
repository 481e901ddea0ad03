"""`duly create`: a command with its files, a function, or an HTTP request."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from duly.commands.connection import Connection, pairs, usage
from duly.commands.exits import run_exit
from duly.commands.flags import JobFlags
from duly.commands.progress import uploading
from duly.commands.terminal import note, put, put_json, short_time, warn
from duly.core.instants import parse_instant
from duly.core.model import JobId, run_id

if TYPE_CHECKING:
    from duly.core.contract import JobView
    from duly.faces.client import Client

_DEFAULTS = (JobFlags(), Connection())


def create(
    *words: Annotated[
        str,
        Parameter(
            help="CODE, an executable file to upload, and after -- its arguments. With --program: a program of the "
            "worker's and its arguments. With --function: the arguments, as JSON or plain text."
        ),
    ],
    schedule: Annotated[str, Parameter(help="When: `now`, `in 5m`, `every 15m`, `0 2 * * *`, `@daily`, …")],
    input: Annotated[  # noqa: A002 - the flag's name
        tuple[str, ...], Parameter(negative=(), help="FILE or NAME=FILE, put at input/NAME; can be repeated.")
    ] = (),
    env: Annotated[tuple[str, ...], Parameter(negative=(), help="NAME=VALUE; can be repeated.")] = (),
    stdin: Annotated[Path | None, Parameter(help="A text file that the command reads.")] = None,
    program: Annotated[bool, Parameter(negative=(), help="CODE names a program of the worker's.")] = False,
    function: Annotated[str | None, Parameter(help="MODULE:NAME of a function that workers register.")] = None,
    url: Annotated[str | None, Parameter(help="Send a request there instead.")] = None,
    method: Annotated[str, Parameter(help="Of the request.")] = "POST",
    header: Annotated[tuple[str, ...], Parameter(negative=(), help="NAME=VALUE; can be repeated.")] = (),
    body: Annotated[str | None, Parameter(help="Of the request: JSON, or plain text.")] = None,
    expect: Annotated[str, Parameter(help="Statuses that are success, as 2xx or 200,404.")] = "2xx",
    key: Annotated[str | None, Parameter(help="The same key again gives the same job.")] = None,
    wait: Annotated[bool, Parameter(negative=(), help="Wait for the first run, and end as it does.")] = False,
    wait_timeout: Annotated[str | None, Parameter(help="Wait at most so long, as 10m.")] = None,
    flags: JobFlags = _DEFAULTS[0],
    connection: Connection = _DEFAULTS[1],
) -> int:
    """Create a job and print its id; with --wait, wait for its first run."""
    task: dict[str, Any]
    if url is not None:
        if words:
            usage(f"--url takes no CODE; what is {words[0]!r}?")
        headers = pairs(header, "--header")
        task = {"url": url, "method": method, "headers": headers, "body": _value(body), "expect": expect}
    elif function is not None:
        task = {"function": function, "args": [_value(word) for word in words]}
    else:
        task = _command(words, program=program, inputs=input, env=env, stdin=stdin)
    with connection.client() as client:
        files = [Path(file) for file in ([task["code"]] if "code" in task else []) + [*task.get("inputs", {}).values()]]
        with uploading(files, quiet=connection.json) as source:
            if "code" in task:
                task["code"] = source(Path(task["code"]))
            if "inputs" in task:
                task["inputs"] = {name: source(Path(file)) for name, file in task["inputs"].items()}
            job = client.create(schedule=schedule, key=key, **task, **flags.options())
        if wait or wait_timeout is not None:
            return _wait(client, job, wait_timeout, as_json=connection.json)
    if connection.json:
        put_json(job)
    else:
        put(job.id)
        note(f"next run at {short_time(job.next_run_at)}")
    return 0


def _command(
    words: tuple[str, ...], *, program: bool, inputs: tuple[str, ...], env: tuple[str, ...], stdin: Path | None
) -> dict[str, Any]:
    if not words:
        usage("give CODE, an executable file; or --program, --function or --url")
    code, *arguments = words
    task: dict[str, Any] = {"inputs": dict(_named(text) for text in inputs), "env": pairs(env, "--env")}
    if stdin is not None:
        task["stdin"] = _text(stdin)
    if program:
        return {**task, "argv": [code, *arguments]}
    if not Path(code).is_file():
        usage(f"there is no file {code!r}; a program of the worker's is named with --program")
    return {**task, "code": code, "argv": ["./task", *arguments]}


def _named(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    found = (name, path) if equals and not Path(text).is_file() else (Path(text).name, text)
    if not Path(found[1]).is_file():
        usage(f"there is no file {found[1]!r}")
    return found


def _text(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        usage(f"{path} cannot be read as text: {error}")
        raise


def _value(text: str | None) -> Any:
    """JSON if it is that, else the text itself."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _wait(client: Client, job: JobView, timeout: str | None, *, as_json: bool) -> int:
    if job.next_run_at is not None and job.last_run is None and job.jitter == "0s":
        first = str(run_id(JobId(job.id), parse_instant(job.next_run_at)))
    else:
        first = client.runs(job_id=job.id, order="scheduled", limit=1).items[0].id
    if not as_json:
        put(job.id)
    note(f"waiting for run {first}")
    from duly.faces.handles import JobFailed

    run = client.wait(first, timeout)
    if as_json:
        put_json(run)
    elif run.state == "succeeded":
        note("succeeded")
    else:
        warn(str(JobFailed(run)))
    return run_exit(run)
