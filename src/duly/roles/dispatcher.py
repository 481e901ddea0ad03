"""Hands out what the agenda has placed: commits the dispatches, and only then tells the workers.

A few commits may be under way at once. What is not committed is never sent, and what a commit leaves in doubt ends the
term: taking over again reads what is out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from duly.core.agenda import Agenda, Placement
from duly.core.errors import DulyError, Fenced, OutcomeUnknown
from duly.core.machine import Dispatch, Refusal, Transition, step
from duly.core.messages import Assign, Assignment, inbox
from duly.core.model import Job, Run, RunState, WorkerId
from duly.ports import Broker, Clock
from duly.roles.deliveries import Deliveries
from duly.roles.events import Committed
from duly.roles.leadership import Leadership
from duly.roles.window import Window
from duly.telemetry import Telemetry

log = logging.getLogger("duly.scheduler")

IN_FLIGHT: Final = 4  # dispatch commits under way at once

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class Dispatcher:
    """One shard's. `spawn` runs a dispatch in the background; `wake` is set when one has ended."""

    def __init__(
        self,
        *,
        shard: str,
        broker: Broker,
        clock: Clock,
        telemetry: Telemetry,
        agenda: Agenda,
        window: Window,
        deliveries: Deliveries,
        leadership: Leadership,
        committed: Committed,
        spawn: Spawn,
        wake: asyncio.Event,
    ) -> None:
        self._shard = shard
        self._broker = broker
        self._clock = clock
        self._telemetry = telemetry
        self._agenda = agenda
        self._window = window
        self._deliveries = deliveries
        self._leadership = leadership
        self._committed = committed
        self._spawn = spawn
        self._wake = wake
        self._in_flight: set[asyncio.Task[None]] = set()
        self._numbers: dict[WorkerId, int] = {}  # of the last Assign to each

    @property
    def full(self) -> bool:
        """True while as many dispatches are under way as may be."""
        return len(self._in_flight) >= IN_FLIGHT

    async def room(self) -> None:
        """Returns once one of those under way has ended."""
        await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)

    async def settle(self) -> None:
        """Returns once none is under way."""
        if self._in_flight:
            await asyncio.gather(*self._in_flight, return_exceptions=True)

    def start(self, placements: list[Placement], now: int) -> None:
        """Dispatch these, in the background; what fails is logged."""
        task = self._spawn(self._try_dispatch(placements, now), "dispatch")
        self._in_flight.add(task)
        task.add_done_callback(self._dispatched)

    def _dispatched(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._wake.set()

    async def _try_dispatch(self, placements: list[Placement], now: int) -> None:
        try:
            await self._dispatch(placements, now)
        except Fenced:
            self._leadership.step_down("fenced")
        except DulyError as error:
            log.warning("shard %s: a dispatch of %d runs: %s", self._shard, len(placements), error)

    async def _dispatch(self, placements: list[Placement], now: int) -> None:
        """Commit the dispatches, then tell the workers: what is not committed is never sent."""
        transitions: list[Transition] = []
        given: list[Placement] = []
        for placement in placements:
            event = Dispatch(placement.worker, placement.held_by)
            outcome = step(placement.run, placement.job, event, now)
            if isinstance(outcome, Refusal):
                self._agenda.ended(placement.run.key, placement.run.attempt + 1)
                continue
            transitions.append(outcome)
            given.append(placement)
        self._deliveries.committing.begin(given)
        try:
            losers = set(await self._leadership.apply(transitions))
        except OutcomeUnknown:
            self._leadership.doubt()
            raise
        except BaseException:
            for placement in given:  # nothing was written; the refill brings back what waits
                self._agenda.ended(placement.run.key, placement.run.attempt + 1)
            raise
        finally:
            self._deliveries.committing.end(given)
        batches: dict[WorkerId, list[Assignment]] = {}
        opened: list[tuple[Run, Job]] = []
        ended: list[tuple[Run, Job]] = []
        sent = 0
        for index, (transition, placement) in enumerate(zip(transitions, given, strict=True)):
            run = transition.run
            if index in losers:
                self._agenda.ended(run.key, placement.run.attempt + 1)
                continue
            opened.extend((following, placement.job) for following in transition.opened)
            if run.state == RunState.DISPATCHED:
                batches.setdefault(placement.worker, []).append(Assignment(run, placement.job))
                sent += 1
            else:
                self._agenda.ended(run.key, placement.run.attempt + 1)
                self._telemetry.runs_ended([run])
                ended.append((run, placement.job))
                ended += [(each, placement.job) for each in transition.opened if each.state.terminal]
        self._window.add(opened, now)
        for worker, batch in batches.items():
            await self._assign(worker, batch, now)
        self._telemetry.runs_dispatched(sent)
        self._committed("run.finished", ended, now)

    async def _assign(self, worker: WorkerId, batch: list[Assignment], now: int) -> None:
        term = self._leadership.term
        if term is None:
            return
        number = self._numbers.get(worker, 0) + 1
        self._numbers[worker] = number
        message = Assign(
            shard=self._shard,
            fence=term.fence,
            number=number,
            batch=tuple(batch),
            now=now,
            sent=self._clock.monotonic(),
        )
        await self._broker.publish(inbox(worker), message)
