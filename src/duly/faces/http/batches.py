"""Many jobs in one request: made one by one with a result each, or acted on by a filter."""

from __future__ import annotations

from typing import Final

from duly.core.contract import BatchSpec, BatchView, BulkSpec, BulkView
from duly.core.errors import InvalidInput
from duly.core.tokens import Scope
from duly.faces.http.answers import Answer, json_reply
from duly.faces.http.call import Call
from duly.faces.http.operation import Operation, Returns, Takes

_MAX_BULK_BYTES: Final = 1 << 20  # 10,000 ids and room to spare


async def create_jobs(call: Call) -> Answer:
    """Many jobs, one result each."""
    batch = await call.json(BatchSpec, limit=call.context.settings.max_batch_bytes)
    return json_reply(await call.context.servicer.create_jobs(batch.jobs, namespace=call.one_namespace, by=call.by))


async def bulk_jobs(call: Call) -> Answer:
    """One action on all jobs that a filter finds."""
    spec = await call.json(BulkSpec, limit=_MAX_BULK_BYTES)
    for index, text in enumerate(spec.filter.label):
        if ":" not in text:
            raise InvalidInput.at(f"/filter/label/{index}", "write a label as key:value")
    return json_reply(await call.context.servicer.bulk(spec, namespace=call.one_namespace))


# -- the table ----------------------------------------------------------------------------------------------

OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/v1/jobs/batch",
        id="createJobs",
        summary="Create up to 10,000 jobs",
        description="One result each, in order; a bad job does not stop the others.",
        tag="jobs",
        scope=Scope.SUBMIT,
        namespace="one",
        body=Takes({"application/json": BatchSpec}),
        returns={200: Returns("One result for each job", BatchView)},
        problems=(413, 415, 422),
        handler=create_jobs,
    ),
    Operation(
        method="POST",
        path="/v1/jobs/bulk",
        id="bulkJobs",
        summary="Pause, resume, delete or trigger all jobs that a filter finds",
        tag="jobs",
        scope=Scope.OPERATE,
        namespace="one",
        body=Takes({"application/json": BulkSpec}),
        returns={200: Returns("What was found and done", BulkView)},
        problems=(413, 415, 422),
        handler=bulk_jobs,
    ),
)
