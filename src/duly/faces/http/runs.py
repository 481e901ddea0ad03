"""Runs over HTTP: list, read, wait for, cancel, retry, explain, and what they printed."""

from __future__ import annotations

import codecs
import re
from collections.abc import AsyncIterator
from typing import Annotated, ClassVar, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from duly.core.contract import ExplainView, RunList, RunStateName, RunView
from duly.core.errors import NotFound
from duly.core.instants import parse_instant
from duly.core.job_ids import is_job_id
from duly.core.model import JobId, RunState, WorkerId
from duly.core.tokens import Scope
from duly.faces.http.answers import Answer, EventStream, Streamed, json_reply
from duly.faces.http.call import Call
from duly.faces.http.jobs import answer_with_run, link
from duly.faces.http.operation import Operation, Returns
from duly.faces.http.query import NO_CONTROLS, Cursor, Limit, Query
from duly.ports import RunQuery

Moment = Annotated[str, Meta(max_length=40, extra_json_schema={"format": "date-time"})]
_LINE_END = re.compile(r"\r\n|\r|\n")


class JobRunsAsked(Query, frozen=True, kw_only=True):
    """Which runs of a job."""

    commas: ClassVar[frozenset[str]] = frozenset({"state"})

    state: Annotated[tuple[RunStateName, ...], Meta(max_length=20, description="repeat it, or write a,b")] = ()
    since: Annotated[Moment, Meta(description="scheduled at or after")] | None = None
    until: Annotated[Moment, Meta(description="scheduled before")] | None = None
    late: Literal["true", "false"] | UnsetType = UNSET
    worker: Annotated[str, Meta(pattern=NO_CONTROLS, max_length=200)] | None = None
    order: Literal["-scheduled", "scheduled"] = "-scheduled"
    limit: Limit = 100
    cursor: Cursor | None = None


class RunsAsked(JobRunsAsked, frozen=True, kw_only=True):
    """Which runs."""

    job_id: Annotated[str, Meta(pattern=NO_CONTROLS, max_length=64)] | None = None


class LogAsked(Query, frozen=True, kw_only=True):
    """Which part of a log, and whether to stay with it."""

    stream: Literal["stdout", "stderr", "all"] = "all"
    attempt: Annotated[int, Meta(ge=1, le=1_000_000, description="the last one, if left out")] | UnsetType = UNSET
    follow: Literal["true", "false"] = "false"


async def list_runs(call: Call) -> Answer:
    """A page of runs."""
    asked = call.query(RunsAsked)
    return await _page(call, asked, asked.job_id)


async def list_job_runs(call: Call) -> Answer:
    """A page of one job's runs."""
    job_id = call.path["job_id"]
    if not is_job_id(job_id):
        raise NotFound(f"there is no job {job_id[:80]!r}")
    await call.context.servicer.get_job(job_id, namespace=call.namespace)
    return await _page(call, call.query(JobRunsAsked), job_id)


async def _page(call: Call, asked: JobRunsAsked, job_id: str | None) -> Answer:
    page = await call.context.servicer.list_runs(
        RunQuery(
            namespace=call.namespace,
            job_id=None if job_id is None else JobId(job_id),
            states=tuple(RunState[name.upper()] for name in asked.state),
            since=None if asked.since is None else parse_instant(asked.since, pointer="/query/since"),
            until=None if asked.until is None else parse_instant(asked.until, pointer="/query/until"),
            late=None if asked.late is UNSET else asked.late == "true",
            worker=None if asked.worker is None else WorkerId(asked.worker),
            oldest_first=asked.order == "scheduled",
            cursor=asked.cursor,
            limit=asked.limit,
        )
    )
    return json_reply(page, headers=link(call, page.next))


async def get_run(call: Call) -> Answer:
    """One run; with `Prefer: wait`, once it has ended or the time is up."""
    run = await call.context.servicer.get_run(call.path["run_id"], namespace=call.namespace)
    return await answer_with_run(call, run, pending=200)


async def cancel_run(call: Call) -> Answer:
    """Ask for a run's end."""
    return json_reply(await call.context.servicer.cancel_run(call.path["run_id"], namespace=call.namespace))


async def retry_run(call: Call) -> Answer:
    """Run it again."""
    run = await call.context.servicer.retry_run(call.path["run_id"], namespace=call.namespace)
    return json_reply(run, status=202, headers=[(b"location", f"/v1/runs/{run.id}".encode())])


async def explain_run(call: Call) -> Answer:
    """Why it is where it is."""
    return json_reply(await call.context.servicer.explain_run(call.path["run_id"], namespace=call.namespace))


async def get_log(call: Call) -> Answer:
    """What a run printed: as text, or as events while it goes on."""
    asked = call.query(LogAsked)
    run_id, servicer = call.path["run_id"], call.context.servicer
    attempt = None if asked.attempt is UNSET else asked.attempt
    if asked.follow == "true":
        await servicer.get_run(run_id, namespace=call.namespace)  # so that an unknown run is a 404, not an event
        return EventStream(_log_frames(call, run_id, asked.stream, attempt))
    chunks = await servicer.read_log(run_id, namespace=call.namespace, stream=asked.stream, attempt=attempt)
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    return Streamed(chunks, headers=headers)


async def _log_frames(
    call: Call, run_id: str, stream: Literal["stdout", "stderr", "all"], attempt: int | None
) -> AsyncIterator[bytes]:
    """Events `stdout` and `stderr` with text as their data, then `end` with the run's state.

    Bytes of a character that is not complete wait for the rest of it.
    """
    servicer = call.context.servicer
    decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}
    async for piece in servicer.follow_log(run_id, namespace=call.namespace, stream=stream, attempt=attempt):
        text = decoders[piece.stream].decode(piece.data)
        if text:
            yield frame(piece.stream, text)
    for name, decoder in decoders.items():
        rest = decoder.decode(b"", final=True)
        if rest:
            yield frame(name, rest)
    run = await servicer.get_run(run_id, namespace=call.namespace)
    yield frame("end", msgspec.json.encode({"run_id": run.id, "state": run.state, "attempt": run.attempt}).decode())


def frame(event: str, data: str, identity: str | None = None) -> bytes:
    """One server-sent event; line ends in the data become several `data` lines."""
    lines = [f"id: {identity}"] if identity is not None else []
    lines.append(f"event: {event}")
    lines.extend(f"data: {line}" for line in _LINE_END.split(data))
    return ("\n".join(lines) + "\n\n").encode()


# -- the table ----------------------------------------------------------------------------------------------

OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/v1/runs",
        id="listRuns",
        summary="List runs, newest scheduled first",
        tag="runs",
        scope=Scope.READ,
        namespace="any",
        query=RunsAsked,
        returns={200: Returns("A page", RunList, headers=("Link",))},
        problems=(422,),
        handler=list_runs,
    ),
    Operation(
        method="GET",
        path="/v1/jobs/{job_id}/runs",
        id="listJobRuns",
        summary="List the runs of a job",
        tag="runs",
        scope=Scope.READ,
        namespace="any",
        query=JobRunsAsked,
        returns={200: Returns("A page", RunList, headers=("Link",))},
        problems=(404, 422),
        handler=list_job_runs,
    ),
    Operation(
        method="GET",
        path="/v1/runs/{run_id}",
        id="getRun",
        summary="Read a run",
        description="With Prefer: wait=10 the answer comes when the run has ended, or after that many seconds.",
        tag="runs",
        scope=Scope.READ,
        namespace="any",
        headers=("Prefer",),
        returns={200: Returns("The run", RunView, headers=("Preference-Applied",))},
        problems=(404, 422),
        handler=get_run,
    ),
    Operation(
        method="POST",
        path="/v1/runs/{run_id}/cancel",
        id="cancelRun",
        summary="End a run",
        tag="runs",
        scope=Scope.OPERATE,
        namespace="any",
        returns={200: Returns("The run, ended or asked to end", RunView)},
        problems=(404, 409, 422),
        handler=cancel_run,
    ),
    Operation(
        method="POST",
        path="/v1/runs/{run_id}/retry",
        id="retryRun",
        summary="Run an ended run again, as a new run",
        tag="runs",
        scope=Scope.OPERATE,
        namespace="any",
        returns={202: Returns("The new run", RunView, headers=("Location",))},
        problems=(404, 409, 422),
        handler=retry_run,
    ),
    Operation(
        method="GET",
        path="/v1/runs/{run_id}/explain",
        id="explainRun",
        summary="Why a run is where it is",
        tag="runs",
        scope=Scope.READ,
        namespace="any",
        returns={200: Returns("Sentences; the first is the answer", ExplainView)},
        problems=(404, 422),
        handler=explain_run,
    ),
    Operation(
        method="GET",
        path="/v1/runs/{run_id}/log",
        id="getLog",
        summary="What a run printed",
        description=(
            "Text; with follow=true server-sent events while it runs: `stdout` and `stderr` with text, "
            "then `end` with the run's state."
        ),
        tag="runs",
        scope=Scope.READ,
        namespace="any",
        query=LogAsked,
        returns={200: Returns("The log", {"type": "string"}, media=("text/plain", "text/event-stream"))},
        problems=(404, 422),
        handler=get_log,
    ),
)
