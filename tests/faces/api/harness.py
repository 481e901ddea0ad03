"""How tests get at the API: a servicer over real parts, clients in this process, and a real server."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import msgspec
import uvicorn
from starlette.types import ASGIApp

from duly.adapters.system_clock import SystemClock
from duly.core.instants import MILLISECOND, SECOND
from duly.core.tokens import Scope
from duly.faces.api import Access, HttpSettings, create_app
from duly.faces.tokens import TokenFile, create_token
from duly.ports import Blobs, Clock, Store
from duly.roles.servicer import Servicer


class Api:
    """A servicer over its real parts, and clients of its API."""

    def __init__(self, servicer: Servicer, store: Store, blobs: Blobs, clock: Clock, directory: Path) -> None:
        self.servicer = servicer
        self.store = store
        self.blobs = blobs
        self.clock = clock
        self.tokens = directory / "tokens.json"
        self.telemetry = servicer.telemetry
        self.stop = asyncio.Event()

    def app(self, **settings: object) -> ASGIApp:
        """The ASGI app, with other settings than the tests' usual ones where given."""
        usual: dict[str, object] = {"heartbeat": 20 * MILLISECOND, "longest_wait": 5 * SECOND}
        return create_app(
            self.servicer,
            access=Access(TokenFile(self.tokens, monotonic=self.clock.monotonic), clock=self.clock),
            telemetry=self.telemetry,
            settings=msgspec.convert(usual | settings, HttpSettings),
            stop=self.stop,
        )

    def client(self, app: ASGIApp | None = None, *, address: str = "127.0.0.1", **headers: str) -> httpx2.AsyncClient:
        """A client that calls the app in this process, as from that address."""
        transport = httpx2.ASGITransport(app or self.app(), client=(address, 50_000))
        return httpx2.AsyncClient(transport=transport, base_url="http://localhost:7350", headers=headers)

    def token(self, scope: str, *namespaces: str, expires_at: int | None = None) -> str:
        """A new token, in the file."""
        return create_token(
            self.tokens,
            entropy=os.urandom(38),
            scope=Scope.named(scope),
            namespaces=namespaces or ("*",),
            now=self.clock.wall() if expires_at is None else expires_at - SECOND,
            expires_at=expires_at,
        )[0]


@asynccontextmanager
async def served(app: ASGIApp, *, stop: asyncio.Event | None = None, grace: int = 10) -> AsyncIterator[str]:
    """The app on a free port of loopback, as boot serves it; yields its URL. `stop` is set before it shuts down."""
    config = uvicorn.Config(
        app,
        port=0,
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=grace,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:
        assert not serving.done(), serving.exception()
        await SystemClock().sleep(MILLISECOND)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        if stop is not None:
            stop.set()
        server.should_exit = True
        await serving


async def exchange(url: str, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer to raw bytes; a body of no told length is read until the server hangs up."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: (\d+)\r\n", head)
            return head, await (reader.read() if length is None else reader.readexactly(int(length.group(1))))
    finally:
        writer.close()


def command(*argv: str, **fields: object) -> dict[str, object]:
    """A job that runs a program of the worker's, now."""
    return {"task": {"kind": "command", "argv": list(argv)}, "schedule": "now", **fields}
