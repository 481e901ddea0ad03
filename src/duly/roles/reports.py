"""Reports from workers: decided by the machine, committed with one compare-and-set each, answered word by word.

Nothing from a worker is trusted: runs and jobs are loaded from the store, and an event whose (attempt, worker)
is not the run's current pair changes nothing. A report may be repeated until it is answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from duly.core.machine import DUPLICATE, Refusal, Transition, step
from duly.core.messages import (
    AnyMessage,
    Ended,
    Report,
    ReportAnswer,
    Started,
    hints,
    reports,
)
from duly.core.model import Job, Run, RunKey, RunState
from duly.ports import Broker, Store, Subscription
from duly.roles.events import EventLog
from duly.telemetry import Telemetry

AT_ONCE: Final = 4  # reports of a shard decided and committed side by side
_WAITING: Final = RunState.WAITING
_SUCCEEDED: Final = RunState.SUCCEEDED
ROUNDS: Final = 4  # a transition that lost to another is decided anew this often


class _Decided(msgspec.Struct):
    """What one report made of a run: where it began, where it is now, and the words for its events."""

    job: Job
    first: Run
    run: Run
    transition: Transition | None = None
    indexes: tuple[int, ...] = ()


class ReportDesk:
    """The servicers' side of the subjects of reports."""

    def __init__(
        self, *, store: Store, broker: Broker, events: EventLog, telemetry: Telemetry, dice: Callable[[], float]
    ) -> None:
        self._store = store
        self._broker = broker
        self._events = events
        self._telemetry = telemetry
        self._dice = dice
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Take reports, several at once for each shard: a group of subscriptions shares its subject."""
        for shard in self._store.shards:
            for _ in range(AT_ONCE):
                subscription = await self._broker.subscribe(reports(shard), self._answer, group="servicers")
                self._subscriptions.append(subscription)

    async def stop(self) -> None:
        """Finish the reports in hand and take no more."""
        for subscription in self._subscriptions:
            await subscription.stop()
        self._subscriptions.clear()

    async def _answer(self, message: AnyMessage) -> AnyMessage | None:
        if not isinstance(message, Report):
            return None
        return await self.take(message)

    async def take(self, report: Report) -> ReportAnswer:
        """Decide and commit a report. Raises what the store raises: then the worker repeats it."""
        words = ["lost_race"] * len(report.events)
        open_indexes = list(range(len(report.events)))
        ended: list[tuple[Run, Job]] = []
        started: list[tuple[Run, Job]] = []
        opened: list[tuple[Run, Job]] = []
        now = await self._store.now(report.shard)
        for _ in range(ROUNDS):
            decided = await self._decide(report, open_indexes, words, now)
            changes = [entry for entry in decided.values() if entry.transition is not None]
            losers = await self._commit(changes, report.shard)
            open_indexes = []
            for position, entry in enumerate(changes):
                if position in losers:
                    open_indexes.extend(entry.indexes)
                    continue
                self._sort(entry, ended, started, opened)
            if not open_indexes:
                break
        for word in words:
            if word not in ("ok", "duplicate"):
                self._telemetry.report_refused(word)
        await self._tell(report, words, ended, started, opened, now)
        return ReportAnswer(words=tuple(words))

    async def _decide(self, report: Report, indexes: list[int], words: list[str], now: int) -> dict[RunKey, _Decided]:
        """Step every event in order; several events of one run become one transition from the first state."""
        keys = list(dict.fromkeys(report.events[index][0] for index in indexes))
        found = dict(zip(keys, await self._store.load(keys, shard=report.shard), strict=True))
        decided: dict[RunKey, _Decided] = {}
        dice = self._dice
        for index in indexes:
            key, event = report.events[index]
            entry = decided.get(key)
            if entry is None:
                pair = found[key]
                if pair is None:
                    words[index] = "unknown_run"
                    continue
                entry = decided[key] = _Decided(pair[1], pair[0], pair[0])
            outcome = step(entry.run, entry.job, event, now, dice())
            if isinstance(outcome, Refusal):
                words[index] = "duplicate" if outcome is DUPLICATE else outcome.code
                continue
            words[index] = "ok"
            entry.transition = outcome if entry.transition is None else _compose(entry.transition, outcome)
            entry.run = outcome.run
            entry.indexes += (index,)
        return decided

    async def _commit(self, changes: list[_Decided], shard: str) -> set[int]:
        if not changes:
            return set()
        transitions = [entry.transition for entry in changes if entry.transition]
        return set(await self._store.apply(transitions, shard=shard))

    def _sort(
        self,
        entry: _Decided,
        ended: list[tuple[Run, Job]],
        started: list[tuple[Run, Job]],
        opened: list[tuple[Run, Job]],
    ) -> None:
        run, job = entry.run, entry.job
        if entry.first.lateness is None and run.lateness is not None:
            started.append((run, job))
        if run.state >= _SUCCEEDED:
            ended.append((run, job))
        elif run.state == _WAITING:
            opened.append((run, job))
        if entry.transition is not None:
            opened.extend((following, job) for following in entry.transition.opened)

    async def _tell(
        self,
        report: Report,
        words: list[str],
        ended: list[tuple[Run, Job]],
        started: list[tuple[Run, Job]],
        opened: list[tuple[Run, Job]],
        now: int,
    ) -> None:
        """Tell the scheduler of freed slots and opened runs, and those who watch."""
        free = tuple(
            (key, event.attempt)
            for (key, event), word in zip(report.events, words, strict=True)
            if not isinstance(event, Started) and word != "lost_race"
        )
        if free or opened or report.capacity:
            await self._broker.publish(
                hints(report.shard),
                Ended(
                    shard=report.shard,
                    worker=report.worker,
                    keys=free,
                    capacity=report.capacity,
                    opened=tuple(opened),
                ),
            )
        if started:
            self._telemetry.runs_started(run for run, _ in started)
            self._events.committed("run.started", started, now)
            self._events.runs("run.started", [pair for pair in started if not pair[0].state.terminal], now)
        if ended:
            self._telemetry.runs_ended(run for run, _ in ended)
            self._events.runs("run.finished", ended, now)
            self._events.committed("run.finished", ended, now)
        retried = [pair for pair in opened if pair[0].attempt]
        if retried:
            self._telemetry.attempt_retried(len(retried))
            self._events.runs("run.retrying", retried, now)
            self._events.committed("run.retrying", retried, now)


def _compose(first: Transition, then: Transition) -> Transition:
    """Two steps of one run as one: compared with where the first began, ending where the second ends."""
    return Transition(
        first.was_state,
        first.was_attempt,
        first.was_worker,
        then.run,
        first.opened + then.opened,
        was_cancelled=first.was_cancelled,
        was_job=then.was_job,
    )
