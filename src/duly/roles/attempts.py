"""The attempts that a worker holds, and what their runners tell of them turned into reports.

    take ──▶ held by run key ──▶ succeeded · failed · withdrawn · given_back ──▶ Reporter of the shard

An attempt that was dropped (stale, doubled, its lease over) is told of by nobody any more: whatever its runner says
then finds it no longer held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterator, Sequence
from heapq import heappop, heappush
from typing import Any, Final

import msgspec

from duly.core.instants import SECOND, format_duration
from duly.core.messages import Assign, Assignment, Failed, Notice, Released, Started, Stopped, Succeeded
from duly.core.model import NULL, Failure, FunctionTask, Lane, LateCause, Output, RunKey, RunState, WorkerId, lane
from duly.ports import Clock
from duly.roles.begun import BegunFromLists
from duly.roles.offset import Offset
from duly.roles.reporter import Begun, Reporter
from duly.tasks.attempt import Ending, Held, Runner

ISOLATION: Final = "process"
LATE: Final = 2 * SECOND  # an Assign under way for longer: what `Deliveries` waits for, less what a beat may take
DROPPED: Final = 10_000  # of a shard that are remembered
HELD_BACK: Final = 10_000  # µs past due from which a late start was for want of a slot


class Shard:
    """What the worker knows of one shard."""

    def __init__(self, name: str, worker: WorkerId, reporter: Reporter, offset: Offset) -> None:
        self.name = name
        self.id = worker
        self.reporter = reporter
        self.offset = offset
        self.trusted_until: int | None = None  # monotonic; None before the first lease
        self.fence = 0
        self.seen = 0  # number of the last Assign
        self.recent: dict[tuple[int, int], None] = {}  # (fence, number) of Assigns taken, to ignore doubles
        self.fastest = (0, 0)  # fence, and the least that an Assign under it took
        self.held: dict[Lane, int] = {"process": 0, "async": 0}
        self.listings = 0  # lists of attempts that came in answers to beats
        self.begun_listed = BegunFromLists()
        self.watching: list[set[tuple[RunKey, int]]] = []  # each takes the attempts that end from now on
        self.dropped: dict[tuple[RunKey, int], bool] = {}  # attempts ended without a word → whether they had begun

    def is_double(self, message: Assign) -> bool:
        """It was taken before. Notes it, if not."""
        mark = (message.fence, message.number)
        if mark in self.recent:
            return True
        self.recent[mark] = None
        if len(self.recent) > 1_024:
            del self.recent[next(iter(self.recent))]
        if message.fence > self.fence:
            self.fence, self.seen = message.fence, message.number
        elif message.fence == self.fence:
            self.seen = max(self.seen, message.number)
        return False

    def is_late(self, message: Assign, arrived: int) -> bool:
        """It was under way for much longer than another one of its scheduler. The first one tells nothing."""
        if not message.sent:
            return False
        took = arrived - message.sent  # by clocks that begin anywhere
        fence, fastest = self.fastest
        if message.fence > fence or (message.fence == fence and took < fastest):
            self.fastest = (message.fence, took)
            return False
        return message.fence == fence and took - fastest > LATE


class Attempts:
    """The table of held attempts; the `Sink` of every runner."""

    def __init__(self, clock: Clock, notify: Callable[[Notice], None]) -> None:
        self.shards: dict[str, Shard] = {}
        self.counts = {"assigned": 0, "doubled": 0, "succeeded": 0, "failed": 0, "given_back": 0, "late": 0}
        self._clock = clock
        self._notify = notify
        self._held: dict[RunKey, Held] = {}
        self._deadlines: list[tuple[int, int, Held]] = []
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._order = 0
        self._empty = asyncio.Event()

    def __iter__(self) -> Iterator[Held]:
        return iter(list(self._held.values()))

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: RunKey, attempt: int) -> Held | None:
        """The attempt, if it is held."""
        held = self._held.get(key)
        return held if held is not None and held.attempt == attempt else None

    def has(self, held: Held) -> bool:
        """It is held still."""
        return self._held.get(held.key) is held

    def of(self, shard: Shard) -> list[Held]:
        """Those of one shard."""
        return [held for held in self._held.values() if held.shard == shard.name]

    async def emptied(self, within: int) -> None:
        """Returns when nothing is held any more, or after `within` µs."""
        self._empty.clear()
        if self._held:
            await self._clock.wait(self._empty, within)

    def close(self) -> None:
        """Forget all: nothing more is told."""
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
            self._deadline_timer = None
        for held in self:
            held.ending = "quiet"
        self._held.clear()

    def take(self, shard: Shard, message: Assign) -> dict[str, list[Held]]:
        """The new attempts of a message, by kind of task; those that are held already or older are left out."""
        clock = self._clock
        arrived = clock.monotonic()
        if message.now is not None:
            shard.offset.hear(arrived, message.now)
        if shard.is_late(message, arrived):
            self.counts["late"] += len(message.batch)
            return {}  # the beats that the scheduler has looked at meanwhile were without it: it counts as not here
        offset = shard.offset.value
        if offset is None:  # not answered yet: by the message itself nothing can start early, whatever this clock says
            offset = (clock.wall() if message.now is None else message.now) - arrived
        if shard.trusted_until is not None and arrived > shard.trusted_until:
            return {}  # its lease may be over, so that the shard takes for granted that nothing more begins here
        held_by_key, counts, name = self._held, shard.held, shard.name
        from_lists = shard.begun_listed or None
        batches: dict[str, list[Held]] = {}
        for assignment in message.batch:
            run, job = assignment.run, assignment.job
            key = (run.job_id, run.scheduled_at)
            old = held_by_key.get(key)
            if old is not None:
                if old.attempt >= run.attempt:
                    self.counts["doubled"] += 1
                    continue
                self.end_quietly(old)
            if run.worker != shard.id:
                continue  # meant for what this worker was before it was lost
            if from_lists is not None and from_lists.has(run):
                self.counts["doubled"] += 1
                continue
            if from_lists is not None and from_lists.may_have(message, run):
                self.counts["late"] += 1  # it is in the next list, or counts as not here, if it has not been begun
                continue
            task = job.task
            wanted = lane(task)
            held = Held(run, job, key, name, wanted, offset, run.due_at - offset, arrived)
            held_by_key[key] = held
            counts[wanted] += 1
            kind = "function" if isinstance(task, FunctionTask) else task.__struct_config__.tag
            batches.setdefault(str(kind), []).append(held)
        self.counts["assigned"] += sum(map(len, batches.values()))
        return batches

    def end_quietly(self, held: Held) -> None:
        """Kill it and say nothing: the store has given it to another, or may."""
        if self._drop(held):
            dropped = self.shards[held.shard].dropped
            dropped[held.key, held.attempt] = bool(held.started)
            if len(dropped) > DROPPED:
                del dropped[next(iter(dropped))]
        held.ending = "quiet"
        runner_of(held).stop(held)

    def listed(
        self, shard: Shard, out: Sequence[Assignment], ended: Container[tuple[RunKey, int]]
    ) -> tuple[Assignment, ...]:
        """Of the attempts that the store has at this worker, and that a beat did not hold, those that are news here.

        `ended` are those that have ended since that beat was made: they came and went while it was under way. One that
        had begun here, or was dropped without a word, is not begun a second time but handed back: the store has not
        heard of its end from anybody.
        """
        fresh: list[Assignment] = []
        for assignment in out:
            run = assignment.run
            pair = (run.key, run.attempt)
            if run.worker != shard.id or pair in ended or self.get(*pair) is not None:
                continue
            begun = shard.dropped.get(pair)
            if begun is None and run.state == RunState.DISPATCHED:
                fresh.append(assignment)
                continue
            released = Released(
                attempt=run.attempt,
                worker=run.worker,
                reason="dropped",
                started=bool(begun) or run.state == RunState.RUNNING,
            )
            self.counts["given_back"] += 1
            shard.reporter.add(run.key, released)
        return tuple(fresh)

    def remember_listed(self, shard: Shard, begun: Sequence[Assignment]) -> None:
        """These were taken from a list: an Assign of them that comes later is a double, held still or ended."""
        for assignment in begun:
            shard.begun_listed.add(assignment.run)

    def _drop(self, held: Held) -> bool:
        """It is no longer held; False if it was not, so that nobody is told of it."""
        if self._held.get(held.key) is not held:
            return False
        del self._held[held.key]
        shard = self.shards[held.shard]
        shard.held[held.lane] -= 1
        for ended in shard.watching:
            ended.add((held.key, held.attempt))
        if not self._held:
            self._empty.set()
        return True

    # -- the Sink -------------------------------------------------------------------------------------------

    def started(self, held: Held, at: int) -> None:
        """Its code has begun and goes on."""
        held.started = at
        if held.ending == "quiet":
            return
        self._order += 1
        heappush(self._deadlines, (at + held.job.timeout, self._order, held))
        self._set_deadline()
        event = Started(
            attempt=held.attempt,
            worker=held.run.worker,
            started_at=at + held.offset,
            cause=_cause(held, at),
            isolation=ISOLATION,
        )
        self.shards[held.shard].reporter.add(held.key, Begun(held, event))

    def succeeded(
        self,
        held: Held,
        started: int,
        finished: int,
        result: bytes | None,
        *,
        exit_code: int | None = None,
        outputs: tuple[Output, ...] = (),
        logs: dict[str, str] | None = None,
    ) -> None:
        """It ended well."""
        if not self._drop(held):
            return
        self.counts["succeeded"] += 1
        offset = held.offset
        event = Succeeded(
            attempt=held.attempt,
            worker=held.run.worker,
            started_at=started + offset,
            finished_at=finished + offset,
            result=NULL if result is None else msgspec.Raw(result),
            exit_code=exit_code,
            outputs=outputs,
            logs=logs or {},
            cause=_cause(held, started),
            isolation=ISOLATION,
        )
        self.shards[held.shard].reporter.add(held.key, event)

    def failed(
        self,
        held: Held,
        finished: int,
        error: Failure,
        *,
        started: int | None = None,
        exit_code: int | None = None,
        outputs: tuple[Output, ...] = (),
        logs: dict[str, str] | None = None,
        retryable: bool = True,
        crashed: bool = False,
    ) -> None:
        """It ended badly; if that is because it was made to end, the reason for that is what counts."""
        if not self._drop(held):
            return
        ending, offset, worker = held.ending, held.offset, held.run.worker
        reporter = self.shards[held.shard].reporter
        started_at = None if started is None else started + offset
        if ending in ("cancel", "changed"):
            event = Stopped(
                attempt=held.attempt,
                worker=worker,
                finished_at=finished + offset,
                started_at=started_at,
                logs=logs or {},
                outputs=outputs,
            )
            reporter.add(held.key, event)
            return
        if ending == "drain":
            self.counts["given_back"] += 1
            reporter.add(held.key, Released(attempt=held.attempt, worker=worker, reason="drained", started=True))
            return
        if ending == "timeout":
            message = f"ran longer than its timeout of {format_duration(held.job.timeout)}"
            detail = error.detail or error.message
            error, crashed = Failure(kind="timeout", message=message, detail=detail), False
        self.counts["failed"] += 1
        failure = Failed(
            attempt=held.attempt,
            worker=worker,
            error=error,
            started_at=started_at,
            finished_at=finished + offset,
            exit_code=exit_code,
            outputs=outputs,
            logs=logs or {},
            retryable=retryable,
            crashed=crashed,
            cause=None if started is None else _cause(held, started),
            isolation=ISOLATION if started is not None else "",
        )
        reporter.add(held.key, failure)

    def withdrawn(self, held: Held) -> None:
        """It has not begun, and will not."""
        if held.ending == "cancel":
            if self._drop(held):
                now = self._clock.monotonic() + held.offset
                event = Stopped(attempt=held.attempt, worker=held.run.worker, finished_at=now)
                self.shards[held.shard].reporter.add(held.key, event)
        else:
            reasons: dict[Ending | None, str] = {"changed": "changed", "drain": "drained"}
            self.given_back(held, reasons.get(held.ending, "stopped"))

    def given_back(self, held: Held, reason: str) -> None:
        """It has not begun and another worker may have it."""
        if self._drop(held):
            self.counts["given_back"] += 1
            event = Released(attempt=held.attempt, worker=held.run.worker, reason=reason)
            self.shards[held.shard].reporter.add(held.key, event)

    def progress(self, held: Held, fraction: float, message: str) -> None:
        """Pass it on to whoever watches."""
        if self._held.get(held.key) is held:
            data: dict[str, Any] = {"fraction": fraction, "message": message, "attempt": held.attempt}
            raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in data.items()}
            notice = Notice(kind="run.progress", key=held.key, job_id=held.run.job_id, data=raw)
            self._notify(notice)

    # -- timeouts -------------------------------------------------------------------------------------------

    def _set_deadline(self) -> None:
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
            self._deadline_timer = None
        if self._deadlines:
            wait = max(0, self._deadlines[0][0] - self._clock.monotonic()) / SECOND
            self._deadline_timer = asyncio.get_running_loop().call_later(min(wait, 3_600.0), self._past_deadline)

    def _past_deadline(self) -> None:
        self._deadline_timer = None
        now = self._clock.monotonic()
        while self._deadlines and (
            self._deadlines[0][0] <= now or self._held.get(self._deadlines[0][2].key) is not self._deadlines[0][2]
        ):
            held = heappop(self._deadlines)[2]
            if self._held.get(held.key) is held and held.ending is None:
                held.ending = "timeout"
                runner_of(held).stop(held)
        self._set_deadline()


def runner_of(held: Held) -> Runner:
    """What runs it."""
    assert held.runner is not None
    return held.runner


def _cause(held: Held, started: int) -> LateCause | None:
    """What this worker knows of a late start. One that arrived late was late already."""
    late = started - held.due
    if late <= held.job.max_lateness:
        return None
    if held.cause is not None:
        return held.cause
    return "no_capacity" if started - max(held.due, held.arrived) > HELD_BACK else None
