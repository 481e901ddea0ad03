"""Where the bytes of an upload come from: a file, bytes, or a digest that needs no upload."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO, Final

from duly.core.errors import InvalidInput
from duly.faces.transport import BlobSource, Transport

PIECE: Final = 256 * 1024
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)

FileLike = str | os.PathLike[str] | bytes | IO[bytes]


async def uploaded(transport: Transport, source: FileLike, pointer: str = "") -> str:
    """The digest of what `source` holds, uploaded in pieces: a path, bytes, a file open for reading, or a digest.

    Raises InvalidInput at `pointer` for a file that cannot be read.
    """
    if isinstance(source, str) and _DIGEST.fullmatch(source):
        return source
    return (await transport.put_blob(blob_source(source, pointer))).digest


def blob_source(source: FileLike, pointer: str = "") -> BlobSource:
    """Gives the bytes of `source` from its beginning, each time that it is called."""
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return lambda: _pieces(data)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise InvalidInput.at(pointer, f"there is no file {str(path)!r}")
        return lambda: _read(lambda: path.open("rb"), pointer, close=True)
    file = source
    start = file.tell() if file.seekable() else 0
    return lambda: _read(lambda: _rewound(file, start), pointer, close=False)


def _rewound(file: IO[bytes], start: int) -> IO[bytes]:
    if file.seekable():
        file.seek(start)
    return file


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for offset in range(0, len(data), PIECE):
        yield data[offset : offset + PIECE]


async def _read(open_file: Callable[[], IO[bytes]], pointer: str, *, close: bool) -> AsyncIterator[bytes]:
    try:
        file = await asyncio.to_thread(open_file)
        try:
            while piece := await asyncio.to_thread(file.read, PIECE):
                yield piece
        finally:
            if close:
                file.close()
    except OSError as error:
        raise InvalidInput.at(pointer, f"cannot be read: {error.strerror or error}") from error


async def saved(pieces: AsyncIterator[bytes], to: Path, progress: Callable[[int], object] | None = None) -> Path:
    """Writes the pieces to a file beside `to`, which then takes its place; nothing is left of a broken download.

    `progress` is told the size of each.
    """
    partial = to.with_name(f".{to.name}.{os.getpid()}.part")
    try:
        file = await asyncio.to_thread(open, partial, "wb")
        with file:
            async for piece in pieces:
                await asyncio.to_thread(file.write, piece)
                if progress is not None:
                    progress(len(piece))
        await asyncio.to_thread(partial.replace, to)
    except BaseException:
        await asyncio.to_thread(partial.unlink, missing_ok=True)
        raise
    return to
