"""The installation over HTTP: counts, workers, shards, and what happens as it happens."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from duly.core.contract import EventView, ShardList, StatsView, WebhookList, WorkerList
from duly.core.errors import Malformed
from duly.core.tokens import Scope
from duly.faces.http.answers import Answer, EventStream, json_reply
from duly.faces.http.call import Call
from duly.faces.http.operation import Operation, Returns
from duly.faces.http.query import Query
from duly.faces.http.runs import frame

_EVENT_ID: Final = re.compile(r"^[A-Za-z0-9]{1,32}-[0-9]{1,18}$", re.ASCII)


class EventsAsked(Query, frozen=True, kw_only=True):
    """Where to start."""

    after: (
        Annotated[
            str,
            Meta(
                pattern=_EVENT_ID.pattern, description="the last event seen, for clients that cannot set Last-Event-ID"
            ),
        ]
        | None
    ) = None


async def get_stats(call: Call) -> Answer:
    """Counts over all shards."""
    return json_reply(await call.context.servicer.stats())


async def list_workers(call: Call) -> Answer:
    """All workers."""
    return json_reply(await call.context.servicer.workers())


async def list_shards(call: Call) -> Answer:
    """All shards."""
    return json_reply(await call.context.servicer.shards())


async def stream_events(call: Call) -> Answer:
    """What happens, from now on or from the event after the last one seen."""
    after = call.header(b"last-event-id")
    if after is None:
        after = call.query(EventsAsked).after
    if after is not None and _EVENT_ID.fullmatch(after) is None:
        raise Malformed(f"{after[:80]!r} is not the id of an event")
    return EventStream(_frames(call, after))


async def _frames(call: Call, after: str | None) -> AsyncGenerator[bytes, None]:
    pieces = call.context.servicer.encoded_events(after, _frame, namespace=call.namespace)
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            yield piece


def _frame(event: EventView) -> bytes:
    return frame(event.type, msgspec.json.encode(event).decode(), event.id)


async def list_webhooks(call: Call) -> Answer:
    """Where events go, and whether they arrive."""
    return json_reply(WebhookList(items=call.context.servicer.webhook_views()))


# -- the table ----------------------------------------------------------------------------------------------

OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/v1/stats",
        id="getStats",
        summary="Counts over all shards, and lateness",
        tag="fleet",
        scope=Scope.READ,
        namespace="none",
        returns={200: Returns("Counts", StatsView)},
        handler=get_stats,
    ),
    Operation(
        method="GET",
        path="/v1/workers",
        id="listWorkers",
        summary="Workers, as their last beats told them",
        tag="fleet",
        scope=Scope.READ,
        namespace="none",
        returns={200: Returns("All workers", WorkerList)},
        handler=list_workers,
    ),
    Operation(
        method="GET",
        path="/v1/shards",
        id="listShards",
        summary="Shards, their counts and terms",
        tag="fleet",
        scope=Scope.READ,
        namespace="none",
        returns={200: Returns("All shards", ShardList)},
        handler=list_shards,
    ),
    Operation(
        method="GET",
        path="/v1/webhooks",
        id="listWebhooks",
        summary="Webhooks of the server that answers, and whether they are delivered",
        description="Each process sends, and counts, the events of what it has committed itself.",
        tag="fleet",
        scope=Scope.READ,
        namespace="none",
        returns={200: Returns("All webhooks", WebhookList)},
        handler=list_webhooks,
    ),
    Operation(
        method="GET",
        path="/v1/events",
        id="streamEvents",
        summary="What happens, as server-sent events",
        description=(
            "Each event's data is an EventView; with Last-Event-ID the stream goes on after that event. "
            "Each run that ends has one `run.finished`; `stream.skipped` tells of a gap."
        ),
        tag="fleet",
        scope=Scope.READ,
        namespace="any",
        query=EventsAsked,
        headers=("Last-Event-ID",),
        returns={200: Returns("The stream", {"type": "string"}, media=("text/event-stream",))},
        problems=(422,),
        handler=stream_events,
    ),
)
