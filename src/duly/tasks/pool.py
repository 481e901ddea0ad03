"""Seats of one kind and the runs that wait for one: who runs what, and what moves when a seat is stuck or dies.

A run is placed on a seat as soon as it comes, ahead of its time, because the seat keeps the instant. Every 5 ms,
while anything has yet to start, the pool looks: a seat that has been in one run for longer than that gives
back all that it has not started, and those go to other seats, or wait here for one, or (100 ms past due) back
to the scheduler. So queues are deep only where runs are short.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from heapq import heapify, heappush
from typing import Final, Protocol

from duly.core.model import Failure
from duly.tasks.attempt import Held, Sink, Tempo
from duly.tasks.executor import microseconds
from duly.tasks.seat import STUCK_AFTER, Seat
from duly.tasks.wire import TICKETS, Answer, Begun, Done, Outcomes, Progress, Retracted

LOOK_EVERY: Final = 0.005  # seconds
_BEGUN_AFTER: Final = 2_000  # µs in one run, after which its start is worth a word
_DUE_NOW: Final = 1_000  # µs: closer than this counts as due
_RESTART_AFTER: Final = 1.0  # seconds, when a seat did not come up
MAX_LEFT: Final = 16  # threads and coroutines left behind because they would not end
_DEEPEST: Final = TICKETS - 512  # runs on a seat at most (some tickets stay for runs left behind)


class Owner(Protocol):
    """What the pool's owner does with outcomes that are more than a result."""

    sink: Sink

    def ended(self, held: Held, done: Done) -> None:
        """A run ended with a fault, with log files or with outputs."""
        ...


class Pool:
    """Seats and the runs on them. `size` seats at most, `limit` of them in use at the moment."""

    def __init__(self, owner: Owner, make: Callable[[Pool], Seat], size: int, tempo: Tempo, grace: int) -> None:
        self.seats: list[Seat] = []
        self.left_behind = 0
        self.crashes = 0
        self._owner = owner
        self._sink = owner.sink
        self._make = make
        self._size = size
        self._lent = 0
        self._tempo = tempo
        self._grace = grace / 1_000_000
        self._unplaced: list[tuple[int, int, Held]] = []
        self._order = 0
        self._looks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._restarts: set[asyncio.TimerHandle] = set()
        self._closed = False

    def warm(self, count: int) -> None:
        """Bring seats up before they are needed."""
        while len(self.seats) < min(count, self._size):
            self.seats.append(self._make(self))

    # -- slots ----------------------------------------------------------------------------------------------

    def occupied(self, now: int) -> int:
        """Seats that have been in one run for longer than a moment."""
        return sum(1 for seat in self.seats if not seat.wide and seat.stuck(now))

    def lend(self) -> bool:
        """Give one slot to something else than a function; False if every seat is running something."""
        busy = sum(1 for seat in self.seats if not seat.parked and seat.busy_since())
        if busy + self._lent >= self._size:
            return False
        self._lent += 1
        usable = [seat for seat in self.seats if not seat.parked]
        if len(usable) > self._size - self._lent:
            idle = min((seat for seat in usable if not seat.busy_since()), key=lambda seat: seat.count)
            idle.parked = True
            if idle.count:
                idle.retract()
        return True

    def give_back(self) -> None:
        """A lent slot returns."""
        self._lent -= 1
        for seat in self.seats:
            if seat.parked:
                seat.parked = False
                break
        self._refill()

    # -- placing --------------------------------------------------------------------------------------------

    def stage(self, batch: Sequence[Held]) -> None:
        """Place runs, or keep those for which there is no seat now."""
        now = microseconds()
        seats = self._usable(now, len(batch))
        depth = self._tempo.depth()
        turn = 0
        for held in batch:
            due_now = held.due <= now + _DUE_NOW
            for _ in range(len(seats)):
                seat = seats[turn % len(seats)]
                turn += 1
                if seat.count < _DEEPEST and (seat.wide or seat.queued < depth or not due_now):
                    seat.put(held, due_now)
                    break
            else:
                self._keep(held)
        for seat in seats:
            seat.send()
        self._look_soon()

    def _usable(self, now: int, wanted: int) -> list[Seat]:
        """Seats that take runs now, the emptiest first; one more is made when all have something to do."""
        seats = [s for s in self.seats if not s.parked and not s.left and (s.wide or not s.stuck(now)) and s.free]
        seats.sort(key=lambda seat: (not seat.ready, seat.count))
        idle = sum(1 for seat in seats if not seat.count)
        if not self._closed and idle < wanted and len(self.seats) < self._size - self._lent:
            fresh = self._make(self)
            self.seats.append(fresh)
            seats.append(fresh)
        return seats

    def _keep(self, held: Held) -> None:
        self._order += 1
        heappush(self._unplaced, (held.due, self._order, held))

    def _refill(self) -> None:
        """Place what waits here, the earliest first."""
        if self._unplaced and not self._closed:
            waiting, self._unplaced = self._unplaced, []
            waiting.sort()
            self.stage([held for _, _, held in waiting])

    # -- looking --------------------------------------------------------------------------------------------

    def _look_soon(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look)

    def _look(self) -> None:
        self._timer = None
        now = microseconds()
        waiting = bool(self._unplaced)
        for seat in self.seats:
            if seat.wide:
                waiting = self._look_at_wide(seat, now) or waiting
            elif seat.count:
                waiting = self._look_at(seat, now) or waiting
        if self._unplaced:
            self._refill()
            self._return_late(now)
        if waiting:
            self._look_soon()

    def _look_at(self, seat: Seat, now: int) -> bool:
        """Tell of a run that goes on, and free those behind it. True while the seat has something to start."""
        since = seat.busy_since()
        held = seat.running()
        alone = held is not None and seat.count == 1
        if held is not None and not held.announced and now - since > _BEGUN_AFTER and since == seat.busy_since():
            self._begun(held, since)
        behind = seat.count - (held is not None)
        crowded = seat.queued > 2 * self._tempo.depth() + 8
        if behind and not seat.asked and ((since and now - since > STUCK_AFTER) or crowded):
            seat.retract()
        return not alone or (held is not None and not held.announced)

    def _look_at_wide(self, seat: Seat, now: int) -> bool:
        """Free runs that a full event loop has not begun in time. True while there may be some."""
        if seat.count <= seat.begun:
            return False
        self._looks += 1
        if self._looks % 10 == 0 and not seat.asked:  # seldom: it goes through every ticket
            late = [held for held in seat.out if held is not None and not held.started and held.too_late(now)]
            if late:
                seat.retract(late)
        return True

    def _begun(self, held: Held, at: int) -> None:
        if not held.announced:
            held.announced = True
            held.started = at
            held.place.begun += 1
            self._sink.started(held, at)

    def _return_late(self, now: int) -> None:
        late = [entry for entry in self._unplaced if entry[2].too_late(now)]
        if late:
            self._unplaced = [entry for entry in self._unplaced if not entry[2].too_late(now)]
            heapify(self._unplaced)
            for _, _, held in late:
                self._sink.given_back(held, "no_capacity")

    # -- answers --------------------------------------------------------------------------------------------

    def tell(self, seat: Seat, answer: Answer) -> None:
        """A seat says something."""
        if isinstance(answer, Outcomes):
            self._outcomes(seat, answer.items)
        elif isinstance(answer, Retracted):
            self._retracted(seat, answer)
        elif isinstance(answer, Begun):
            for ticket, at in answer.items:
                held = seat.out[ticket]
                if held is not None:
                    self._begun(held, at)
        elif isinstance(answer, Progress):
            held = seat.out[answer.ticket]
            if held is not None:
                self._sink.progress(held, answer.fraction, answer.message)
        elif answer.error:
            self._unfit(seat, answer.error)

    def _outcomes(self, seat: Seat, items: list[Done]) -> None:
        succeeded, take = self._sink.succeeded, seat.take
        total = 0
        for done in items:
            total += done.finished - done.started
            held = take(done.ticket)
            if held is None:
                continue  # it was left behind, and now ended after all
            if done.fault is None and not done.files and not done.output:
                succeeded(held, done.started, done.finished, done.result)
            else:
                self._owner.ended(held, done)
        self._tempo.finished(total, len(items))
        if self._unplaced:
            self._refill()

    def _retracted(self, seat: Seat, answer: Retracted) -> None:
        named, unless_started = seat.asked.pop(answer.serial, ((), False))
        for ticket in answer.tickets:
            held = seat.take(ticket)
            if held is None:
                continue
            if held.ending is not None:
                self._sink.withdrawn(held)
            elif seat.wide:
                self._sink.given_back(held, "no_capacity")
            else:
                self._keep(held)
        for held in named:
            if held.place is not seat or held.ending is None:
                continue
            if unless_started:
                held.ending = None  # it has begun, and only an unstarted one was to be stopped
            else:
                self._interrupt(seat, held)
        self._refill()
        self._return_late(microseconds())
        self._look_soon()

    def _unfit(self, seat: Seat, error: str) -> None:
        """A seat could not import the apps: its runs fail with the reason, which a retry may find gone."""
        now = microseconds()
        for ticket, held in enumerate(seat.out):
            if held is not None:
                seat.take(ticket)
                failure = Failure(kind="input", message=f"the worker's app cannot be imported: {error}")
                self._sink.failed(held, now, failure)

    def gone(self, seat: Seat, code: int) -> None:
        """A seat has died: what it had started fails, the rest moves, and another seat takes its place."""
        now = microseconds()
        since = seat.board.words[1]
        failure = died(code)
        for ticket, held in enumerate(seat.out):
            if held is None:
                continue
            started = bool(seat.board.flags[ticket])
            seat.take(ticket)
            if started:
                self.crashes += 1
                at = held.started or max(since, held.due)
                self._sink.failed(held, now, failure, started=at, crashed=held.ending is None)
            elif held.ending is not None:
                self._sink.withdrawn(held)
            else:
                self._keep(held)
        if seat in self.seats:
            self.seats.remove(seat)
        if self._closed:
            return
        if seat.ready:
            self.seats.append(self._make(self))
            self._refill()
        else:
            self._restart_later()
        self._look_soon()

    def _restart_later(self) -> None:
        def restart() -> None:
            self._restarts.discard(handle)
            if len(self.seats) < self._size:
                self.seats.append(self._make(self))
                self._refill()

        handle = asyncio.get_running_loop().call_later(_RESTART_AFTER, restart)
        self._restarts.add(handle)

    # -- stopping -------------------------------------------------------------------------------------------

    def stop(self, held: Held, *, unless_started: bool) -> None:
        """Withdraw a run that has not begun; end one that has, unless only an unstarted one was meant."""
        seat: Seat | None = held.place
        if seat is None:
            self._unplaced = [entry for entry in self._unplaced if entry[2] is not held]
            heapify(self._unplaced)
            self._sink.withdrawn(held)
        elif not held.announced:
            seat.retract([held], unless_started=unless_started)
        elif unless_started:
            held.ending = None
        else:
            self._interrupt(seat, held)

    def _interrupt(self, seat: Seat, held: Held) -> None:
        if not seat.killable and not seat.wide:
            self._leave(seat, held)
            return
        if held.ending == "quiet" and not seat.wide:
            seat.kill()  # another worker may have it already: no grace
            return
        seat.interrupt(held)
        asyncio.get_running_loop().call_later(self._grace, self._enforce, seat, held)

    def _enforce(self, seat: Seat, held: Held) -> None:
        """The grace is over."""
        if held.place is not seat:
            return
        if seat.killable and not seat.wide:
            seat.kill()
        else:
            self._leave(seat, held)

    def _leave(self, seat: Seat, held: Held) -> None:
        """It cannot be ended from outside: its record ends, its code may go on. Such leaks are counted, and
        beyond `MAX_LEFT` a stuck thread is not replaced, so that they cannot grow without bound."""
        self.left_behind += 1
        seat.forget(held)
        message = "the function did not end when asked, and a thread cannot be killed; it may still be running"
        self._sink.failed(
            held, microseconds(), Failure(kind="timeout", message=message), started=held.started or held.due
        )
        if not seat.wide:
            seat.left = True
            seat.retract()
            seat.abandon()
            self.seats.remove(seat)
            if self.left_behind <= MAX_LEFT:
                self.seats.append(self._make(self))

    async def close(self, grace: float) -> None:
        """End every seat; runs that are still here are told of as gone with their seat, or withdrawn."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for handle in self._restarts:
            handle.cancel()
        await asyncio.gather(*(seat.close(grace) for seat in list(self.seats)))
        waiting, self._unplaced = self._unplaced, []
        for _, _, held in waiting:
            self._sink.withdrawn(held)


def died(code: int) -> Failure:
    """How the death of a process reads."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return Failure(kind="signal", message=f"the process that ran it was killed by {name}")
    return Failure(kind="exit", message=f"the process that ran it exited with {code}")
