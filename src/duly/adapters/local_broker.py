"""A broker inside one process: messages are handed over by reference, through a bounded queue per subscription."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from typing import Final

from duly.core.errors import TimedOut, Unavailable
from duly.core.messages import AnyMessage
from duly.ports import Clock, Handler

QUEUE: Final = 10_000  # messages that wait for one subscriber

_log = logging.getLogger(__name__)


class _Reply:
    """Where the first answer to a request goes."""

    __slots__ = ("arrived", "message")

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.message: AnyMessage | None = None

    def give(self, message: AnyMessage) -> None:
        if self.message is None:
            self.message = message
            self.arrived.set()


class LocalSubscription:
    """A subscription of a LocalBroker, with the task that calls its handler."""

    def __init__(self, broker: LocalBroker, subject: str, handler: Handler, group: str | None, queue_size: int) -> None:
        self.subject = subject
        self.group = group
        self._broker = broker
        self._handler = handler
        self._size = queue_size
        self._queue: deque[tuple[AnyMessage, _Reply | None]] = deque()
        self._wake = asyncio.Event()
        self._stopped = False
        self._task = asyncio.create_task(self._consume(), name=f"broker:{subject}")

    def offer(self, message: AnyMessage, reply: _Reply | None) -> bool:
        """Queue a message; False if the queue is full."""
        if len(self._queue) >= self._size:
            return False
        self._queue.append((message, reply))
        self._wake.set()
        return True

    async def stop(self) -> None:
        """Let the handler finish the message that it is at; those queued are lost."""
        self._stopped = True
        self._queue.clear()
        self._wake.set()
        self._broker.forget(self)
        if asyncio.current_task() is not self._task:  # a handler may stop its own subscription
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
            except Exception:  # noqa: BLE001 - any handler's error is its own; the next message is handled
                self._broker.counters["handler_errors"] += 1
                _log.exception("handler of %s failed on %s", self.subject, type(message).__name__)
                continue
            if reply is not None and answer is not None:
                reply.give(answer)


class LocalBroker:
    """The Broker port within one event loop. `counters`: published, dropped, handler_errors."""

    def __init__(self, clock: Clock, *, queue_size: int = QUEUE) -> None:
        self._clock = clock
        self._queue_size = queue_size
        # By subject: each group's members, longest unused first; a subscription without a group is one of its own.
        self._groups: dict[str, dict[str | LocalSubscription, deque[LocalSubscription]]] = {}
        self._closed = False
        self.counters: Counter[str] = Counter(published=0, dropped=0, handler_errors=0)

    @property
    def connected(self) -> bool:
        return not self._closed

    async def publish(self, subject: str, message: AnyMessage) -> None:
        self._deliver(subject, message, None)

    def _deliver(self, subject: str, message: AnyMessage, reply: _Reply | None) -> bool:
        """True if anybody listens to the subject."""
        if self._closed:
            raise Unavailable("the broker is closed")
        self.counters["published"] += 1
        groups = self._groups.get(subject)
        if not groups:
            return False
        for members in groups.values():
            for _ in range(len(members)):
                member = members[0]
                members.rotate(-1)
                if member.offer(message, reply):
                    break
            else:
                self.counters["dropped"] += 1
        return True

    async def subscribe(self, subject: str, handler: Handler, *, group: str | None = None) -> LocalSubscription:
        if self._closed:
            raise Unavailable("the broker is closed")
        subscription = LocalSubscription(self, subject, handler, group, self._queue_size)
        groups = self._groups.setdefault(subject, {})
        groups.setdefault(group or subscription, deque()).append(subscription)
        return subscription

    def forget(self, subscription: LocalSubscription) -> None:
        """Deliver nothing more to a subscription; it calls this when it is stopped."""
        groups = self._groups.get(subscription.subject, {})
        key = subscription.group or subscription
        members = groups.get(key)
        if members is None or subscription not in members:
            return
        members.remove(subscription)
        if not members:
            del groups[key]
        if not groups:
            del self._groups[subscription.subject]

    async def request(self, subject: str, message: AnyMessage, *, timeout: int) -> AnyMessage:
        reply = _Reply()
        if not self._deliver(subject, message, reply):
            raise Unavailable(f"nobody listens to {subject}")
        await self._clock.wait(reply.arrived, timeout)
        if reply.message is None:
            raise TimedOut(f"no answer from {subject} within {timeout} µs")
        return reply.message

    async def close(self) -> None:
        self._closed = True
        subscriptions = [
            member for groups in self._groups.values() for members in groups.values() for member in members
        ]
        for subscription in subscriptions:
            await subscription.stop()
