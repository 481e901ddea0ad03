"""The server about itself: alive, ready, metrics, version, and the description of this API."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib import metadata

from duly.core.contract import VersionView, View
from duly.core.errors import FieldError, Unavailable
from duly.core.tokens import Scope
from duly.faces.http.answers import Answer, Reply, json_reply
from duly.faces.http.call import Call
from duly.faces.http.operation import Operation, Returns
from duly.version import __version__


class HealthView(View, frozen=True, kw_only=True):
    """The server answers."""

    status: str = "ok"


class ReadyView(View, frozen=True, kw_only=True):
    """Clients may be sent here. `missing`: what keeps some jobs from running all the same, here as on other servers."""

    status: str = "ok"
    missing: tuple[str, ...] = ()


async def healthz(_: Call) -> Answer:
    """Alive: the event loop turns."""
    return json_reply(HealthView())


async def readyz(call: Call) -> Answer:
    """Ready, or what is missing."""
    servicer = call.context.servicer
    missing = await servicer.ready()
    if missing:
        raise Unavailable("; ".join(missing), errors=tuple(FieldError("", each) for each in missing))
    return json_reply(ReadyView(missing=() if servicer.alone else tuple(await servicer.missing())))


async def metrics(call: Call) -> Answer:
    """What this process counts, for Prometheus."""
    body, media = call.context.telemetry.render()
    return Reply(body, headers=[(b"content-type", media.encode())], compressible=True)


async def version(call: Call) -> Answer:
    """What answers."""
    return json_reply(
        VersionView(
            version=__version__,
            python=platform.python_version(),
            tzdata=metadata.version("tzdata"),
            sqlite=call.context.settings.sqlite,
        )
    )


def operations(document: Callable[[], bytes], page: Callable[[], tuple[bytes, str]]) -> tuple[Operation, ...]:
    """The operations; `document` gives the OpenAPI document, `page` the HTML of it and its policy."""

    async def openapi(_: Call) -> Answer:
        return Reply(document(), headers=[(b"content-type", b"application/json")], compressible=True)

    async def docs(_: Call) -> Answer:
        html, policy = page()
        headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-security-policy", policy.encode())]
        return Reply(html, headers=headers, compressible=True)

    return (
        Operation(
            method="GET",
            path="/healthz",
            id="healthz",
            summary="Alive",
            tag="system",
            scope="everyone",
            namespace="none",
            returns={200: Returns("Alive", HealthView)},
            handler=healthz,
        ),
        Operation(
            method="GET",
            path="/readyz",
            id="readyz",
            summary="Ready to work, or 503 with what is missing",
            tag="system",
            scope="everyone",
            namespace="none",
            returns={200: Returns("Ready", ReadyView)},
            handler=readyz,
        ),
        Operation(
            method="GET",
            path="/metrics",
            id="metrics",
            summary="Metrics in the Prometheus text format",
            tag="system",
            scope=Scope.READ,
            namespace="none",
            returns={200: Returns("Metrics", {"type": "string"}, media=("text/plain",))},
            handler=metrics,
        ),
        Operation(
            method="GET",
            path="/version",
            id="version",
            summary="What answers",
            tag="system",
            scope=Scope.READ,
            namespace="none",
            returns={200: Returns("Versions", VersionView)},
            handler=version,
        ),
        Operation(
            method="GET",
            path="/openapi.json",
            id="openapi",
            summary="This API as OpenAPI 3.1",
            tag="system",
            scope="everyone",
            namespace="none",
            returns={200: Returns("The document", {"type": "object"})},
            handler=openapi,
        ),
        Operation(
            method="GET",
            path="/docs",
            id="docs",
            summary="This API as a page",
            tag="system",
            scope="everyone",
            namespace="none",
            returns={200: Returns("The page", {"type": "string"}, media=("text/html",))},
            handler=docs,
        ),
    )
