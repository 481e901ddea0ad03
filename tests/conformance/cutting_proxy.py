"""A TCP proxy before a database that cuts connections at a chosen moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

Chosen = Callable[[bytes], bool]


class CuttingProxy:
    """Passes bytes on. `lose_answer_to` chooses what is passed on to the server, whose answer is then lost with the
    connection; `lose` chooses what is lost with it on the way there.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self.url = ""
        self.lose_answer_to: Chosen | None = None
        self.lose: Chosen | None = None
        self.cuts = 0
        self._open: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Break every connection off, now."""
        for writer in self._open:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self._open.add(writer)
        up_reader, up_writer = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        answer_lost = False

        async def upwards() -> None:
            nonlocal answer_lost
            while data := await reader.read(1 << 16):
                if self.lose is not None and self.lose(data):
                    self.lose = None
                    return
                if self.lose_answer_to is not None and self.lose_answer_to(data):
                    self.lose_answer_to = None
                    answer_lost = True
                up_writer.write(data)
                await up_writer.drain()

        async def downwards() -> None:
            while data := await up_reader.read(1 << 16):
                if answer_lost:
                    return
                writer.write(data)
                await writer.drain()

        tasks = [asyncio.ensure_future(upwards()), asyncio.ensure_future(downwards())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.cuts += 1
            self._open.discard(writer)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for one in (writer, up_writer):
                one.close()
                with contextlib.suppress(OSError):
                    await one.wait_closed()


@contextlib.asynccontextmanager
async def cutting_proxy(url: str) -> AsyncIterator[CuttingProxy]:
    """A proxy on a free port of loopback; its `url` leads through it."""
    proxy = CuttingProxy(url)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    parts = urlsplit(url)
    proxy.url = url.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{port}")
    try:
        yield proxy
    finally:
        server.close()
        await server.wait_closed()
