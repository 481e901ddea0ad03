"""Workers' own calls over HTTP, for when no broker answers. A worker's token is good for these and for no others."""

from __future__ import annotations

from typing import Final

from duly.core.tokens import Scope
from duly.core.worker_wire import MAX_BODY, ShardNames, WorkerBeat, WorkerReport, check_version, checked_id
from duly.faces.http.answers import Answer, json_reply
from duly.faces.http.call import Call
from duly.faces.http.operation import Operation, Returns, Schema, Takes

_MESSAGE: Final[Schema] = {
    "type": "object",
    "description": "A message of the roles' own protocol, whose version the request names; it is not for clients.",
}
_REPORT: Final[Schema] = {
    "type": "object",
    "required": ["report"],
    "additionalProperties": False,
    "properties": {
        "report": {
            "type": "object",
            "description": "A Report of the roles' own protocol: worker, shard, and at most 512 events of attempts",
            "required": ["worker", "shard", "events"],
        },
        "version": {"type": "integer", "minimum": 0, "maximum": 65535},
    },
    "examples": [{"report": {"worker": "w-3f2a11bc", "shard": "s0", "events": []}}],
}


async def beat(call: Call) -> Answer:
    """A worker lives."""
    asked = await call.json(WorkerBeat, limit=MAX_BODY)
    check_version(asked.version)
    worker = checked_id(call.path["worker_id"])
    return json_reply(await call.context.servicer.worker_calls.beat(worker, asked.shard, asked.beat))


async def report(call: Call) -> Answer:
    """What became of attempts."""
    asked = await call.json(WorkerReport, limit=MAX_BODY)
    check_version(asked.version)
    worker = checked_id(call.path["worker_id"])
    return json_reply(await call.context.servicer.worker_calls.report(worker, asked.report))


async def shards(call: Call) -> Answer:
    """Where a worker beats to."""
    checked_id(call.path["worker_id"])
    return json_reply(call.context.servicer.worker_calls.shards())


# -- the table ----------------------------------------------------------------------------------------------

OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/v1/workers/{worker_id}/beat",
        id="beatWorker",
        summary="A worker lives, and asks what is out at it",
        description=(
            "For workers that no broker reaches. Writes the worker's lease on a shard; the answer lists the attempts "
            "that the store has at it and it does not hold, those it has to drop, and those whose end was asked for."
        ),
        tag="workers",
        scope=Scope.WORKER,
        namespace="none",
        body=Takes({"application/json": WorkerBeat}),
        returns={200: Returns("A BeatAnswer", _MESSAGE)},
        problems=(404, 409, 413, 415, 422),
        handler=beat,
    ),
    Operation(
        method="POST",
        path="/v1/workers/{worker_id}/report",
        id="reportWorker",
        summary="A worker tells what became of attempts",
        description="For workers that no broker reaches. May be repeated until it is answered.",
        tag="workers",
        scope=Scope.WORKER,
        namespace="none",
        body=Takes({"application/json": _REPORT}),
        returns={200: Returns("A ReportAnswer: one word for each event", _MESSAGE)},
        problems=(404, 409, 413, 415, 422),
        handler=report,
    ),
    Operation(
        method="GET",
        path="/v1/workers/{worker_id}/shards",
        id="listWorkerShards",
        summary="The shards that a worker beats to",
        tag="workers",
        scope=Scope.WORKER,
        namespace="none",
        returns={200: Returns("Their names", ShardNames)},
        problems=(404, 422),
        handler=shards,
    ),
)
