"""Writes that wait for one another become one: many callers, one statement, one commit.

    caller ── Call ──▶ queue ──▶ at most IN_FLIGHT statements at once ──▶ each caller gets the answers to its own items
                              └ a free one takes what has queued up meanwhile, of one kind, up to `most` items

A lone call waits for nobody. A call that the shard refuses does not spoil the others: they are carried out again, each
by itself. When it is not known whether a statement was committed, it is unknown to all who were in it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from duly.core.errors import Fenced, Overloaded, Unavailable, WrongShard

IN_FLIGHT: Final = 3
MAX_QUEUED: Final = 100_000  # items that wait; beyond these a call is refused

K = TypeVar("K")
A = TypeVar("A")
R = TypeVar("R")


class _Call(Generic[K, A, R]):
    __slots__ = ("answered", "items", "kind")

    def __init__(self, kind: K, items: Sequence[A], answered: asyncio.Future[list[R]]) -> None:
        self.kind = kind
        self.items = items
        self.answered = answered


class Batches(Generic[K, A, R]):
    """`carry_out` takes a kind and the items of one or more calls of this kind, and answers each item."""

    def __init__(self, carry_out: Callable[[K, Sequence[A]], Awaitable[list[R]]], *, most: int) -> None:
        self._carry_out = carry_out
        self._most = most
        self._queue: deque[_Call[K, A, R]] = deque()
        self._queued = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, kind: K, items: Sequence[A]) -> list[R]:
        """The answers to the items, after the commit. Raises Overloaded, and what `carry_out` raises."""
        if self._queued and self._queued + len(items) > MAX_QUEUED:
            raise Overloaded("the store has more writes waiting than it takes")
        call: _Call[K, A, R] = _Call(kind, items, asyncio.get_running_loop().create_future())
        self._queue.append(call)
        self._queued += len(items)
        self._start()
        return await call.answered

    async def drain(self) -> None:
        """Wait until everything that was submitted is answered."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self) -> None:
        while self._queue and len(self._tasks) < IN_FLIGHT:
            task = asyncio.get_running_loop().create_task(self._answer(self._take()))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._start()

    def _take(self) -> list[_Call[K, A, R]]:
        """The first call, and those behind it that go with it."""
        taken = [self._queue.popleft()]
        count = len(taken[0].items)
        left: deque[_Call[K, A, R]] = deque()
        while self._queue and count < self._most:
            call = self._queue.popleft()
            if call.kind == taken[0].kind and count + len(call.items) <= self._most:
                taken.append(call)
                count += len(call.items)
            else:
                left.append(call)
        self._queue.extendleft(reversed(left))
        self._queued -= count
        return taken

    async def _answer(self, calls: list[_Call[K, A, R]]) -> None:
        calls = [call for call in calls if not call.answered.done()]  # some have given up
        if not calls:
            return
        try:
            answers = await self._carry_out(calls[0].kind, [item for call in calls for item in call.items])
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is the callers'
            shared = isinstance(problem, Fenced) or (
                isinstance(problem, Unavailable) and not isinstance(problem, WrongShard)
            )
            if len(calls) > 1 and not shared:
                for call in calls:
                    await self._answer([call])
                return
            for call in calls:
                if not call.answered.done():
                    call.answered.set_exception(problem)
            return
        at = 0
        for call in calls:
            if not call.answered.done():
                call.answered.set_result(answers[at : at + len(call.items)])
            at += len(call.items)
