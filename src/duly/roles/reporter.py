"""Tells a shard what became of attempts: in batches, in order, repeated until a servicer has answered.

A lone event goes at once. While a report is under way the next events gather, for at most 2 ms or until a report
is full; up to four reports are under way. What is kept is bounded by what the worker holds: with many reports
unanswered it takes no more work (`backed_up`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator
from itertools import chain
from typing import Any, Final

import msgspec

from duly.core.errors import DulyError
from duly.core.messages import MAX_REPORT, Report, ReportAnswer, Started, WorkerEvent, reports
from duly.core.model import Lane, RunKey, WorkerId
from duly.ports import Broker, Clock
from duly.tasks.attempt import Held

log = logging.getLogger("duly.worker")

LINGER: Final = 0.002  # seconds
IN_FLIGHT: Final = 4
ANSWER_WITHIN: Final = 5_000_000  # µs
RETRY_FIRST: Final = 20_000  # µs, doubling
RETRY_LAST: Final = 1_000_000
BACKED_UP: Final = 16 * MAX_REPORT
AGAIN: Final = frozenset(
    {"lost_race", "unavailable", "outcome_unknown", "overloaded", "fenced"}
)  # words to repeat after


class Begun(msgspec.Struct, frozen=True):
    """A start that is told only if the attempt still runs when the report is made."""

    held: Held
    event: Started


Entry = tuple[RunKey, WorkerEvent | Begun]


class Reporter:
    """The events of one shard's attempts."""

    def __init__(
        self,
        shard: str,
        *,
        broker: Broker,
        clock: Clock,
        worker: Callable[[], WorkerId],
        capacity: Callable[[], dict[Lane, int]],
        still_running: Callable[[Held], bool],
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[Any]],
    ) -> None:
        self.shard = shard
        self.words: Counter[str] = Counter()  # what servicers said of events, except "ok"
        self._broker = broker
        self._clock = clock
        self._worker = worker
        self._capacity = capacity
        self._still_running = still_running
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Entry] = deque()
        self._in_flight = 0
        self._under_way: dict[int, list[tuple[RunKey, WorkerEvent]]] = {}
        self._reports = 0
        self._soon = False
        self._closed = False
        self._linger: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def backed_up(self) -> bool:
        """So much is unanswered that no more work should be taken."""
        return len(self._queue) > BACKED_UP

    def untold(self) -> Iterator[tuple[RunKey, int]]:
        """Attempts that are over here, of which no servicer has answered yet that it knows."""
        for key, event in chain(self._queue, *self._under_way.values()):
            if not isinstance(event, Begun | Started):
                yield key, event.attempt

    def add(self, key: RunKey, event: WorkerEvent | Begun) -> None:
        """Tell this, soon."""
        self._queue.append((key, event))
        if not self._soon:
            self._soon = True
            self._idle.clear()
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Tell nothing more."""
        self._closed = True
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    async def settled(self) -> None:
        """Returns once everything has been told and answered."""
        await self._idle.wait()

    def _flush(self) -> None:
        self._soon = False
        if self._closed:
            return
        while self._queue and (
            self._in_flight == 0 or (len(self._queue) >= MAX_REPORT and self._in_flight < IN_FLIGHT)
        ):
            self._send()
        if self._queue and self._in_flight < IN_FLIGHT and self._linger is None:
            self._linger = self._loop.call_later(LINGER, self._lingered)
        if not self._queue and not self._in_flight:
            self._idle.set()

    def _lingered(self) -> None:
        self._linger = None
        if self._queue and self._in_flight < IN_FLIGHT:
            self._send()
        self._flush()

    def _send(self) -> None:
        batch: list[tuple[RunKey, WorkerEvent]] = []
        queue = self._queue
        while queue and len(batch) < MAX_REPORT:
            key, event = queue.popleft()
            if isinstance(event, Begun):
                if not self._still_running(event.held):
                    continue  # its outcome is in this batch or under way, and says when it started
                event = event.event
            batch.append((key, event))
        if batch:
            self._in_flight += 1
            self._spawn(self._deliver(batch), "report")

    async def _deliver(self, batch: list[tuple[RunKey, WorkerEvent]]) -> None:
        pause = RETRY_FIRST
        self._reports += 1
        number = self._reports
        try:
            while batch:
                self._under_way[number] = batch
                report = Report(worker=self._worker(), shard=self.shard, events=tuple(batch), capacity=self._capacity())
                try:
                    answer = await self._broker.request(reports(self.shard), report, timeout=ANSWER_WITHIN)
                except DulyError as error:
                    log.info("shard %s: %d events not reported yet: %s", self.shard, len(batch), error)
                else:
                    if isinstance(answer, ReportAnswer):
                        batch = self._answered(batch, answer.words)
                if batch:
                    await self._clock.sleep(pause)
                    pause = min(2 * pause, RETRY_LAST)
        finally:
            self._in_flight -= 1
            self._under_way.pop(number, None)
            self._flush()

    def _answered(self, batch: list[tuple[RunKey, WorkerEvent]], words: tuple[str, ...]) -> list[Any]:
        """What has to be told again."""
        if words.count("ok") == len(batch):
            return []
        again = []
        for index, entry in enumerate(batch):
            word = words[index] if index < len(words) else "unavailable"
            if word == "ok":
                continue
            self.words[word] += 1
            if word in AGAIN:
                again.append(entry)
            elif word != "duplicate":
                log.debug(
                    "%s of attempt %d of %s: refused, %s", type(entry[1]).__name__, entry[1].attempt, entry[0], word
                )
        return again
