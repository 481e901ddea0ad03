"""What to dispatch next, and to whom: the scheduler's memory of the near future. Pure and bounded.

    add ──▶ future (heap by due_at) ──within the lead──▶ ready (by group, priority, deadline) ──pick──▶ placement
                                                            │  the job's previous run is out
                                                            └──▶ held ──it ended──▶ ready
                                                                   └──due──▶ overlapped (the policy decides)

Urgency is priority (9 first), then the earliest deadline (due_at + max_lateness). Ageing: each full
`AGEING` that a run is overdue counts as one step of priority, so that nothing waits for ever.
Runs are grouped by what they need of a worker (lane, labels, function), so that one group without capacity
holds up no other. Leaving an entry is lazy: a heap may hold entries that `_known` no longer does.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from duly.core.instants import MILLISECOND, SECOND
from duly.core.model import FunctionTask, Job, JobId, Lane, LateCause, Run, RunKey, Worker, WorkerId, lane
from duly.core.steps import ClockSteps

AGEING: Final = 30 * SECOND
BOUND: Final = 10_000  # runs in memory; the rest waits in the store for the next refill
TOLD_LATE: Final = 100 * MILLISECOND  # overdue by this when the agenda first hears of it: caught up
OVERLAP_GRACE: Final = 50 * MILLISECOND  # the end of the previous run may still be on its way to the store
WAITED: Final = 10 * MILLISECOND  # overdue by this when it is placed: there was no capacity

Group = tuple[Lane, tuple[tuple[str, str], ...], str]


class Entry(msgspec.Struct, eq=False, gc=False):
    """A waiting run in memory."""

    run: Run
    job: Job
    group: Group
    deadline: int
    cause: LateCause | None = None


class Placement(msgspec.Struct, frozen=True, gc=False):
    """A run for a worker, and what kept it past its time, if anything did."""

    run: Run
    job: Job
    worker: WorkerId
    lane: Lane
    held_by: LateCause | None


class Seat(msgspec.Struct, eq=False):
    """A worker as the scheduler counts it: what it offers and what is out there."""

    worker: Worker
    capacity: dict[Lane, int]
    out: dict[Lane, int]

    def room(self, wanted: Lane) -> int:
        """Attempts of this lane that it would still take."""
        return self.capacity.get(wanted, 0) - self.out.get(wanted, 0)


_Ready = dict[int, list[tuple[int, int, Entry]]]  # of one group: a heap by deadline for each priority


class Agenda:
    """The window of one shard's future, the fleet as it counts here, and the runs that are out."""

    def __init__(self, bound: int = BOUND) -> None:
        self.bound = bound
        self._known: dict[RunKey, Entry] = {}
        self._future: list[tuple[int, int, Entry]] = []
        self._ready: dict[Group, _Ready] = {}
        self._held: dict[JobId, dict[RunKey, Entry]] = {}
        self._held_due: list[tuple[int, int, Entry]] = []
        self._count = 0  # breaks ties in heaps by order of arrival
        self._horizon = 0  # what is due by then is ready
        self._out: dict[RunKey, tuple[int, WorkerId, Lane]] = {}
        self._out_of_job: dict[JobId, set[RunKey]] = {}
        self.seats: dict[WorkerId, Seat] = {}
        self.steps = ClockSteps()  # of the shard's clock; whoever reads it tells

    def __len__(self) -> int:
        return len(self._known)

    @property
    def room(self) -> int:
        """Runs that still fit."""
        return self.bound - len(self._known)

    # -- runs -----------------------------------------------------------------------------------------------

    def add(self, pairs: Iterable[tuple[Run, Job]], now: int) -> int:
        """Take waiting runs into the window, passing over what is known, out or beyond the bound; returns how many."""
        taken = 0
        for run, job in pairs:
            key = (run.job_id, run.scheduled_at)
            known = self._known.get(key)
            if known is not None:
                if known.run == run and known.job.version == job.version:
                    continue
                self.forget(key)
            elif key in self._out or len(self._known) >= self.bound:
                continue
            cause: LateCause | None = None
            if run.due_at < now - TOLD_LATE and not run.manual and run.attempt == 0:
                cause = "clock" if self.steps.jumped_over(run.due_at) else "catch_up"
            entry = Entry(run, job, _group(job), run.due_at + job.max_lateness, cause)
            self._known[key] = entry
            self._plan(entry)
            taken += 1
        return taken

    def _plan(self, entry: Entry) -> None:
        """Ready if it is within the lead; one that was held may not be any more, if the clock went back."""
        if entry.run.due_at <= self._horizon:
            self._make_ready(entry)
        else:
            self._count += 1
            heapq.heappush(self._future, (entry.run.due_at, self._count, entry))

    def forget(self, key: RunKey) -> None:
        """A run that is not waiting any more, or not as it was."""
        entry = self._known.pop(key, None)
        if entry is not None:
            held = self._held.get(key[0])
            if held is not None:
                held.pop(key, None)
                if not held:
                    del self._held[key[0]]

    def forget_job(self, job_id: JobId) -> None:
        """The job was changed: none of its waiting runs is to be trusted. Scans the window; changes are rare."""
        for key in [key for key in self._known if key[0] == job_id]:
            self.forget(key)

    def clear(self) -> None:
        """The term was lost: nothing here is this scheduler's any more. Seats stay, for when it comes back."""
        self._known.clear()
        self._future.clear()
        self._ready.clear()
        self._held.clear()
        self._held_due.clear()
        self._out.clear()
        self._out_of_job.clear()
        for seat in self.seats.values():
            seat.out.clear()

    def next_wake(self, lead: int) -> int | None:
        """The instant at which there is something to do next: a run enters its lead, or a held one is due."""
        while self._future and not self._is_current(self._future[0][2]):
            heapq.heappop(self._future)
        while self._held_due and not self._is_held(self._held_due[0][2]):
            heapq.heappop(self._held_due)
        instants = []
        if self._future:
            instants.append(self._future[0][0] - lead)
        if self._held_due:
            instants.append(self._held_due[0][0])
        return min(instants, default=None)

    def _is_current(self, entry: Entry) -> bool:
        return self._known.get((entry.run.job_id, entry.run.scheduled_at)) is entry

    def _is_held(self, entry: Entry) -> bool:
        return entry.run.key in self._held.get(entry.run.job_id, ()) and self._is_current(entry)

    # -- picking --------------------------------------------------------------------------------------------

    def pick(self, now: int, lead: int, limit: int) -> list[Placement]:
        """The most urgent runs within the lead that a worker has room for; they count as out from here on.

        A run whose job has another run out is held instead, unless its job allows overlap.
        """
        self._advance(now + lead)
        placements: list[Placement] = []
        seats = {group: self._seats_for(group) for group in self._ready}
        while len(placements) < limit:
            best = self._most_urgent(seats, now)
            if best is None:
                break
            group, ready, priority, several = best
            # A group and priority without a rival goes on until its seats or its runs are used up.
            most = 1 if several else limit - len(placements)
            self._place(group, ready, priority, seats[group], now, most, placements)
        return placements

    def _place(
        self, group: Group, ready: _Ready, priority: int, seats: list[Seat], now: int, most: int, into: list[Placement]
    ) -> None:
        """Place up to `most` runs of one group and priority, most urgent first."""
        heap = ready[priority]
        wanted, known, out_of_job = group[0], self._known, self._out_of_job
        placed = 0
        seat = seats[0]  # there is one: the group has room
        room = seat.room(wanted)
        while heap and placed < most:
            entry = heap[0][2]
            run, job = entry.run, entry.job
            key = (run.job_id, run.scheduled_at)
            if known.get(key) is not entry:
                heapq.heappop(heap)
                continue
            if len(seats) > 1:
                seat = max(seats, key=lambda each: each.room(wanted))
                room = seat.room(wanted)
            if room <= 0:
                break
            heapq.heappop(heap)
            if job.overlap != "allow" and run.job_id in out_of_job:
                self._hold(entry)
                continue
            cause = entry.cause
            if cause is None and now > run.due_at + WAITED:
                cause = self._kept_by(run)
            del known[key]
            self._out[key] = (run.attempt + 1, seat.worker.id, wanted)
            others = out_of_job.get(run.job_id)
            if others is None:
                out_of_job[run.job_id] = {key}
            else:
                others.add(key)
            seat.out[wanted] = seat.out.get(wanted, 0) + 1
            room -= 1
            into.append(Placement(run, job, seat.worker.id, wanted, cause))
            placed += 1
        if not heap:
            del ready[priority]
            if not ready:
                del self._ready[group]

    def _kept_by(self, run: Run) -> LateCause | None:
        """What has made a run late that was here in time."""
        if self.steps.jumped_over(run.due_at):
            return "clock"
        return None if run.held_by else "no_capacity"

    def replan(self) -> None:
        """The clock went back: what was within the lead may be far off again."""
        self._ready.clear()
        self._horizon = 0
        self._future = []
        for key, entry in self._known.items():
            if key not in self._held.get(key[0], ()):
                self._count += 1
                self._future.append((entry.run.due_at, self._count, entry))
        heapq.heapify(self._future)

    def _advance(self, horizon: int) -> None:
        """Move what has come within the lead from future to ready."""
        self._horizon = horizon
        future = self._future
        while future and future[0][0] <= horizon:
            entry = heapq.heappop(future)[2]
            if self._is_current(entry):
                self._make_ready(entry)

    def _make_ready(self, entry: Entry) -> None:
        heaps = self._ready.get(entry.group)
        if heaps is None:
            heaps = self._ready[entry.group] = {}
        self._count += 1
        heapq.heappush(heaps.setdefault(entry.run.priority, []), (entry.deadline, self._count, entry))

    def _most_urgent(self, seats: dict[Group, list[Seat]], now: int) -> tuple[Group, _Ready, int, bool] | None:
        """The group and priority whose head goes first, of those that a worker has room for; True: it has rivals."""
        best: tuple[Group, _Ready, int] | None = None
        best_rank: tuple[int, int] = (0, 0)
        rivals = 0
        for group in list(self._ready):
            ready = self._ready[group]
            if not any(seat.room(group[0]) > 0 for seat in seats[group]):
                continue
            for priority in list(ready):
                heap = ready[priority]
                while heap and not self._is_current(heap[0][2]):
                    heapq.heappop(heap)
                if not heap:
                    del ready[priority]
                    continue
                head = heap[0][2]
                aged = priority + max(0, now - head.run.due_at) // AGEING
                rank = (-aged, head.deadline)
                rivals += 1
                if best is None or rank < best_rank:
                    best, best_rank = (group, ready, priority), rank
            if not ready:
                del self._ready[group]
        return None if best is None else (*best, rivals > 1)

    def _seats_for(self, group: Group) -> list[Seat]:
        """Workers that may take a group: ready, with its labels, and with its function where any has it."""
        _, requires, function = group
        fitting = [
            seat
            for seat in self.seats.values()
            if seat.worker.state == "ready" and all(seat.worker.labels.get(key) == value for key, value in requires)
        ]
        if not function:
            return fitting
        knowing = [seat for seat in fitting if seat.worker.functions is None or function in seat.worker.functions]
        return knowing or fitting

    # -- overlap --------------------------------------------------------------------------------------------

    def _hold(self, entry: Entry) -> None:
        entry.cause = "clock" if self.steps.jumped_over(entry.run.due_at) else "overlap"
        self._held.setdefault(entry.run.job_id, {})[entry.run.key] = entry
        self._count += 1
        decide_at = entry.run.due_at + min(entry.job.max_lateness, OVERLAP_GRACE)
        heapq.heappush(self._held_due, (decide_at, self._count, entry))

    def overlapped(self, now: int) -> Iterator[tuple[Run, Job, list[tuple[RunKey, int, WorkerId]]]]:
        """Held runs whose instant (and a grace) has come, each once, with the attempts of their job that are out."""
        while self._held_due and self._held_due[0][0] <= now:
            entry = heapq.heappop(self._held_due)[2]
            if self._is_held(entry):
                out = [
                    (key, self._out[key][0], self._out[key][1])
                    for key in sorted(self._out_of_job.get(entry.run.job_id, ()))
                ]
                yield entry.run, entry.job, out

    # -- what is out ----------------------------------------------------------------------------------------

    def take_over(self, runs: Iterable[tuple[Run, Job]]) -> None:
        """Attempts that were out when this scheduler took the term."""
        for run, job in runs:
            self.forget(run.key)
            if run.key not in self._out:
                self._take_out(run.key, run.attempt, run.worker, lane(job.task))

    def _take_out(self, key: RunKey, attempt: int, worker: WorkerId, wanted: Lane) -> None:
        self._out[key] = (attempt, worker, wanted)
        self._out_of_job.setdefault(key[0], set()).add(key)
        seat = self.seats.get(worker)
        if seat is not None:
            seat.out[wanted] = seat.out.get(wanted, 0) + 1

    def ended(self, key: RunKey, attempt: int) -> bool:
        """An attempt is not out any more: its slot is free and what its job held goes on. False if unknown."""
        known = self._out.get(key)
        if known is None or known[0] > attempt:
            return False
        del self._out[key]
        _, worker, wanted = known
        seat = self.seats.get(worker)
        if seat is not None:
            seat.out[wanted] = max(0, seat.out.get(wanted, 0) - 1)
        others = self._out_of_job[key[0]]
        others.discard(key)
        if not others:
            del self._out_of_job[key[0]]
            held = self._held.pop(key[0], None)
            if held is not None:
                for entry in held.values():
                    self._plan(entry)
        return True

    def is_out(self, key: RunKey, attempt: int) -> bool:
        """True while this attempt counts as out."""
        known = self._out.get(key)
        return known is not None and known[0] == attempt

    def out_at(self, worker: WorkerId) -> list[tuple[RunKey, int]]:
        """The attempts that count as out at a worker."""
        return [(key, attempt) for key, (attempt, holder, _) in self._out.items() if holder == worker]

    def orphans(self) -> list[tuple[RunKey, int, WorkerId]]:
        """Attempts that count as out at workers that have no seat here."""
        seats = self.seats
        return [(key, attempt, holder) for key, (attempt, holder, _) in self._out.items() if holder not in seats]

    # -- fleet ----------------------------------------------------------------------------------------------

    def seat(self, worker: Worker, capacity: dict[Lane, int]) -> None:
        """A worker has told of itself."""
        known = self.seats.get(worker.id)
        if known is None:
            out: dict[Lane, int] = {}
            for _, holder, wanted in self._out.values():
                if holder == worker.id:
                    out[wanted] = out.get(wanted, 0) + 1
            self.seats[worker.id] = Seat(worker, dict(capacity), out)
        else:
            known.worker = worker
            known.capacity = dict(capacity)

    def offer(self, worker: WorkerId, capacity: dict[Lane, int]) -> None:
        """A report told of a worker's capacity."""
        seat = self.seats.get(worker)
        if seat is not None and capacity:
            seat.capacity = dict(capacity)

    def unseat(self, worker: WorkerId) -> None:
        """A worker is gone; what was out there is told by the store."""
        self.seats.pop(worker, None)


def _group(job: Job) -> Group:
    task = job.task
    function = task.name if isinstance(task, FunctionTask) else ""
    requires = tuple(sorted(job.requires.items())) if job.requires else ()
    return (lane(task), requires, function)
