"""What every serving process has: sockets, an HTTP server over an app, and signals that ask for its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from duly.boot.collector import look_less_often
from duly.core.errors import Unavailable
from duly.core.instants import MILLISECOND
from duly.ports import Clock

if TYPE_CHECKING:
    from uvicorn import Server

FIRST_GIVEN: Final = 3  # systemd's socket activation: the first descriptor that it hands over


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is told before anything else starts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Unavailable(f"cannot listen on {authority(host, port)}: {error.strerror}; try another --port") from None
    return listener


def given_listeners() -> list[socket.socket]:
    """Listening sockets that whoever started this process opened for it (`LISTEN_FDS`, as systemd does)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    listeners = [socket.socket(fileno=number) for number in range(FIRST_GIVEN, FIRST_GIVEN + count)]
    for listener in listeners:
        listener.set_inheritable(False)
        listener.setblocking(False)
    return listeners


def host_of(listener: socket.socket) -> str:
    """The address that a socket is bound to."""
    host: str = listener.getsockname()[0] if listener.family != socket.AF_UNIX else "127.0.0.1"
    return host


def authority(host: str, port: int) -> str:
    """Host and port as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url_of(listener: socket.socket, host: str | None = None) -> str:
    """The URL of what listens there; `host` is the name that it is known by, if not its address."""
    address, port = listener.getsockname()[:2]
    return f"http://{authority(host or address, port)}"


class HttpFace:
    """A running HTTP server."""

    def __init__(self, server: Server, serving: asyncio.Task[None]) -> None:
        self._server = server
        self._serving = serving

    async def until(self, asked: asyncio.Event) -> None:
        """Returns when an end is asked for, or the server has ended by itself."""
        waiting = asyncio.create_task(asked.wait())
        try:
            await asyncio.wait({waiting, self._serving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()

    async def close(self) -> None:
        """Answer what is under way, and end."""
        self._server.should_exit = True
        await self._serving


@contextlib.asynccontextmanager
async def serving(app: object, listeners: Sequence[socket.socket], clock: Clock) -> AsyncIterator[HttpFace]:
    """An HTTP server over these sockets: up when the block begins, ended after it."""
    server = _server(app)
    task = asyncio.create_task(server.serve(sockets=list(listeners)), name="http")
    face = HttpFace(server, task)
    try:
        while not server.started:
            if task.done():
                await task
                raise Unavailable("the HTTP server did not start")
            await clock.sleep(5 * MILLISECOND)
        yield face
    finally:
        await face.close()


def _server(app: object) -> Server:
    import uvicorn

    class QuietServer(uvicorn.Server):
        """Signals are this program's: uvicorn would take them and raise them again at its end."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        app,  # type: ignore[arg-type]  # its types are narrower than ASGI
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=75,
    )
    return QuietServer(config)


@contextlib.contextmanager
def signals(asked: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT ask for a drain; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def ask() -> None:
        if asked.is_set():
            os._exit(1)
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def run(role: Coroutine[Any, Any, None]) -> None:
    """Run a role on an event loop of its own."""
    import uvloop

    look_less_often()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(role)
