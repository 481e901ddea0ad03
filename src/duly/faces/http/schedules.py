"""Schedules over HTTP: try one out before a job gets it."""

from __future__ import annotations

from typing import Final

from duly.core.contract import PreviewSpec, PreviewView
from duly.core.tokens import Scope
from duly.faces.http.answers import Answer, json_reply
from duly.faces.http.call import Call
from duly.faces.http.operation import Operation, Returns, Takes


async def preview_schedule(call: Call) -> Answer:
    """The next times of a schedule."""
    return json_reply(call.context.servicer.preview(await call.json(PreviewSpec)))


OPERATIONS: Final = (
    Operation(
        method="POST",
        path="/v1/schedules/preview",
        id="previewSchedule",
        summary="The next times of a schedule",
        tag="schedules",
        scope=Scope.READ,
        namespace="none",
        body=Takes({"application/json": PreviewSpec}),
        returns={200: Returns("Instants", PreviewView)},
        problems=(413, 415, 422),
        handler=preview_schedule,
    ),
)
