"""Answers readers of running attempts' streams from the files that they are captured in."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from duly.core.messages import LogChunk, ReadLog
from duly.ports import Clock

CHUNK: Final = 64 * 1024
LOOK_EVERY: Final = 25_000  # µs between two looks at a file that has nothing new
LONGEST: Final = 1_000_000  # µs that one reader is kept waiting


class LogReader:
    """Reads files as they grow."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def read(self, question: ReadLog, path: Callable[[], str | None] | None) -> LogChunk:
        """The bytes from the offset on, as soon as there are any, or none after the wait.

        `path` tells the file as soon as there is one; it is None for an attempt that is not held.
        """
        if path is None:
            return LogChunk(offset=question.offset, ended=True, held=False)
        until = self._clock.monotonic() + min(question.wait, LONGEST)
        while True:
            data = _read(path(), question.offset)
            if data or self._clock.monotonic() >= until:
                return LogChunk(data=data, offset=question.offset)
            await self._clock.sleep(LOOK_EVERY)


def _read(path: str | None, offset: int) -> bytes:
    if path is None or offset < 0:
        return b""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - one call less than through Path, on the event loop
            return os.pread(file.fileno(), CHUNK, offset)
    except OSError:
        return b""
