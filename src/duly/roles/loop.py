"""One small lifecycle for every role: start → started, drain, stop waits.

    new ──start──▶ started ──drain──▶ draining ──stop──▶ stopped
                      └──────────────stop──────────────────▲

A role overrides `_up`, `_drain` and `_down`. What it leaves running in the background it gives to `spawn`, so
that `stop` ends it; a background task that fails is logged and told by `failed`, never lost in silence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Literal

log = logging.getLogger("duly.role")


class Loop:
    """The lifecycle; each step may be asked for twice and happens once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Literal["new", "started", "draining", "stopped"] = "new"
        self.failed: BaseException | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Returns when the role is up; raises what kept it from starting, and then nothing of it runs."""
        if self.state != "new":
            return
        self.state = "started"
        try:
            await self._up()
        except BaseException:
            await self.stop()
            raise

    async def drain(self) -> None:
        """Take nothing new and finish what is going, within the role's own grace."""
        if self.state == "started":
            self.state = "draining"
            await self._drain()

    async def stop(self) -> None:
        """End everything; returns when nothing of the role runs any more. Does not drain."""
        if self.state in ("new", "stopped"):
            self.state = "stopped"
            return
        self.state = "stopped"
        try:
            await self._down()
        finally:
            tasks = [task for task in self._tasks if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, object], name: str) -> asyncio.Task[Any]:
        """Run `work` in the background until it ends or the role stops."""
        task = asyncio.get_running_loop().create_task(work, name=f"{self.name}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self.failed = error
            log.error("%s failed", task.get_name(), exc_info=error)

    async def _up(self) -> None:
        """Bring the role up."""

    async def _drain(self) -> None:
        """Finish what is going."""

    async def _down(self) -> None:
        """Let go of what `_up` took."""
