"""A receiver of webhooks on a free port of loopback, which behaves as it is told, request by request."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


class Got(msgspec.Struct):
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        """The CloudEvent."""
        decoded: dict[str, Any] = msgspec.json.decode(self.body)
        return decoded


class Receiver:
    """`says` decides the answer to the n-th request, from 0: a whole HTTP head, or "hang", "reset", "drip"."""

    def __init__(self) -> None:
        self.says: Callable[[int], str] = lambda number: "200 OK"
        self.got: list[Got] = []
        self.open = 0
        self.most_open = 0
        self.port = 0
        self._news = asyncio.Condition()
        self._writers: set[asyncio.StreamWriter] = set()
        self.released = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def until(self, look: Callable[[], bool]) -> None:
        """Returns once `look` is true, asked after each request."""
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(look)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        body = await reader.readexactly(int(headers["content-length"]))
        raw = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        headers["webhook-signature"] = next((v for k, v in raw.items() if k.lower() == "webhook-signature"), "")
        word = self.says(len(self.got))
        self.got.append(Got(lines[0].split()[1], headers, body))
        async with self._news:
            self._news.notify_all()
        if word == "hang":
            await reader.read()
        elif word == "drip":
            for letter in "HTTP/1.1 200 OK\r\nX: ":
                writer.write(letter.encode())
                await writer.drain()
            await reader.read()
        elif word == "wait":
            await self.released.wait()
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            await writer.drain()
        elif word == "reset":
            writer.transport.abort()
        else:
            writer.write(f"HTTP/1.1 {word}\r\nContent-Length: 2\r\n\r\nok".encode())
            await writer.drain()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """One that listens."""
    receiver = Receiver()
    server = await asyncio.start_server(receiver.handle, "127.0.0.1", 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        receiver.close()
        await server.wait_closed()


def signature_of(got: Got, secret: str = SECRET) -> str:
    """What Standard Webhooks says the signature must be: HMAC-SHA256 (RFC 2104, spelled out) of id.timestamp.body."""
    key = base64.b64decode(secret.removeprefix("whsec_")).ljust(64, b"\0")
    content = f"{got.headers['webhook-id']}.{got.headers['webhook-timestamp']}.".encode() + got.body
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + content).digest()
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).digest()
    return "v1," + base64.b64encode(outer).decode()
