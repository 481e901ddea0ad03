"""A worker's broker made of two: a real one, and servicers over HTTP for what it cannot do without while that is away.

    Beat, Report ──▶ broker ──not connected, nobody listens, no answer in half the time──▶ a servicer
    the rest     ──▶ broker

Back to the broker by itself: it is asked first whenever it is connected. For `BOTH` after that a beat goes to both, so
that attempts which were given out while it was away, and never told, are still listed.
"""

from __future__ import annotations

import logging
from typing import Final

from msgspec.structs import replace

from duly.core.errors import DulyError, TimedOut, Unavailable
from duly.core.instants import SECOND
from duly.core.messages import AnyMessage, Beat, BeatAnswer, Report
from duly.ports import Broker, Clock, Handler, Subscription

BOTH: Final = 5 * SECOND  # longer than a scheduler waits before it takes an attempt for undelivered

log = logging.getLogger("duly.broker")


class FallbackBroker:
    """The Broker port. Both are closed with it."""

    def __init__(self, primary: Broker, fallback: Broker, *, clock: Clock) -> None:
        self._primary = primary
        self._fallback = fallback
        self._clock = clock
        self._both_until: dict[str, int] = {}  # by subject of beats: by the monotonic clock
        self._elsewhere: set[str] = set()  # subjects whose last message went to a servicer

    @property
    def connected(self) -> bool:
        """As the broker is."""
        return self._primary.connected

    async def publish(self, subject: str, message: AnyMessage) -> None:
        await self._primary.publish(subject, message)

    async def subscribe(self, subject: str, handler: Handler, *, group: str | None = None) -> Subscription:
        return await self._primary.subscribe(subject, handler, group=group)

    async def request(self, subject: str, message: AnyMessage, *, timeout: int) -> AnyMessage:
        """As the port says; a Beat or a Report may take as long as the fallback needs at least."""
        if not isinstance(message, Beat | Report):
            return await self._primary.request(subject, message, timeout=timeout)
        began = self._clock.monotonic()
        answer: AnyMessage | None = None
        problem: DulyError = Unavailable("the broker is not connected")
        if self._primary.connected:
            try:
                answer = await self._primary.request(subject, message, timeout=timeout // 2)
            except (Unavailable, TimedOut) as error:
                problem = error
        self._tell(subject, None if answer is not None else problem)
        if isinstance(message, Report):
            return answer or await self._fallback.request(subject, message, timeout=self._left(began, timeout))
        if answer is None:
            self._both_until[subject] = self._clock.monotonic() + BOTH
            return await self._fallback.request(subject, message, timeout=self._left(began, timeout))
        if self._clock.monotonic() < self._both_until.get(subject, 0):
            return await self._by_both(subject, message, answer, self._left(began, timeout))
        return answer

    async def _by_both(self, subject: str, beat: Beat, answer: AnyMessage, timeout: int) -> AnyMessage:
        """What a servicer lists besides; its lease and clock, which are the later ones."""
        try:
            listed = await self._fallback.request(subject, beat, timeout=timeout)
        except DulyError:
            return answer
        if isinstance(listed, BeatAnswer) and isinstance(answer, BeatAnswer) and answer.lease_until > answer.now:
            return replace(listed, stale=(*answer.stale, *listed.stale))
        return answer

    def _tell(self, subject: str, problem: DulyError | None) -> None:
        """Log the change from one way to the other."""
        if (problem is not None) != (subject in self._elsewhere):
            if problem is None:
                self._elsewhere.discard(subject)
                log.info("%s goes by the broker again", subject)
            else:
                self._elsewhere.add(subject)
                log.info("%s goes to servicers: %s", subject, problem)

    def _left(self, began: int, timeout: int) -> int:
        return max(0, timeout - (self._clock.monotonic() - began))

    async def close(self) -> None:
        """Close both."""
        await self._primary.close()
        await self._fallback.close()
