"""The API held to its own document by schemathesis: a minute of requests, valid and not, over a real store.

Checked for each answer: no 5xx; status, content type, headers and body as documented; what the document forbids is
refused, what it allows is taken; unsupported methods are 405.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.python import asgi
from starlette.types import ASGIApp, Receive, Scope, Send

from duly.adapters.local_broker import LocalBroker
from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.adapters.sqlite_store import SqliteStore
from duly.adapters.system_clock import SystemClock
from duly.core.contract import FunctionSpec, JobSpec
from duly.core.definition import define_job
from duly.core.instants import HOUR, MILLISECOND, parse_instant
from duly.core.model import Job, JobId, Output, Run, RunState, Worker, WorkerId
from duly.faces.api import OPERATIONS, Access, HttpSettings, create_app
from duly.roles.servicer import Servicer
from duly.telemetry import Telemetry

SECONDS = 60
JOB = JobId("019712ab-3c4d-7e5f-8a9b-0c1d2e3f4a5b")  # the examples of the document lead here
SCHEDULED = parse_instant("2026-12-01T01:00:00Z")
POSITIVE = ["2xx", "304", "404", "409", "412", "416"]
CONFIG: dict[str, Any] = {
    "seed": 7,
    "generation": {"deterministic": True, "database": "none"},
    "checks": {
        "positive_data_acceptance": {"expected-statuses": POSITIVE},
        # a deleted job stays readable, as `deleted`, with its history: only its runs to come are gone
        "use_after_free": {"enabled": False},
    },
    "operations": [
        {  # a cursor is opaque: only the store can say that it made it
            "include-operation-id": ["listJobs", "listJobVersions", "listRuns", "listJobRuns", "getRunningJobs"],
            "checks": {"positive_data_acceptance": {"expected-statuses": [*POSITIVE, "400", "422"]}},
        },
        {  # what a schema cannot say: good schedules, zones, files that exist, keys not used for another body
            "include-operation-id": ["createJob", "bulkJobs", "previewSchedule", "putBlob"],
            "checks": {"positive_data_acceptance": {"expected-statuses": [*POSITIVE, "422"]}},
        },
        {  # workers' protocol: whose id the path has, which shards there are, what a number may be
            "include-operation-id": ["beatWorker", "reportWorker", "listWorkerShards"],
            "checks": {"positive_data_acceptance": {"expected-statuses": [*POSITIVE, "422"]}},
        },
        {  # some of its cases send a tag without quotes, against the pattern of the document
            "include-operation-id": [
                "updateJobById",
                "deleteJobById",
                "getJobById",
                "getJobBadge",
                "restoreJobVersion",
                "streamEvents",
            ],
            "checks": {
                "positive_data_acceptance": {"expected-statuses": [*POSITIVE, "400", "422"]},
                # If-Match is looked at before the patch is tried
                "negative_data_rejection": {"expected-statuses": ["4xx"]},
            },
        },
    ],
}


class Hosted:
    """The API with its parts, brought up and down by the client's loop as a lifespan."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            assert self._app is not None
            await self._app({**scope, "client": ("127.0.0.1", 1)}, receive, send)
            return
        await receive()
        clock = SystemClock()
        store = SqliteStore(self._directory / "shard.db", shard="s0", clock=clock)
        await store.migrate()
        broker = LocalBroker(clock)
        blobs = ObstoreBlobs(self._directory / "blobs", clock=clock)
        telemetry = Telemetry()
        servicer = Servicer(
            name="v1",
            store=store,
            broker=broker,
            blobs=blobs,
            clock=clock,
            entropy=os.urandom,
            dice=lambda: 0.5,
            telemetry=telemetry,
        )
        await servicer.start()
        await _seed(store, servicer)
        settings = HttpSettings(hosts=None, longest_wait=200 * MILLISECOND, heartbeat=100 * MILLISECOND)
        self._app = create_app(servicer, access=Access(None, clock=clock), telemetry=telemetry, settings=settings)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await servicer.stop()
        await broker.close()
        await store.close()
        await send({"type": "lifespan.shutdown.complete"})


async def _seed(store: SqliteStore, servicer: Servicer) -> None:
    """A scheduler's term and a worker, so that it is ready; a run with an output, where the examples look for it."""
    await store.hold("s0", "somebody", HOUR)
    await store.beat("s0", Worker(id=WorkerId("w-1"), slots=4), HOUR)
    blob = await servicer.put_blob(b"a report")
    spec = JobSpec(task=FunctionSpec(name="reports:nightly"), schedule="0 2 * * *")
    job: Job = define_job(spec, job_id=JOB, now=SCHEDULED)
    run = Run(
        job_id=JOB,
        scheduled_at=SCHEDULED,
        due_at=SCHEDULED,
        state=RunState.SUCCEEDED,
        attempt=1,
        worker=WorkerId("w-1"),
        started_at=SCHEDULED + 100,
        finished_at=SCHEDULED + 200,
        lateness=100,
        outputs=(Output(path="report.pdf", size=blob.size, digest=blob.digest),),
    )
    assert await store.create([(job, [run])]) == [None]


@pytest.fixture
def hosted(tmp_path: Path) -> Iterator[Hosted]:
    """The API, ended with its parts when the test ends."""
    yield Hosted(tmp_path)
    asgi.shutdown_lifespans()


@pytest.mark.slow
@pytest.mark.timeout(4 * SECONDS)
def test_every_answer_is_as_documented(hosted: Hosted) -> None:
    """And every operation succeeds at least once, so that the checks have something to look at."""
    durations = st.sampled_from(["500ms", "30s", "1h30m", "2d", "PT5M"])
    schedules = st.sampled_from(
        ["now", "in 5m", "every 15m", "after 15m", "0 2 * * *", "@daily", "H H * * *", "at 2030-01-01T00:00"]
    )
    schemathesis.openapi.format("duly-duration", durations)
    schemathesis.openapi.format("duly-schedule", schedules)
    schema = schemathesis.openapi.from_asgi("/openapi.json", hosted, config=SchemathesisConfig.from_dict(CONFIG))
    schema.config.max_time = SECONDS
    schema.config.max_stream_events = 1
    schema.config.request_timeout = 10
    failures: list[str] = []
    succeeded: Counter[str] = Counter()
    total = 0
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            failures.append(repr(event))
        if not isinstance(event, events.ScenarioFinished):
            continue
        for case_id, interaction in event.recorder.interactions.items():
            total += 1
            operation = event.recorder.cases[case_id].value.operation
            if interaction.response is not None and interaction.response.status_code < 300:
                succeeded[operation.definition.raw["operationId"]] += 1
        for case_id, checks in event.recorder.checks.items():
            failures += [_told(event, case_id, check) for check in checks if check.failure_info is not None]
    assert not failures, "\n\n".join(failures[:10])
    assert {operation.id for operation in OPERATIONS} - set(succeeded) <= {"openapi"}  # it has read that one
    assert total > 500  # a minute of a busy machine


def _told(event: events.ScenarioFinished, case_id: str, check: Any) -> str:
    """A failure with the request and the answer that show it."""
    interaction = event.recorder.interactions.get(case_id)
    words = [check.name, check.failure_info.failure.title, check.failure_info.failure.message]
    if interaction is not None:
        request, response = interaction.request, interaction.response
        words += [f"{request.method} {request.uri}", repr(request.headers), repr(request.body)[:500]]
        words += ["no answer"] if response is None else [str(response.status_code), repr(response.content)[:500]]
    return "\n  ".join(words)
