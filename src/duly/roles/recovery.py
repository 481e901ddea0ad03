"""What a shard's scheduler does about attempts that it did not see end.

a term begins                what is out is read, so that overlap and slots are known from the first dispatch on
a worker's lease ended       its runs become new attempts, or what their job says
a worker does not hold it    the same, for attempts that never arrived there or were dropped
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from duly.core.agenda import Agenda
from duly.core.machine import Transition, WorkerLost, step
from duly.core.messages import MAX_ASSIGN
from duly.core.model import Job, Run, RunKey, WorkerId
from duly.ports import Clock, Store
from duly.roles.deliveries import is_at
from duly.roles.events import Committed
from duly.roles.leadership import Leadership
from duly.roles.window import Window
from duly.telemetry import Telemetry

PAGE: Final = 4_096


class Recovery:
    """One shard's. Instants in µs; `unclear_until` is by the monotonic clock, `led_since` by the shard's."""

    def __init__(
        self,
        *,
        shard: str,
        store: Store,
        clock: Clock,
        telemetry: Telemetry,
        dice: Callable[[], float],
        agenda: Agenda,
        window: Window,
        leadership: Leadership,
        committed: Committed,
    ) -> None:
        self.unclear_until = 0  # the shard's clock went back lately, so that leases and due times do not compare
        self.led_since = 0  # a worker that was not heard of since went with the scheduler before this one, or sooner
        self._shard = shard
        self._store = store
        self._clock = clock
        self._telemetry = telemetry
        self._dice = dice
        self._agenda = agenda
        self._window = window
        self._leadership = leadership
        self._committed = committed

    async def take_over(self) -> None:
        """Read what is out into the agenda."""
        self.led_since = await self._store.now(self._shard)
        after: RunKey | None = None
        while True:
            page = await self._store.active(self._shard, after, PAGE)
            self._agenda.take_over(page)
            if len(page) < PAGE:
                return
            after = page[-1][0].key

    async def recover_lost(self, now: int) -> None:
        """Runs whose worker's lease has ended become new attempts, or what their job says."""
        while True:
            page = await self._store.expired(self._shard, MAX_ASSIGN)
            if not page:
                return
            transitions: list[Transition] = []
            pairs: list[tuple[Run, Job]] = []
            for run, job, worker in page:
                lease_until = now if worker is None else worker.lease_until
                if self._clock.monotonic() < self.unclear_until:
                    lease_until = max(lease_until, run.due_at + 1)  # it may have begun, by the clock as it was
                event = WorkerLost(
                    attempt=run.attempt,
                    worker=run.worker,
                    lease_until=lease_until,
                    alone=worker is None or worker.beat_at >= self.led_since,
                )
                outcome = step(run, job, event, now, self._dice())
                if isinstance(outcome, Transition):
                    transitions.append(outcome)
                    pairs.append((run, job))
                if run.worker in self._agenda.seats:
                    self._agenda.unseat(run.worker)
                    self._telemetry.worker_lost()
            await self._carry_out(transitions, pairs, now)
            if len(page) < MAX_ASSIGN or not transitions:
                return

    async def recover_undelivered(self, worker: WorkerId, attempts: list[tuple[RunKey, int]], now: int) -> None:
        """What the store has at this worker waits again, or is lost as its job says; the rest is not out any more."""
        found = await self._store.load([key for key, _ in attempts], shard=self._shard)
        transitions: list[Transition] = []
        pairs: list[tuple[Run, Job]] = []
        for (key, attempt), pair in zip(attempts, found, strict=True):
            if pair is None or not is_at(pair[0], attempt, worker):
                self._agenda.ended(key, attempt)
                continue
            event = WorkerLost(attempt=attempt, worker=worker, lease_until=now, delivered=False)
            outcome = step(pair[0], pair[1], event, now, self._dice())
            if isinstance(outcome, Transition):
                transitions.append(outcome)
                pairs.append(pair)
        await self._carry_out(transitions, pairs, now)

    async def _carry_out(self, transitions: list[Transition], pairs: list[tuple[Run, Job]], now: int) -> None:
        """Apply what was decided, and take into the agenda what waits again."""
        losers = set(await self._leadership.apply(transitions))
        for index, (transition, (run, job)) in enumerate(zip(transitions, pairs, strict=True)):
            if index in losers:
                continue  # it changed meanwhile: if it still is not there, that will be noticed again
            self._agenda.ended(run.key, run.attempt)
            if transition.run.state.terminal:
                self._telemetry.runs_ended([transition.run])
                self._committed("run.finished", [(transition.run, job)], now)
            else:
                self._telemetry.attempt_retried()
                self._committed("run.retrying", [(transition.run, job)], now)
            self._window.add([(each, job) for each in (transition.run, *transition.opened)], now)
