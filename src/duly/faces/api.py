"""The HTTP API: everything of a client's contract, over one servicer.

    uvicorn ─▶ Starlette ─▶ Gate (host, origin, request id, problems) ─▶ operations ─▶ Servicer

`boot` makes the app and serves it; the app needs no lifespan. On shutdown boot sets `stop`, before it tells the
server to finish: event streams and waiting requests then end at once, everything else is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, NoReturn

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import BaseRoute

from duly.faces.http import batches, files, fleet, jobs, openapi, page, runs, schedules, system, versions, workers
from duly.faces.http.access import Access, Doors, bind_problem, hosts_for
from duly.faces.http.gate import Gate
from duly.faces.http.operation import Operation, OperationTable
from duly.faces.http.problems import from_starlette
from duly.faces.http.settings import Context, HttpSettings
from duly.roles.servicer import Servicer
from duly.telemetry import Telemetry

__all__ = ["OPERATIONS", "Access", "HttpSettings", "bind_problem", "create_app", "hosts_for", "openapi_document"]


@cache
def openapi_document() -> bytes:
    """The OpenAPI 3.1 document as JSON."""
    return msgspec.json.encode(openapi.document(OPERATIONS))


@cache
def _docs_page() -> tuple[bytes, str]:
    return page.render(openapi.document(OPERATIONS))


OPERATIONS: Final[tuple[Operation, ...]] = (
    *jobs.OPERATIONS,
    *batches.OPERATIONS,
    *versions.OPERATIONS,
    *schedules.OPERATIONS,
    *runs.OPERATIONS,
    *files.OPERATIONS,
    *fleet.OPERATIONS,
    *workers.OPERATIONS,
    *system.operations(openapi_document, _docs_page),
)


def create_app(
    servicer: Servicer,
    *,
    access: Access,
    telemetry: Telemetry,
    settings: HttpSettings | None = None,
    stop: asyncio.Event | None = None,
    routes: Sequence[BaseRoute] = (),
    pages: Callable[[Context], BaseRoute] | None = None,
) -> Starlette:
    """The ASGI app over a started servicer.

    `stop` ends event streams and waits when it is set. `routes` are further ones, of a dashboard say: the gate
    stands before them too (host, origin, request id, problems), but their access is theirs to check.
    `pages` makes such a route from what the operations have: the dashboard.
    """
    settings = settings or HttpSettings()
    context = Context(
        servicer=servicer,
        access=access,
        doors=Doors(settings.hosts, settings.origins),
        telemetry=telemetry,
        settings=settings,
        stop=stop or asyncio.Event(),
    )
    app = Starlette(
        routes=[OperationTable(OPERATIONS, context), *routes, *([] if pages is None else [pages(context)])],
        middleware=[Middleware(Gate, context=context)],
        exception_handlers={HTTPException: _raise_problem},
    )
    app.router.redirect_slashes = False
    return app


async def _raise_problem(_: Request, error: Exception) -> NoReturn:
    """Hand what the framework refuses to the gate, as one of our errors."""
    assert isinstance(error, HTTPException)
    raise from_starlette(error)
