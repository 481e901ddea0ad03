"""An event loop in a thread of its own, so that ordinary code can call coroutines.

ordinary code ──wait(coroutine)──▶ loop in its thread        blocks until it is done
another loop  ──reach(coroutine)─▶ loop in its thread        awaited; the other loop keeps going
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

T = TypeVar("T")
_END: Final = object()


class LoopThread:
    """Starts its thread on first use; a forked child gets a new one."""

    def __init__(
        self,
        name: str = "duly",
        *,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        self._name = name
        self._loop_factory = loop_factory
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop, started if need be."""
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                self._loop = self._loop_factory()
                self._pid = os.getpid()
                self._thread = threading.Thread(target=self._work, args=(self._loop,), name=self._name, daemon=True)
                self._thread.start()
            return self._loop

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it there and blocks until it is done. RuntimeError where that would wait for itself."""
        loop = self.loop()
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("called from duly's own event loop, which this would block; use `await duly.aio.…`")
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result()
        except BaseException:  # a Ctrl-C here must not leave the call going
            future.cancel()
            raise

    async def reach(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it there, awaited from whichever loop calls."""
        loop = self.loop()
        if asyncio.get_running_loop() is loop:
            return await coroutine
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))

    def each(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items of an asynchronous iterator, which runs there; closing this closes it."""
        busy = asyncio.Lock()  # after a Ctrl-C the interrupted step unwinds there, before the rest is closed
        try:
            while True:
                item = self.wait(_next(items, busy))
                if item is _END:
                    return
                yield item  # type: ignore[misc]  # mypy does not see that _END has gone
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                self.wait(_run(close, busy))

    def close(self) -> None:
        """Stops the loop and ends the thread; what was still running there is cancelled."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None or self._pid != os.getpid():
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


async def _next(items: AsyncIterator[T], busy: asyncio.Lock) -> T | object:
    async with busy:
        return await anext(items, _END)


async def _run(close: Any, busy: asyncio.Lock) -> None:
    async with busy:
        await close()
