"""Ports that fail on purpose. Behind the stores' are real SqliteStores, in memory; messages and blobs are simulated."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Final

from duly.core.errors import DulyError, NotFound, TimedOut, Unavailable
from duly.core.messages import AnyMessage
from duly.core.model import JobId
from duly.ports import Handler
from simulation.loop import SECOND, Life, NodeClock
from simulation.network import Network

QUEUE: Final = 10_000


class Subscription:
    """A process' ear: messages queue up while it is busy or frozen."""

    def __init__(self, network: Network, life: Life, subject: str, handler: Handler, group: str | None) -> None:
        self.subject = subject
        self.group = group
        self.life = life
        self._network = network
        self._handler = handler
        self._queue: deque[tuple[AnyMessage, tuple[Life, asyncio.Future[Any]] | None]] = deque()
        self._wake = asyncio.Event()
        self._stopped = False
        self._task = network.loop.start(life, self._consume())

    def offer(self, message: AnyMessage, reply: tuple[Life, asyncio.Future[Any]] | None) -> None:
        """A message has arrived."""
        if self._stopped or not self.life.up or len(self._queue) >= QUEUE:
            self._network.counts["messages to the dead"] += 1
            return
        self._queue.append((message, reply))
        self._wake.set()

    async def stop(self) -> None:
        """No message is handled after this."""
        self._stopped = True
        self._queue.clear()
        self._wake.set()
        self._network.forget(self)
        if asyncio.current_task() is not self._task:
            await asyncio.wait([self._task])

    async def _consume(self) -> None:
        while not self._stopped:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            message, reply = self._queue.popleft()
            try:
                answer = await self._handler(message)
            except DulyError:
                self._network.counts["handler errors"] += 1
                continue
            if reply is not None and answer is not None:
                self._network.answer(self.life, reply[0], reply[1], answer)


class SimBroker:
    """The Broker port of one process."""

    def __init__(self, network: Network, life: Life, clock: NodeClock) -> None:
        self._network = network
        self._life = life
        self._clock = clock

    connected = True

    async def publish(self, subject: str, message: AnyMessage) -> None:
        self._network.send(self._life, subject, message, None)

    async def subscribe(self, subject: str, handler: Handler, *, group: str | None = None) -> Subscription:
        subscription = Subscription(self._network, self._life, subject, handler, group)
        self._network.subscribe(subscription)
        return subscription

    async def request(self, subject: str, message: AnyMessage, *, timeout: int) -> AnyMessage:
        reply: asyncio.Future[AnyMessage] = self._network.loop.create_future()
        if not self._network.send(self._life, subject, message, (self._life, reply)):
            raise Unavailable(f"nobody listens to {subject}")
        try:
            async with asyncio.timeout(timeout / SECOND):
                return await reply
        except TimeoutError:
            raise TimedOut(f"no answer from {subject}") from None

    async def close(self) -> None:
        """Nothing to do."""


class SimStore:
    """The Store port of one process over one shard: every verb is a call over the network."""

    def __init__(self, shard: str, network: Network, life: Life, clock: NodeClock) -> None:
        self.shards: tuple[str, ...] = (shard,)
        self._shard = shard
        self._network = network
        self._life = life
        self._clock = clock

    def shard_of(self, job_id: JobId) -> str:
        return self._shard

    def __getattr__(self, verb: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if verb.startswith("_"):
            raise AttributeError(verb)

        async def called(*args: Any, **kwargs: Any) -> Any:
            return await self._network.call(self._shard, self._life, self._clock, verb, args, kwargs)

        setattr(self, verb, called)
        return called


class SimBlobs:
    """The Blobs port: a dictionary that all processes share."""

    def __init__(self, clock: NodeClock) -> None:
        self._clock = clock
        self._blobs: dict[str, tuple[bytes, int]] = {}

    async def put(self, data: Any, *, limit: int, expected: str | None = None) -> tuple[str, int]:
        content = data if isinstance(data, bytes) else b"".join([chunk async for chunk in data])
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self._blobs[digest] = (content, self._clock.monotonic())
        return digest, len(content)

    async def get(self, digest: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        if digest not in self._blobs:
            raise NotFound(digest)
        yield self._blobs[digest][0][start:end]

    async def size(self, digest: str) -> int | None:
        return len(self._blobs[digest][0]) if digest in self._blobs else None

    async def delete(self, digests: Sequence[str], *, unused_for: int) -> int:
        gone = [each for each in digests if each in self._blobs and self._idle(each) >= unused_for]
        for digest in gone:
            del self._blobs[digest]
        return len(gone)

    async def page(self, after: str | None, limit: int, *, unused_for: int) -> list[str]:
        idle = [each for each in sorted(self._blobs) if each > (after or "") and self._idle(each) >= unused_for]
        return idle[:limit]

    async def fetch(self, digest: str, path: str, *, executable: bool = False) -> None:
        raise NotImplementedError("scripted tasks have no files")

    def _idle(self, digest: str) -> int:
        return self._clock.monotonic() - self._blobs[digest][1]
