"""`duly up`: an embedded duly with its HTTP face, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

from duly.adapters.system_clock import SystemClock
from duly.boot.apps import register_apps
from duly.boot.embedded import Node, assemble
from duly.boot.serving import listen, run, serving, signals, url_of
from duly.core.errors import InvalidInput
from duly.faces.transport import Transport
from duly.roles.servicer import Servicer
from duly.settings import Settings
from duly.tasks.registry import FunctionRegistry

log = logging.getLogger("duly.boot")

TOKENS: Final = "tokens.json"


async def serve(settings: Settings, *, started: Callable[[str], None]) -> None:
    """Run an embedded duly with its HTTP face until SIGTERM or SIGINT; then drain, and stop.

    `started` is called with the URL once the API answers. Raises InvalidInput when the address would be open to
    others without a token, DulyError when the directory is in use.
    """
    from duly.faces.api import create_app
    from duly.faces.http.access import Access, bind_problem, hosts_for
    from duly.faces.http.settings import HttpSettings
    from duly.faces.pages.dashboard import dashboard
    from duly.faces.pages.sessions import KEY_FILE, session_key
    from duly.faces.tokens import TokenFile

    clock = SystemClock()
    tokens = TokenFile(Path(settings.dir) / TOKENS, monotonic=clock.monotonic)
    problem = bind_problem(settings.host, tokens)
    if problem:
        raise InvalidInput.at("/host", problem)
    listener = listen(settings.host, settings.port)
    try:
        node = assemble(settings, FunctionRegistry(settings.functions), clock)
    except BaseException:
        listener.close()
        raise
    stop = asyncio.Event()
    key = session_key(Path(settings.dir) / KEY_FILE, entropy=secrets.token_bytes)
    app = create_app(
        node.servicer,
        access=Access(tokens, clock=clock),
        telemetry=node.telemetry,
        settings=HttpSettings(
            hosts=hosts_for(settings.host, tuple(settings.allowed_hosts)),
            max_blob_bytes=settings.max_blob_bytes,
            sqlite=apsw.sqlite_lib_version(),
        ),
        stop=stop,
        pages=dashboard(key=key, wall=clock.wall, entropy=secrets.token_bytes),
    )
    asked = asyncio.Event()
    with listener, signals(asked):
        await node.start()
        try:
            async with serving(app, [listener], clock) as face:
                try:
                    await register_apps(settings.app, _own_transport(node))
                    started(url_of(listener, settings.host))
                    await face.until(asked)
                    log.info("draining")
                    stop.set()
                    await node.drain()
                finally:
                    stop.set()
        finally:
            await node.stop()


def _own_transport(node: Node) -> Transport:
    from duly.faces.servicer_transport import Here, ServicerTransport

    async def servicer() -> Servicer:
        return node.servicer

    return ServicerTransport(Here(), servicer)


def run_up(settings: Settings, *, started: Callable[[str], None]) -> None:
    """`serve` on an event loop of its own, with its log on stderr."""
    from duly.log_output import configure

    configure(settings.log_level, settings.log_format)
    run(serve(settings, started=started))
