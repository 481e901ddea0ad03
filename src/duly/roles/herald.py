"""Tells the servicers what this process has committed, while somebody watches through one of them.

    servicer that is watched ──Notice "watching", every 5 s──▶ heralds ──News of what they write──▶ that servicer
    herald that starts       ──Notice "asking"──▶ servicers that are watched say so at once

Nobody watches, nothing is sent. What waits to be sent is bounded; what is dropped beyond is counted and told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from duly.core.instants import MILLISECOND, SECOND
from duly.core.messages import NOTICES, AnyMessage, News, Notice
from duly.core.model import Job, JobId, Run, RunKey
from duly.ports import Broker, Clock
from duly.roles.loop import Loop

WATCHING: Final = "watching"  # kinds of notices
ASKING: Final = "asking"
HEARD_FOR: Final = 15 * SECOND  # others count as watching so long after they last said so
LINGER: Final = 5 * MILLISECOND
BATCH: Final = 1_000  # keys in one message
WAITING: Final = 20_000  # keys that wait to be told; the newest are dropped beyond


class Herald(Loop):
    """One process's mouth for those who watch elsewhere. `origin`: a name that no other process has."""

    def __init__(self, *, broker: Broker, clock: Clock, origin: str) -> None:
        super().__init__("herald")
        self.origin = origin
        self._broker = broker
        self._clock = clock
        self._others_until = -1  # by the monotonic clock: others watch
        self._to_tell: list[News] = []
        self._waiting = 0
        self._lost = 0
        self._telling = asyncio.Event()

    @property
    def watched(self) -> bool:
        """Somebody watches elsewhere."""
        return self._clock.monotonic() <= self._others_until

    async def _up(self) -> None:
        self.spawn(self._send(), "telling")
        await self._broker.publish(NOTICES, Notice(kind=ASKING))

    async def hear(self, message: AnyMessage) -> None:
        """A notice or news on NOTICES."""
        if not isinstance(message, Notice) or message.kind != WATCHING:
            return
        try:
            origin = msgspec.json.decode(message.data.get("origin", b"null"), type=str)
        except msgspec.DecodeError:
            return
        if origin != self.origin:
            self._others_until = self._clock.monotonic() + HEARD_FOR

    def committed(self, kind: str, pairs: Sequence[tuple[Run, Job]], at: int) -> None:
        """Runs that this process has changed. Never waits, never raises."""
        if pairs:
            self.tell(kind, at, [run.key for run, _ in pairs], ())

    def tell(self, kind: str, at: int, runs: Sequence[RunKey], jobs: Sequence[JobId]) -> None:
        """This process has written something. Cheap while nobody watches elsewhere."""
        if not self.watched:
            return
        count = len(runs) + len(jobs)
        if self._waiting + count > WAITING:
            self._lost += count
        else:
            self._to_tell.append(News(origin=self.origin, kind=kind, at=at, runs=tuple(runs), jobs=tuple(jobs)))
            self._waiting += count
        self._telling.set()

    async def _send(self) -> None:
        while True:
            await self._telling.wait()
            await self._clock.sleep(LINGER)
            self._telling.clear()
            told, self._to_tell, self._waiting = self._to_tell, [], 0
            for news in _joined(told):
                await self._broker.publish(NOTICES, news)
            if self._lost:
                lost, self._lost = self._lost, 0
                await self._broker.publish(NOTICES, News(origin=self.origin, kind="skipped", at=0, lost=lost))


def _joined(told: Sequence[News]) -> list[News]:
    """The same news in fewer messages, in order, none with more than BATCH keys."""
    joined: list[News] = []
    for news in told:
        last = joined[-1] if joined else None
        if last is not None and last.kind == news.kind and len(last.runs) + len(news.runs) <= BATCH and not news.jobs:
            joined[-1] = msgspec.structs.replace(last, runs=last.runs + news.runs, at=news.at)
            continue
        for start in range(0, max(len(news.runs), len(news.jobs)), BATCH):
            end = start + BATCH
            joined.append(msgspec.structs.replace(news, runs=news.runs[start:end], jobs=news.jobs[start:end]))
    return joined
