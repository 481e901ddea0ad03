"""The scheduler of one shard: holds its term, keeps the near future in memory, and hands runs out ahead of time.

    standby ──hold granted──▶ leading ──renewed at a third of the ttl──▶ leading
       ▲                        │ fenced, or not renewed in time
       └────────────────────────┘

While leading, one loop does it all: refill the agenda from the store (the safety net, once a second), pick what
is within the lead, write the dispatches and next runs in one commit under the fence, and only then tell the
workers. Hints and ended attempts come in between and wake it; nothing polls on the way to a start. Trust in the
term ends `MARGIN` before the lease does, by this node's monotonic clock, which may only make it stop sooner.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from duly.core.agenda import Agenda, Placement
from duly.core.errors import DulyError, Fenced, OutcomeUnknown
from duly.core.instants import MILLISECOND, SECOND
from duly.core.machine import CancelAsked, Dispatch, Overlapped, Refusal, Transition, WorkerLost, step
from duly.core.messages import (
    MAX_ASSIGN,
    AnyMessage,
    Assign,
    Assignment,
    Beat,
    BeatAnswer,
    Cancel,
    Ended,
    Hint,
    beats,
    hints,
    inbox,
)
from duly.core.model import Job, Run, RunKey, RunState, Term, WorkerId
from duly.ports import Broker, Clock, Store, Subscription
from duly.roles.deliveries import Deliveries, is_at
from duly.roles.events import Committed, nobody
from duly.roles.loop import Loop
from duly.roles.quiet_fleet import QuietFleet
from duly.roles.window import Page, Window
from duly.telemetry import Telemetry

log = logging.getLogger("duly.scheduler")

MARGIN: Final = 500 * MILLISECOND  # trust ends this long before the term does
PAGE: Final = 4_096
IN_FLIGHT: Final = 4  # dispatch commits under way at once
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
        self.term: Term | None = None
        self._store = store
        self._broker = broker
        self._clock = clock
        self._telemetry = telemetry
        self._dice = dice
        self._settings = settings or SchedulerSettings()
        self._committed = committed
        self._agenda = Agenda()
        self._window = Window(
            shard=shard,
            store=store,
            agenda=self._agenda,
            width=self._settings.window,
            interval=self._settings.refill,
        )
        self._deliveries = Deliveries(
            store=store, clock=clock, agenda=self._agenda, worker_ttl=self._settings.worker_ttl
        )
        self._quiet = QuietFleet(shard=shard, store=store, clock=clock, agenda=self._agenda)
        self.reluctance = 0  # by how many shards this process leads more than another one: it asks less often for more
        self._wake = asyncio.Event()
        self._trusted_until = 0
        self._resting_until = 0
        self._handing_over: asyncio.Event | None = None  # set once it is done
        self._refusals = 0  # of the store, in a row
        self._next_renewal = 0
        self._next_recovery = 0
        self._in_doubt = False  # a dispatch under the present fence may still be on its way
        self._unclear_until = 0  # monotonic: the clock went back lately, so that leases and due times do not compare
        self._in_flight: set[asyncio.Task[None]] = set()
        self._numbers: dict[WorkerId, int] = {}
        self._subscriptions: list[Subscription] = []

    @property
    def leading(self) -> bool:
        """True while the term is held and trusted."""
        return self.term is not None and self._clock.monotonic() < self._trusted_until

    # -- life -----------------------------------------------------------------------------------------------

    async def _up(self) -> None:
        self._subscriptions.append(await self._broker.subscribe(hints(self.shard), self._hinted))
        self._subscriptions.append(await self._broker.subscribe(beats(self.shard), self._beaten))
        self.spawn(self._work(), "work")

    async def _drain(self) -> None:
        """Hand the term over at once."""
        await self._settle()
        await self._release()

    async def _down(self) -> None:
        for subscription in self._subscriptions:
            await subscription.stop()
        self._subscriptions.clear()
        await self._settle()
        await self._release()

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

    async def _release(self, why: str = "shutting down") -> None:
        if self.term is None:
            return
        self._step_down(why)
        try:
            await self._store.hold(self.shard, self.owner, 0, release=True)
        except DulyError as error:
            log.warning("shard %s: the term was not released, it will run out: %s", self.shard, error)

    async def _settle(self) -> None:
        if self._in_flight:
            await asyncio.gather(*self._in_flight, return_exceptions=True)

    # -- the loop -------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while self.state == "started":
            try:
                if self._handing_over is not None:
                    await self._let_go(self._handing_over)
                if self._clock.monotonic() < self._resting_until or not await self._held():
                    self._refusals = 0
                    await self._clock.wait(self._wake, self._standby_pause())
                    self._wake.clear()
                    continue
                await self._turn()
                self._refusals = 0
            except Fenced:
                self._step_down("fenced")
            except DulyError as error:
                self._refusals += 1
                level = logging.WARNING if self._refusals == 1 else logging.DEBUG
                log.log(level, "shard %s: %s; trying again", self.shard, error)
                await self._clock.sleep(min(self._refusals * RETRY, LAST_RETRY))

    async def _let_go(self, done: asyncio.Event) -> None:
        """Between two turns: what was being dispatched is committed first."""
        self._handing_over = None
        try:
            await self._settle()
            await self._release("handed over")
        finally:
            done.set()

    def _standby_pause(self) -> int:
        """µs between two looks at the term: more for whoever leads more, and at most a third of the term."""
        ttl = self._settings.term_ttl
        return min(ttl // 6 * (1 + self.reluctance), ttl // 3)

    async def _held(self) -> bool:
        """Take or renew the term when it is time; True while it is held and trusted."""
        asked_at = self._clock.monotonic()
        if self.term is not None and asked_at < self._next_renewal:
            return True
        if self.term is not None and asked_at >= self._trusted_until:
            self._step_down("not renewed in time")
        if self._in_doubt:
            await self._store.hold(self.shard, self.owner, 0, release=True)  # the next fence refuses what comes late
            self._in_doubt = False
        ttl = self._settings.term_ttl
        term = await self._store.hold(self.shard, self.owner, ttl)
        if term.owner != self.owner:
            self._step_down(f"held by {term.owner}")
            return False
        self._trusted_until = asked_at + ttl - MARGIN
        self._next_renewal = asked_at + ttl // 3
        if self.term is None or self.term.fence != term.fence:
            self.term = term
            try:
                await self._take_over()
            except BaseException:  # whoever leads without knowing what is out lets runs overlap
                self._step_down("taking over failed")
                raise
            if self._in_doubt:  # a dispatch of before, which had to end first
                self._step_down("what became of a dispatch is unknown")
                return False
        self.term = term
        return self.leading

    def _step_down(self, why: str) -> None:
        if self.term is not None:
            log.info("shard %s: no longer leading: %s", self.shard, why)
            self._telemetry.fence(self.shard, 0)
        self.term = None
        self._agenda.clear()
        self._quiet.forget()
        self._deliveries.forget()
        self._window.reset()

    async def _take_over(self) -> None:
        """Read what is out, so that overlap and slots are known from the first dispatch on."""
        assert self.term is not None
        log.info("shard %s: leading as %s, fence %d", self.shard, self.owner, self.term.fence)
        self._telemetry.fence(self.shard, self.term.fence)
        await self._settle()  # a dispatch that commits after the reading would be out without being known
        self._agenda.clear()
        self._deliveries.begin()
        after: RunKey | None = None
        while True:
            page = await self._store.active(self.shard, after, PAGE)
            self._agenda.take_over(page)
            if len(page) < PAGE:
                break
            after = page[-1][0].key
        self._window.reset()
        self._next_recovery = 0

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
            await self._recover(now)
            await self._deliveries.forget_silent()
            await self._quiet.look(now, self._deliveries.heard, self._deliveries.committing)
        await self._decide_overlaps(now)
        while len(self._in_flight) < IN_FLIGHT:
            placements = self._agenda.pick(now, self._settings.lead, MAX_ASSIGN)
            if not placements:
                break
            self._window.picked(placement.run.key for placement in placements)
            self._start_dispatch(placements, now)
        if self._in_flight and len(self._in_flight) >= IN_FLIGHT:
            await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
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
            self._window.next_reading = after
        if step < 0:
            self._unclear_until = after + 2 * self._settings.worker_ttl
            self._agenda.replan()
        return now

    def _pause(self, now: int, monotonic: int) -> int:
        """µs until there is something to do without being woken."""
        until = min(self._window.next_reading, self._next_recovery, self._next_renewal) - monotonic
        next_wake = self._agenda.next_wake(self._settings.lead)
        if next_wake is not None:
            until = min(until, next_wake - now)
        return max(0, until)

    async def _refill(self, page: Page, now: int) -> None:
        term = self.term
        await self._window.read(
            page, now, lambda: self.term is not None and term is not None and self.term.fence == term.fence
        )
        self._telemetry.agenda(self.shard, len(self._agenda))
        self._wake.set()

    # -- dispatching ----------------------------------------------------------------------------------------

    def _start_dispatch(self, placements: list[Placement], now: int) -> None:
        task = self.spawn(self._try_dispatch(placements, now), "dispatch")
        self._in_flight.add(task)
        task.add_done_callback(self._dispatched)

    def _dispatched(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._wake.set()

    async def _try_dispatch(self, placements: list[Placement], now: int) -> None:
        try:
            await self._dispatch(placements, now)
        except Fenced:
            self._step_down("fenced")
        except DulyError as error:
            log.warning("shard %s: a dispatch of %d runs: %s", self.shard, len(placements), error)

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
        committing = [(placement.run.key, placement.run.attempt + 1) for placement in given]
        self._deliveries.committing.update(committing)
        try:
            losers = set(await self._apply(transitions))
        except OutcomeUnknown:
            self._in_doubt = True
            self._step_down("what became of a dispatch is unknown")  # taking over again reads what is out
            raise
        except BaseException:
            for placement in given:  # nothing was written; the refill brings back what waits
                self._agenda.ended(placement.run.key, placement.run.attempt + 1)
            raise
        finally:
            self._deliveries.committing.difference_update(committing)
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
        self._agenda.add([pair for pair in opened if self._is_near(pair[0], now)], now)
        for worker, batch in batches.items():
            await self._assign(worker, batch, now)
        self._telemetry.runs_dispatched(sent)
        self._committed("run.finished", ended, now)

    def _is_near(self, run: Run, now: int) -> bool:
        return run.state == RunState.WAITING and run.due_at <= now + self._settings.window

    async def _apply(self, transitions: Sequence[Transition]) -> list[int]:
        if not transitions:
            return []
        if self.term is None or not self.leading:
            raise Fenced("the term ran out before the commit")
        try:
            return await self._store.apply(transitions, shard=self.shard, fence=self.term.fence)
        except Fenced:
            self._step_down("fenced")
            raise

    async def _assign(self, worker: WorkerId, batch: list[Assignment], now: int) -> None:
        if self.term is None:
            return
        number = self._numbers.get(worker, 0) + 1
        self._numbers[worker] = number
        message = Assign(
            shard=self.shard,
            fence=self.term.fence,
            number=number,
            batch=tuple(batch),
            now=now,
            sent=self._clock.monotonic(),
        )
        await self._broker.publish(inbox(worker), message)

    # -- overlap and recovery -------------------------------------------------------------------------------

    async def _decide_overlaps(self, now: int) -> None:
        """Runs that are due while their job's previous run is out: skipped, kept waiting, or it is cancelled."""
        for run, job, out in list(self._agenda.overlapped(now)):
            known = [each for each in out if each[:2] not in self._deliveries.committing]
            if out and len(known) == len(out) and not await self._quiet.free_ended(out):
                continue  # word of the end was lost: the run is ready
            outcome = step(run, job, Overlapped(), now)
            if isinstance(outcome, Transition):
                self._agenda.forget(run.key)
                if not await self._apply([outcome]):
                    self._telemetry.runs_ended([outcome.run])
                    self._committed("run.finished", [(outcome.run, job)], now)
                    self._agenda.add([(opened, job) for opened in outcome.opened if self._is_near(opened, now)], now)
            elif job.overlap == "cancel_running":
                for key, attempt, worker in out:
                    await self._cancel(key, attempt, worker, now)

    async def _cancel(self, key: RunKey, attempt: int, worker: WorkerId, now: int) -> None:
        if (key, attempt) in self._deliveries.committing:
            await self._settle()
        found = (await self._store.load([key]))[0]
        if found is None or not found[0].state.active:
            self._agenda.ended(key, attempt)
            return
        reason = "overlap: the next run is due"
        outcome = step(found[0], found[1], CancelAsked(reason), now)
        if isinstance(outcome, Transition):
            await self._apply([outcome])
        await self._broker.publish(inbox(worker), Cancel(key=key, attempt=attempt, reason=reason))

    async def _recover(self, now: int) -> None:
        """Runs whose worker's lease has ended become new attempts, or what their job says."""
        while True:
            page = await self._store.expired(self.shard, MAX_ASSIGN)
            if not page:
                return
            transitions: list[Transition] = []
            pairs: list[tuple[Run, Job]] = []
            for run, job, worker in page:
                lease_until = now if worker is None else worker.lease_until
                if self._clock.monotonic() < self._unclear_until:
                    lease_until = max(lease_until, run.due_at + 1)  # it may have begun, by the clock as it was
                event = WorkerLost(attempt=run.attempt, worker=run.worker, lease_until=lease_until)
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

    async def _carry_out(self, transitions: list[Transition], pairs: list[tuple[Run, Job]], now: int) -> None:
        """Apply what recovery decided, and take into the agenda what waits again."""
        losers = set(await self._apply(transitions))
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
            opened = [transition.run, *transition.opened]
            self._agenda.add([(each, job) for each in opened if self._is_near(each, now)], now)

    async def _not_there(self, worker: WorkerId, attempts: list[tuple[RunKey, int]], now: int) -> None:
        """What the store has at this worker waits again, or is lost as its job says; the rest is not out any more."""
        found = await self._store.load([key for key, _ in attempts])
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
                self._agenda.add([pair for pair in message.runs if self._is_near(pair[0], now)], now)
            case Ended(shard=self.shard):
                for key, attempt in message.keys:
                    self._agenda.ended(key, attempt)
                self._agenda.offer(message.worker, message.capacity)
                self._agenda.add([pair for pair in message.opened if self._is_near(pair[0], now)], now)
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
            await self._not_there(written.id, overdue, now)
        stale = await self._deliveries.stale(written.id, message.held)
        self._wake.set()
        # The worker counts the lease from the moment it asked, so it is told how long that is: the clock may have
        # been set between the two readings.
        lease_until = now + written.lease_until - written.beat_at
        return BeatAnswer(shard=self.shard, now=now, lease_until=lease_until, stale=stale)
