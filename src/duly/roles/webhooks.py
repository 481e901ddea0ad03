"""Webhooks: events of runs, posted to addresses that the operator named.

    commit ─▶ committed(kind, runs) ─▶ each rule's queue (bounded) ─▶ at most AT_ONCE requests ─▶ the endpoint
                                           ▲── after a pause that grows ──┘ no 2xx

Every process that commits changes of runs has this role and sends what it has committed itself, so that an event has
one sender however many there are. What waits is in memory: an event is sent at least once while its process lives, and
as far as a clean stop has time for it; a crash loses what waits (decision 0026). Endpoints share nothing: one
that is dead fills its own queue and slows neither others nor the role that commits.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from duly.core.contract import WebhookView
from duly.core.instants import HOUR, MINUTE, SECOND, format_instant
from duly.core.model import Job, Run
from duly.core.webhook import (
    MAX_BODY,
    Filter,
    WebhookEvent,
    WebhookRule,
    cloud_event,
    event_id,
    events_of,
    origin_of,
    signed_headers,
)
from duly.ports import Clock, HttpSender, Posted
from duly.roles.loop import Loop
from duly.telemetry import Telemetry

log = logging.getLogger("duly.webhooks")

GONE = 410  # the receiver wants no more, ever: nothing is sent there until the next start


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of each endpoint; durations in µs."""

    queue: int = 1_000  # events that wait, or are under way
    at_once: int = 4  # requests; one while the endpoint fails
    attempts: int = 8  # for one event: some eleven minutes
    timeout: int = 10 * SECOND  # of one request, all in all
    first_pause: int = SECOND  # after a failure; tripled by each further one
    longest_pause: int = 5 * MINUTE
    longest_wait: int = HOUR  # that a receiver may ask for by Retry-After
    flush: int = 5 * SECOND  # at a clean stop


class _Delivery(msgspec.Struct, gc=False):
    """One event on its way to one endpoint."""

    event: WebhookEvent
    run: Run
    job: Job
    at: int
    tries: int = 0


class Endpoint:
    """One rule's address: its queue, and what became of what was in it."""

    def __init__(
        self,
        name: str,
        rule: WebhookRule,
        keys: Sequence[bytes],
    ) -> None:
        """`keys` are those of the rule's secrets."""
        self.name = name
        self.rule = rule
        self.keys = tuple(keys)
        self.filter = Filter(rule)
        self.waiting: list[tuple[int, int, _Delivery]] = []  # a heap by when they may go
        self.under_way = 0
        self.serial = 0
        self.rest_until = 0  # by the monotonic clock: the receiver asked for it
        self.gone = False
        self.failures = 0  # in a row
        self.delivered = 0
        self.dropped: Counter[str] = Counter()
        self.problem = ""  # of the last failure
        self.delivered_at: int | None = None
        self.news = asyncio.Event()
        self.idle = asyncio.Event()

    @property
    def held(self) -> int:
        """Events that wait or are under way."""
        return len(self.waiting) + self.under_way

    def put(self, delivery: _Delivery, ready_at: int) -> None:
        """Take an event that may go at `ready_at`, by the monotonic clock."""
        self.serial += 1
        heapq.heappush(self.waiting, (ready_at, self.serial, delivery))
        self.news.set()

    def view(self) -> WebhookView:
        """As clients see it; the path of an address is not shown, because it is often a secret."""
        state: Literal["unused", "ok", "failing", "gone"]
        state = "gone" if self.gone else "failing" if self.failures else "ok" if self.delivered else "unused"
        return WebhookView(
            name=self.name,
            endpoint=origin_of(self.rule.url),
            events=list(self.rule.events),
            state=state,
            waiting=self.held,
            delivered=self.delivered,
            failures_in_a_row=self.failures,
            dropped=dict(self.dropped),
            problem=self.problem or None,
            delivered_at=None if self.delivered_at is None else format_instant(self.delivered_at),
        )


class Webhooks(Loop):
    """Sends events of runs to endpoints."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        sender: HttpSender,
        clock: Clock,
        telemetry: Telemetry,
        dice: Callable[[], float],
        limits: Limits | None = None,
    ) -> None:
        super().__init__("webhooks")
        self.endpoints = tuple(endpoints)
        self._sender = sender
        self._clock = clock
        self._telemetry = telemetry
        self._dice = dice
        self._limits = limits or Limits()

    def committed(self, kind: str, pairs: Sequence[tuple[Run, Job]], at: int) -> None:
        """Runs that this process has changed: their events go to whom they concern. Never waits, never raises."""
        for run, job in pairs:
            for event in events_of(kind, run):
                for endpoint in self.endpoints:
                    if endpoint.filter.wants(event, job):
                        self._take(endpoint, _Delivery(event, run, job, at))

    def wants(self, event: WebhookEvent) -> bool:
        """Whether any rule asks for that event."""
        return any(event in endpoint.filter.events for endpoint in self.endpoints)

    def views(self) -> list[WebhookView]:
        """The state of each endpoint, as this process knows it."""
        return [endpoint.view() for endpoint in self.endpoints]

    async def _up(self) -> None:
        for endpoint in self.endpoints:
            self.spawn(self._serve(endpoint), endpoint.name)

    async def _drain(self) -> None:
        """Try what waits once more, within the time for it."""
        for endpoint in self.endpoints:
            endpoint.waiting = [(0, serial, delivery) for _, serial, delivery in endpoint.waiting]
            heapq.heapify(endpoint.waiting)
            endpoint.rest_until = endpoint.failures = 0
            endpoint.idle.clear()
            endpoint.news.set()
        flush = self._limits.flush
        await asyncio.gather(*(self._clock.wait(endpoint.idle, flush) for endpoint in self.endpoints if endpoint.held))

    async def _down(self) -> None:
        for endpoint in self.endpoints:
            if endpoint.held:
                self._drop(endpoint, "stopped", endpoint.held)

    async def stop(self) -> None:
        """As any role's; then the connections are let go."""
        await super().stop()
        await self._sender.close()

    # -- one endpoint ---------------------------------------------------------------------------------------

    def _take(self, endpoint: Endpoint, delivery: _Delivery) -> None:
        if endpoint.gone:
            self._drop(endpoint, "gone")
        elif self.state == "stopped":
            self._drop(endpoint, "stopped")
        elif endpoint.held >= self._limits.queue:
            self._drop(endpoint, "queue_full")
        else:
            endpoint.put(delivery, self._clock.monotonic())
            self._telemetry.webhook_waiting(endpoint.name, endpoint.held)

    async def _serve(self, endpoint: Endpoint) -> None:
        while True:
            endpoint.news.clear()
            now = self._clock.monotonic()
            at_once = 1 if endpoint.failures else self._limits.at_once
            while endpoint.waiting and endpoint.under_way < at_once and self._ready_at(endpoint) <= now:
                _, _, delivery = heapq.heappop(endpoint.waiting)
                endpoint.under_way += 1
                self.spawn(self._deliver(endpoint, delivery), f"{endpoint.name} {delivery.event}")
            if not endpoint.held:
                endpoint.idle.set()
            free = endpoint.waiting and endpoint.under_way < at_once
            await self._clock.wait(endpoint.news, max(0, self._ready_at(endpoint) - now) if free else None)

    def _ready_at(self, endpoint: Endpoint) -> int:
        return max(endpoint.waiting[0][0], endpoint.rest_until)

    async def _deliver(self, endpoint: Endpoint, delivery: _Delivery) -> None:
        try:
            posted = await self._post(endpoint, delivery)
            self._settle(endpoint, delivery, posted)
        finally:
            endpoint.under_way -= 1
            self._telemetry.webhook_waiting(endpoint.name, endpoint.held)
            endpoint.news.set()

    async def _post(self, endpoint: Endpoint, delivery: _Delivery) -> Posted:
        body = cloud_event(delivery.event, delivery.run, delivery.job, delivery.at)
        if len(body) > MAX_BODY:
            return Posted(0, f"an event has {len(body):,} bytes, more than {MAX_BODY:,}", hopeless=True)
        headers = signed_headers(event_id(delivery.event, delivery.run), self._clock.wall(), body, endpoint.keys)
        delivery.tries += 1
        rule = endpoint.rule
        return await self._sender.post(
            rule.url, headers, body, timeout=self._limits.timeout, allow_private=rule.allow_private
        )

    def _settle(self, endpoint: Endpoint, delivery: _Delivery, posted: Posted) -> None:
        """Done, to be tried again, or given up."""
        delivered = 200 <= posted.status < 300
        self._telemetry.webhook_attempt(endpoint.name, delivered)
        if delivered:
            if endpoint.failures:
                log.info("webhook %s takes events again", endpoint.name)
            endpoint.failures = 0
            endpoint.delivered += 1
            endpoint.delivered_at = self._clock.wall()
            return
        endpoint.problem = posted.problem[:300]
        if not endpoint.failures:
            log.warning("webhook %s did not take an event: %s", endpoint.name, endpoint.problem)
        endpoint.failures += 1
        if posted.status == GONE:
            endpoint.gone = True
            self._drop(endpoint, "gone", 1 + len(endpoint.waiting))
            endpoint.waiting.clear()
        elif posted.hopeless:
            self._drop(endpoint, "refused")
        elif self.state == "draining":
            self._drop(endpoint, "stopped")
        elif delivery.tries >= self._limits.attempts:
            self._drop(endpoint, "attempts")
        else:
            now = self._clock.monotonic()
            if posted.retry_after is not None:
                endpoint.rest_until = now + min(posted.retry_after, self._limits.longest_wait)
            endpoint.put(delivery, now + self._pause(delivery.tries))

    def _pause(self, tries: int) -> int:
        """µs until the next try: tripled by each, and up to a half of it is left to chance."""
        limits = self._limits
        longest = min(limits.first_pause * 3 ** (tries - 1), limits.longest_pause)
        return int(longest * (1 + self._dice()) / 2)

    def _drop(self, endpoint: Endpoint, reason: str, count: int = 1) -> None:
        if not endpoint.dropped[reason]:
            log.warning("webhook %s: events are dropped from now on, and counted: %s", endpoint.name, reason)
        endpoint.dropped[reason] += count
        self._telemetry.webhook_dropped(endpoint.name, reason, count)
