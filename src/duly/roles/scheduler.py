"""The scheduler of one shard: keeps the near future in memory, and hands runs out ahead of time.

While it holds the shard's term (`leadership`), one loop does it all: refill the agenda from the store (`window`: the
safety net, once a second), look after what did not end (`recovery`), pick what is within the lead, and hand it out
(`dispatcher`: the dispatches and next runs in one commit under the fence, and only then the workers are told). Hints
and ended attempts come in between and wake it; nothing polls on the way to a start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from duly.core.agenda import Agenda
from duly.core.errors import DulyError, Fenced
from duly.core.instants import MILLISECOND, SECOND
from duly.core.machine import CancelAsked, Overlapped, Transition, step
from duly.core.messages import (
    MAX_ASSIGN,
    AnyMessage,
    Beat,
    BeatAnswer,
    Cancel,
    Ended,
    Hint,
    beats,
    hints,
    inbox,
)
from duly.core.model import RunKey, Term, WorkerId
from duly.ports import Broker, Clock, Store, Subscription
from duly.roles.deliveries import Deliveries
from duly.roles.dispatcher import Dispatcher
from duly.roles.events import Committed, nobody
from duly.roles.leadership import Leadership
from duly.roles.loop import Loop
from duly.roles.quiet_fleet import QuietFleet
from duly.roles.recovery import Recovery
from duly.roles.window import Page, Window
from duly.telemetry import Telemetry

log = logging.getLogger("duly.scheduler")

RETRY: Final = 100 * MILLISECOND  # after the store refused, growing by as much up to the next
LAST_RETRY: Final = 500 * MILLISECOND


class SchedulerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """µs each. `lead`: how long before its instant a run is handed out; `window`: how far ahead the agenda looks;
    `refill`: how often the store is read for what no hint told, and for workers that are lost."""

    lead: int = 500 * MILLISECOND
    window: int = 5 * SECOND
    refill: int = SECOND
    term_ttl: int = 3 * SECOND
    worker_ttl: int = 5 * SECOND


class Scheduler(Loop):
    """One shard's scheduler; standing by while another holds the term."""

    def __init__(
        self,
        *,
        shard: str,
        owner: str,
        store: Store,
        broker: Broker,
        clock: Clock,
        telemetry: Telemetry,
        dice: Callable[[], float],
        settings: SchedulerSettings | None = None,
        committed: Committed = nobody,
    ) -> None:
        super().__init__(f"scheduler {shard}")
        self.shard = shard
        self.owner = owner
        self._store = store
        self._broker = broker
        self._clock = clock
        self._telemetry = telemetry
        self._settings = settings or SchedulerSettings()
        self._committed = committed
        self._wake = asyncio.Event()
        self._agenda = Agenda()
        self._window = Window(
            shard=shard,
            store=store,
            agenda=self._agenda,
            width=self._settings.window,
            interval=self._settings.refill,
        )
        self._leadership = Leadership(
            shard=shard,
            owner=owner,
            store=store,
            clock=clock,
            telemetry=telemetry,
            ttl=self._settings.term_ttl,
            began=self._take_over,
            ended=self._forget,
        )
        self._recovery = Recovery(
            shard=shard,
            store=store,
            clock=clock,
            telemetry=telemetry,
            dice=dice,
            agenda=self._agenda,
            window=self._window,
            leadership=self._leadership,
            committed=committed,
        )
        self._deliveries = Deliveries(
            shard=shard, store=store, clock=clock, agenda=self._agenda, worker_ttl=self._settings.worker_ttl
        )
        self._dispatcher = Dispatcher(
            shard=shard,
            broker=broker,
            clock=clock,
            telemetry=telemetry,
            agenda=self._agenda,
            window=self._window,
            deliveries=self._deliveries,
            leadership=self._leadership,
            committed=committed,
            spawn=self.spawn,
            wake=self._wake,
        )
        self._quiet = QuietFleet(shard=shard, store=store, clock=clock, agenda=self._agenda)
        self.reluctance = 0  # by how many shards this process leads more than another one: it asks less often for more
        self._resting_until = 0
        self._handing_over: asyncio.Event | None = None  # set once it is done
        self._refusals = 0  # of the store, in a row
        self._next_recovery = 0
        self._subscriptions: list[Subscription] = []

    @property
    def term(self) -> Term | None:
        """The term that is held."""
        return self._leadership.term

    @property
    def leading(self) -> bool:
        """True while the term is held and trusted."""
        return self._leadership.trusted

    # -- life -----------------------------------------------------------------------------------------------

    async def _up(self) -> None:
        self._subscriptions.append(await self._broker.subscribe(hints(self.shard), self._hinted))
        self._subscriptions.append(await self._broker.subscribe(beats(self.shard), self._beaten))
        self.spawn(self._work(), "work")

    async def _drain(self) -> None:
        """Hand the term over at once."""
        await self._dispatcher.settle()
        await self._leadership.release("shutting down")

    async def _down(self) -> None:
        for subscription in self._subscriptions:
            await subscription.stop()
        self._subscriptions.clear()
        await self._dispatcher.settle()
        await self._leadership.release("shutting down")

    async def hand_over(self, rest: int) -> None:
        """Let another scheduler have the term: returns once it is released. Not asked for again for `rest` µs."""
        if self.state != "started" or self.term is None:
            return
        self._resting_until = self._clock.monotonic() + rest
        done = self._handing_over = self._handing_over or asyncio.Event()
        self._wake.set()
        await done.wait()

    def hurry(self) -> None:
        """The term may be free: ask now."""
        if self.term is None:
            self._wake.set()

    # -- the loop -------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while self.state == "started":
            try:
                if self._handing_over is not None:
                    await self._let_go(self._handing_over)
                if self._clock.monotonic() < self._resting_until or not await self._leadership.hold():
                    self._refusals = 0
                    await self._clock.wait(self._wake, self._standby_pause())
                    self._wake.clear()
                    continue
                await self._turn()
                self._refusals = 0
            except Fenced:
                self._leadership.step_down("fenced")
            except DulyError as error:
                self._refusals += 1
                level = logging.WARNING if self._refusals == 1 else logging.DEBUG
                log.log(level, "shard %s: %s; trying again", self.shard, error)
                await self._clock.sleep(min(self._refusals * RETRY, LAST_RETRY))

    async def _let_go(self, done: asyncio.Event) -> None:
        """Between two turns: what was being dispatched is committed first."""
        self._handing_over = None
        try:
            await self._dispatcher.settle()
            await self._leadership.release("handed over")
        finally:
            done.set()

    def _standby_pause(self) -> int:
        """µs between two looks at the term: more for whoever leads more, and at most a third of the term."""
        ttl = self._settings.term_ttl
        return min(ttl // 6 * (1 + self.reluctance), ttl // 3)

    async def _take_over(self) -> None:
        """A term begins: what is out must be known before the first dispatch."""
        await self._dispatcher.settle()  # a dispatch that commits after the reading would be out without being known
        self._agenda.clear()
        self._deliveries.begin()
        await self._recovery.take_over()
        self._window.reset()
        self._next_recovery = 0

    def _forget(self) -> None:
        """The term is over."""
        self._agenda.clear()
        self._quiet.forget()
        self._deliveries.forget()
        self._window.reset()

    async def _turn(self) -> None:
        """One round: refill, recover, decide overlaps, dispatch; then wait for the next thing to do."""
        self._wake.clear()
        now = await self._now()
        monotonic = self._clock.monotonic()
        page = self._window.begin(monotonic)
        if page is not None:
            self.spawn(self._refill(page, now), "refill")
        if monotonic >= self._next_recovery:
            self._next_recovery = monotonic + self._settings.refill
            await self._recovery.recover_lost(now)
            await self._deliveries.forget_silent()
            await self._quiet.look(now, self._deliveries.heard, self._deliveries.committing)
        await self._decide_overlaps(now)
        while not self._dispatcher.full:
            placements = self._agenda.pick(now, self._settings.lead, MAX_ASSIGN)
            if not placements:
                break
            self._window.picked(placement.run.key for placement in placements)
            self._dispatcher.start(placements, now)
        if self._dispatcher.full:
            await self._dispatcher.room()
            return
        await self._clock.wait(self._wake, self._pause(now, monotonic))

    async def _now(self) -> int:
        """The shard's clock; notices when it was set."""
        before = self._clock.monotonic()
        now = await self._store.now(self.shard)
        after = self._clock.monotonic()
        step = self._agenda.steps.see(before, now, after)
        if step:
            log.warning("shard %s: its clock was set by %+.3f s", self.shard, step / SECOND)
            self._recovery.led_since += step
            self._window.next_reading = after
        if step < 0:
            self._recovery.unclear_until = after + 2 * self._settings.worker_ttl
            self._agenda.replan()
        return now

    def _pause(self, now: int, monotonic: int) -> int:
        """µs until there is something to do without being woken."""
        until = min(self._window.next_reading, self._next_recovery, self._leadership.next_renewal) - monotonic
        next_wake = self._agenda.next_wake(self._settings.lead)
        if next_wake is not None:
            until = min(until, next_wake - now)
        return max(0, until)

    async def _refill(self, page: Page, now: int) -> None:
        fence = None if self.term is None else self.term.fence
        await self._window.read(page, now, lambda: self._leadership.is_under(fence))
        self._telemetry.agenda(self.shard, len(self._agenda))
        self._wake.set()

    # -- overlap --------------------------------------------------------------------------------------------

    async def _decide_overlaps(self, now: int) -> None:
        """Runs that are due while their job's previous run is out: skipped, kept waiting, or it is cancelled."""
        for run, job, out in list(self._agenda.overlapped(now)):
            known = [each for each in out if each[:2] not in self._deliveries.committing]
            if out and len(known) == len(out) and not await self._quiet.free_ended(out):
                continue  # word of the end was lost: the run is ready
            outcome = step(run, job, Overlapped(), now)
            if isinstance(outcome, Transition):
                self._agenda.forget(run.key)
                if not await self._leadership.apply([outcome]):
                    self._telemetry.runs_ended([outcome.run])
                    self._committed("run.finished", [(outcome.run, job)], now)
                    self._window.add([(opened, job) for opened in outcome.opened], now)
            elif job.overlap == "cancel_running":
                for key, attempt, worker in out:
                    await self._cancel(key, attempt, worker, now)

    async def _cancel(self, key: RunKey, attempt: int, worker: WorkerId, now: int) -> None:
        if (key, attempt) in self._deliveries.committing:
            await self._dispatcher.settle()
        found = (await self._store.load([key], shard=self.shard))[0]
        if found is None or not found[0].state.active:
            self._agenda.ended(key, attempt)
            return
        reason = "overlap: the next run is due"
        outcome = step(found[0], found[1], CancelAsked(reason), now)
        if isinstance(outcome, Transition):
            await self._leadership.apply([outcome])
        await self._broker.publish(inbox(worker), Cancel(key=key, attempt=attempt, reason=reason))

    # -- what others tell -----------------------------------------------------------------------------------

    async def _hinted(self, message: AnyMessage) -> None:
        """New or changed runs, or ended attempts. Told to a standby, it only shortens nothing."""
        if self.term is None:
            return
        now = await self._now()
        match message:
            case Hint(shard=self.shard):
                for job_id in message.changed:
                    self._agenda.forget_job(job_id)
                self._window.add(message.runs, now)
            case Ended(shard=self.shard):
                for key, attempt in message.keys:
                    self._agenda.ended(key, attempt)
                self._agenda.offer(message.worker, message.capacity)
                self._window.add(message.opened, now)
            case _:
                return
        self._wake.set()

    async def _beaten(self, message: AnyMessage) -> AnyMessage | None:
        """A worker lives: its lease is written, its seat is corrected, and it is told what it must drop."""
        if not isinstance(message, Beat) or not self.leading:
            return None
        asked = self._clock.monotonic()
        fresh = self._deliveries.is_fresh(message, asked)
        written = await self._store.beat(self.shard, message.worker, self._settings.worker_ttl)
        now = await self._store.now(self.shard)
        if written.state == "lost" or self._clock.monotonic() - asked >= self._settings.worker_ttl:
            self._agenda.unseat(written.id)
            return BeatAnswer(shard=self.shard, now=now, lease_until=min(written.lease_until, now), stale=message.held)
        self._agenda.seat(written, message.capacity)
        overdue = self._deliveries.overdue(written.id, message.held) if fresh else []
        if overdue:
            await self._recovery.recover_undelivered(written.id, overdue, now)
        stale = await self._deliveries.stale(written.id, message.held)
        self._wake.set()
        # The worker counts the lease from the moment it asked, so it is told how long that is: the clock may have
        # been set between the two readings.
        lease_until = now + written.lease_until - written.beat_at
        return BeatAnswer(shard=self.shard, now=now, lease_until=lease_until, stale=stale)
