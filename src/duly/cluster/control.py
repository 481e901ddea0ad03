"""How a running cluster is asked for things: one line of JSON each way, over a socket in its directory.

    {"do": "status"}   {"do": "stop", "name": "scheduler-1"}   {"do": "start", …}   {"do": "kill", …}

Only whoever may write to the directory can reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

from duly.core.errors import Conflict, DulyError, NotFound, Unavailable

Told = dict[str, Any]
PATIENCE: Final = 120  # seconds for an answer: stopping waits for what runs


@contextlib.asynccontextmanager
async def controlled(path: Path, carry_out: Callable[[Told], Awaitable[Told]]) -> AsyncIterator[None]:
    """Answers at `path` meanwhile."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            try:
                told = await carry_out(json.loads(line))
            except DulyError as error:
                told = {"error": error.code, "detail": str(error)}
            except ValueError as error:
                told = {"error": "malformed", "detail": str(error)}
            writer.write(json.dumps(told).encode() + b"\n")
            with contextlib.suppress(ConnectionError):
                await writer.drain()
        finally:
            writer.close()

    _remove(path)  # of a cluster that was killed: the lock says that it is gone
    with _short(path) as short:
        server = await asyncio.start_unix_server(answer, short)
        os.chmod(short, 0o600)  # noqa: PTH101 - the path goes through a descriptor
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()
        _remove(path)


async def ask(path: Path, what: Told) -> Told:
    """What the cluster answers. Raises NotFound if none runs there, Unavailable with what it says went wrong."""
    try:
        with _short(path) as short:
            reader, writer = await asyncio.open_unix_connection(short)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotFound(f"no cluster runs in {path.parent}") from None
    try:
        writer.write(json.dumps(what).encode() + b"\n")
        line = await asyncio.wait_for(reader.readline(), PATIENCE)
    finally:
        writer.close()
    if not line:
        raise Unavailable("the cluster broke off without an answer")
    told: Told = json.loads(line)
    if "error" in told:
        kinds: dict[str, type[DulyError]] = {each.code: each for each in (NotFound, Conflict)}
        raise kinds.get(told["error"], Unavailable)(str(told["detail"]))
    return told


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for the path that is short enough for a socket, wherever its directory is."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)
