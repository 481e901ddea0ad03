"""Output files and logs of runs: from blobs once an attempt has ended, from its worker while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from duly.core import contract
from duly.core.contract import LogPiece, OutputView
from duly.core.errors import NotFound, TimedOut, Unavailable
from duly.core.instants import MILLISECOND, SECOND
from duly.core.messages import LogChunk, ReadLog, logs
from duly.core.model import Run, RunState
from duly.ports import Blobs, Broker, Clock

PATIENCE: Final = 5 * SECOND  # a worker answers a ReadLog within this, or with nothing new
PAUSE_FIRST: Final = 10 * MILLISECOND  # between two looks at a run whose worker does not answer, doubling
PAUSE_LAST: Final = SECOND
STREAMS: Final = ("stdout", "stderr")


class OutputReader:
    """Reads what runs have written."""

    def __init__(self, *, broker: Broker, blobs: Blobs, clock: Clock) -> None:
        self._broker = broker
        self._clock = clock
        self._blobs = blobs

    def open(self, run: Run, path: str) -> tuple[OutputView, AsyncIterator[bytes]]:
        """One output file and its bytes. Raises NotFound."""
        for output in run.outputs:
            if output.path == path:
                view = contract.OutputView(path=output.path, size=output.size, digest=output.digest)
                return view, self._blobs.get(output.digest)
        raise NotFound(f"the run left no file {path[:200]!r}")

    async def log(self, run: Run, stream: str, attempt: int | None) -> AsyncIterator[bytes]:
        """What was written so far: stdout, then stderr, if both are asked for."""
        number = run.attempt if attempt is None else attempt
        for name in _streams(stream):
            if _is_out(run, number):
                offset = 0
                while chunk := await self._ask(run, name, offset, wait=0):
                    if not chunk.data:
                        break
                    yield chunk.data
                    offset = chunk.offset + len(chunk.data)
            else:
                digest = _digest(run, number, name)
                if digest is not None:
                    async for data in self._blobs.get(digest):
                        yield data

    async def follow(
        self, run: Run, stream: str, attempt: int | None, reload: Callable[[], Awaitable[Run]]
    ) -> AsyncIterator[LogPiece]:
        """What is written as it comes, both streams side by side, until the attempt has ended.

        `reload` reads the run again: whether it has ended is the store's word, not the worker's.
        """
        number = run.attempt if attempt is None else attempt
        pieces: asyncio.Queue[LogPiece | None] = asyncio.Queue(maxsize=16)
        names = _streams(stream)

        async def pump(name: str) -> None:
            try:
                await self._pump(run, number, name, reload, pieces)
            finally:
                await pieces.put(None)

        async with asyncio.TaskGroup() as pumps:
            tasks = [pumps.create_task(pump(name)) for name in names]
            running = len(tasks)
            try:
                while running:
                    piece = await pieces.get()
                    if piece is None:
                        running -= 1
                    else:
                        yield piece
            finally:
                for task in tasks:
                    task.cancel()

    async def _pump(
        self,
        run: Run,
        number: int,
        name: str,
        reload: Callable[[], Awaitable[Run]],
        pieces: asyncio.Queue[LogPiece | None],
    ) -> None:
        offset = 0
        pause = PAUSE_FIRST
        while _is_out(run, number):
            chunk = await self._ask(run, name, offset, wait=SECOND)
            if chunk is not None and chunk.data:
                offset = chunk.offset + len(chunk.data)
                await pieces.put(LogPiece(stream=name, data=chunk.data))
                continue
            if chunk is None:  # it has just ended, or no broker leads to its worker
                await self._clock.sleep(pause)
                pause = min(2 * pause, PAUSE_LAST)
            run = await reload()
        digest = _digest(run, number, name)
        if digest is None:
            return
        async for data in self._blobs.get(digest, start=offset):
            await pieces.put(LogPiece(stream=name, data=data))

    async def _ask(self, run: Run, stream: str, offset: int, *, wait: int) -> LogChunk | None:
        """The worker's answer, None when it does not answer or does not hold the attempt."""
        question = ReadLog(key=run.key, attempt=run.attempt, stream=stream, offset=offset, wait=wait)
        try:
            answer = await self._broker.request(logs(run.worker), question, timeout=PATIENCE + wait)
        except (Unavailable, TimedOut):
            return None
        return answer if isinstance(answer, LogChunk) and answer.held else None


def _streams(stream: str) -> tuple[str, ...]:
    return STREAMS if stream == "all" else (stream,)


def _is_out(run: Run, number: int) -> bool:
    """True while this attempt is the one that a worker has."""
    return run.attempt == number and run.state in (RunState.DISPATCHED, RunState.RUNNING)


def _digest(run: Run, number: int, stream: str) -> str | None:
    if run.attempt == number and run.state.terminal:
        return run.logs.get(stream)
    for attempt in run.attempts:
        if attempt.number == number:
            return attempt.logs.get(stream)
    return None
