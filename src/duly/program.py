"""`Duly` inside a user's program: a scheduler of its own in a file, or a client of one elsewhere.

    duly = Duly()                              everything in this process, stored in ./duly.db
    duly = Duly("http://host:7350", token=…)   the same calls, made to a server

Making one costs nothing and starts nothing: decorators only note their functions, so that a module can be imported
by a worker. The first call, or `run`, starts the store, scheduler and worker on a thread of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from duly.core.errors import Conflict
from duly.faces.client import Client
from duly.faces.loop_thread import LoopThread
from duly.faces.transport import Transport
from duly.tasks.registry import FunctionRegistry

if TYPE_CHECKING:
    from duly.boot import Node
    from duly.roles.servicer import Servicer


class Duly(Client):
    """A scheduler in this program, or a client of one elsewhere.

    Making one starts nothing: the first call does, or `start`, or `run`. It is a context manager that closes itself.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | Sequence[str] = "duly.db",
        *,
        token: str | None = None,
        slots: int = 0,
        functions_in: Literal["threads", "processes"] = "threads",
        allow_private_addresses: bool = False,
    ) -> None:
        """`target`: a path for a scheduler of one's own, or the URL (or URLs) of servers.

        The rest but `token` is for one's own scheduler. `slots`: sync functions and commands at once, 0 for the
        number of processors. Functions run in threads of this program, or in `processes` of their own, which
        can be killed when they take too long and do not share this program's GIL.
        """
        self.functions = FunctionRegistry()
        self._stopping = threading.Event()
        thread = LoopThread()
        servers = _servers(target)
        if servers is not None:
            from duly.faces.http_transport import HttpTransport

            self._embedded: Embedded | None = None
            transport: Transport = HttpTransport(servers, token=token)
        else:
            from duly.faces.servicer_transport import ServicerTransport

            path = Path(os.fspath(target))  # type: ignore[arg-type]  # TypeError for other sequences
            options: dict[str, object] = {
                "slots": slots,
                "functions_in": functions_in,
                "allow_private_addresses": allow_private_addresses,
            }
            self._embedded = Embedded(functools.partial(_assemble, path, self.functions, options))
            transport = ServicerTransport(thread, self._servicer)
        super().__init__(transport, thread=thread, functions=self.functions)

    def start(self) -> None:
        """Start working in the background and create the jobs of decorated functions. Returns when all is up."""
        if self._embedded is None:
            self.register()
            return
        self.thread.wait(self._embedded.servicer())
        self.register()

    def run(self) -> None:
        """Stay and work until SIGTERM, SIGINT or `stop`; then finish what runs, and close.

        Raises Conflict for a client of a server elsewhere, which has no worker of its own.
        """
        if self._embedded is None:
            raise Conflict("this Duly is a client; its functions run where `duly up --app MODULE:NAME` is started")
        in_main = threading.current_thread() is threading.main_thread()
        former = {}
        if in_main:
            for number in (signal.SIGTERM, signal.SIGINT):
                former[number] = signal.signal(number, lambda *_: self._stopping.set())
        try:
            self.start()
            self._stopping.wait()
        finally:
            self.close()  # bounded by the grace; a second signal meanwhile changes nothing
            for number, handler in former.items():
                signal.signal(number, handler)

    async def _servicer(self) -> Servicer:
        assert self._embedded is not None
        return await self._embedded.servicer()

    @contextlib.contextmanager
    def embedded_as(self, embedded: Embedded) -> Iterator[None]:
        """Use another node for a while (`duly.testing`). Raises Conflict for a client of a server elsewhere."""
        if self._embedded is None:
            raise Conflict("this Duly is a client of a server elsewhere: there is nothing of its own to replace")
        former, self._embedded = self._embedded, embedded
        try:
            yield
        finally:
            self._embedded = former

    def stop(self) -> None:
        """Make `run` return, from any thread."""
        self._stopping.set()

    def close(self) -> None:
        """Finish what runs within the grace, hand the rest back, and let go of the file and the thread."""
        if self._embedded is not None:
            self.thread.wait(self._embedded.close())
        super().close()


def _servers(target: str | os.PathLike[str] | Sequence[str]) -> str | list[str] | None:
    """The URLs; None for a path."""
    if isinstance(target, os.PathLike):
        return None
    urls = target if isinstance(target, str) else list(target)
    first = urls if isinstance(urls, str) else next(iter(urls), "")
    return urls if first.startswith(("http://", "https://")) else None


class Embedded:
    """The node behind a Duly, made and started by its first use."""

    def __init__(self, make: Callable[[], Node]) -> None:
        self._make = make
        self._node: Node | None = None
        self._starting: asyncio.Lock | None = None

    async def servicer(self) -> Servicer:
        """The running servicer; the first caller starts the node, the others wait for it."""
        if self._node is not None:
            return self._node.servicer
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self._node is None:
                node = self._make()
                await node.start()
                self._node = node
        return self._node.servicer

    async def close(self) -> None:
        """Drain and stop the node, if it was started."""
        if self._node is not None:
            await self._node.drain()
        await self.stop()

    async def stop(self) -> None:
        """Stop the node, if it was started, without finishing what runs."""
        node, self._node = self._node, None
        if node is not None:
            await node.stop()


def _assemble(path: Path, functions: FunctionRegistry, options: dict[str, object]) -> Node:
    from duly.boot import assemble
    from duly.settings import Settings

    return assemble(msgspec.convert(options, Settings), functions, file=path)
