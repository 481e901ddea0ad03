"""Safeguards taken away one by one, from outside: the product has no switch for any of it.

Each is a context manager that patches a part of the product while worlds run. `hunt` lets it run on seed after seed
until the referee notices. One that is never noticed names an invariant that is missing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, Final
from unittest import mock

import msgspec
from msgspec.structs import replace

from duly.adapters import sqlite_apply, sqlite_bulk
from duly.adapters.sql import statements
from duly.adapters.sqlite_slots import Ownership
from duly.adapters.sqlite_store import SqliteStore
from duly.core import machine, policy
from duly.core.agenda import Agenda
from duly.core.errors import DulyError
from duly.core.machine import Dispatch, Transition, WorkerLost
from duly.core.messages import Succeeded
from duly.core.model import RunState
from duly.roles import dispatcher, jobs, recovery, reports, scheduler
from duly.roles.attempts import Shard
from duly.roles.deliveries import Deliveries
from duly.roles.jobs import JobDesk
from duly.roles.leadership import Leadership
from duly.roles.offset import Offset
from duly.roles.recovery import Recovery
from duly.roles.reports import ReportDesk
from duly.roles.worker import Worker
from simulation.network import CALLER
from simulation.world import simulate

Mutant = Callable[[], contextlib.AbstractContextManager[object]]

SQL: Final = statements("sqlite")
real_step: Final = machine.step


def _step_in(module: Any, wrapped: Callable[..., Any]) -> contextlib.AbstractContextManager[object]:
    return mock.patch.object(module, "step", wrapped)


def unfenced_writes() -> contextlib.AbstractContextManager[object]:
    """The store does not compare a scheduler's fence."""
    real = sqlite_apply.application
    return mock.patch.object(sqlite_apply, "application", lambda moves, now, fence: real(moves, now, None))


@contextlib.contextmanager
def fence_not_raised() -> Iterator[None]:
    """Whoever takes over a term gets the fence of the one before."""
    real = SqliteStore.hold

    async def hold(self: Any, shard: str, owner: str, ttl: int, *, release: bool = False) -> Any:
        before = next(iter(self._db.execute(SQL["term"])), None)
        term = await real(self, shard, owner, ttl, release=release)
        if before is None or term.fence == before[1]:
            return term
        self._db.execute(SQL["put_term"], (term.owner, before[1], term.expires_at))
        return replace(term, fence=before[1])

    with mock.patch.object(SqliteStore, "hold", hold):
        yield


@contextlib.contextmanager
def stale_map_accepted() -> Iterator[None]:
    """A shard takes every job that it is sent, whatever its slot map says."""
    with mock.patch.object(Ownership, "guarding", lambda self, job_ids, create: create):
        yield


def spent_forgotten() -> contextlib.AbstractContextManager[object]:
    """A job that is changed does not note what it has behind it."""

    async def noted(store: Any, before: Any, job: Any, now: int) -> Any:
        return job, None

    return mock.patch.object(jobs, "noted", noted)


def completion_ignores_attempt() -> contextlib.AbstractContextManager[object]:
    """A report counts for the current attempt, whichever it is of."""

    def step(run: Any, job: Any, event: Any, now: int, dice: float = 0.0) -> Any:
        if run.state.active:
            event = replace(event, attempt=run.attempt, worker=run.worker)
        return real_step(run, job, event, now, dice)

    return _step_in(reports, step)


def completion_by_worker_name() -> contextlib.AbstractContextManager[object]:
    """A report counts if it is from the worker that has the run, whichever attempt it is of."""

    def step(run: Any, job: Any, event: Any, now: int, dice: float = 0.0) -> Any:
        if run.state.active and event.worker == run.worker:
            event = replace(event, attempt=run.attempt)
        return real_step(run, job, event, now, dice)

    return _step_in(reports, step)


def attempt_not_raised() -> contextlib.AbstractContextManager[object]:
    """A second attempt has the number of the first."""

    def step(run: Any, job: Any, event: Any, now: int, dice: float = 0.0) -> Any:
        outcome = real_step(run, job, event, now, dice)
        if isinstance(event, Dispatch) and isinstance(outcome, Transition) and run.attempt:
            return replace(outcome, run=replace(outcome.run, attempt=run.attempt))
        return outcome

    return _step_in(dispatcher, step)


def next_run_outside_the_transaction() -> contextlib.AbstractContextManager[object]:
    """The next run is opened by a second commit after that of the dispatch."""
    real = Leadership.apply

    async def apply(self: Any, moves: Any) -> Any:
        losers = await real(self, [replace(move, opened=()) for move in moves])
        for index, move in enumerate(moves):
            if move.opened and index not in losers:
                run = move.run
                with contextlib.suppress(DulyError):
                    await real(self, [Transition(run.state, run.attempt, run.worker, run, move.opened)])
        return losers

    return mock.patch.object(Leadership, "apply", apply)


async def _nothing(*_: object) -> None:
    return None


def no_redelivery() -> contextlib.AbstractContextManager[object]:
    """What a worker does not hold is never looked for."""
    return mock.patch.object(Deliveries, "overdue", return_value=[])


def lost_workers_kept() -> contextlib.AbstractContextManager[object]:
    """Runs of lost workers stay with them."""
    return mock.patch.object(Recovery, "recover_lost", _nothing)


def at_most_once_retried() -> contextlib.AbstractContextManager[object]:
    """Lost attempts are tried again, whatever delivery the job asked for."""

    def step(run: Any, job: Any, event: Any, now: int, dice: float = 0.0) -> Any:
        if isinstance(event, WorkerLost):
            job = replace(job, delivery="at_least_once")
        return real_step(run, job, event, now, dice)

    return _step_in(recovery, step)


def misfire_fires_all() -> contextlib.AbstractContextManager[object]:
    """Every missed occurrence is run, whatever its job says."""
    return mock.patch.object(policy, "misfired", return_value=False)


def cancel_overridden() -> contextlib.AbstractContextManager[object]:
    """A success that comes after a cancel counts."""

    def step(run: Any, job: Any, event: Any, now: int, dice: float = 0.0) -> Any:
        outcome = real_step(run, job, event, now, dice)
        if isinstance(event, Succeeded) and isinstance(outcome, Transition):
            return replace(outcome, run=replace(outcome.run, state=RunState.SUCCEEDED))
        return outcome

    return _step_in(reports, step)


@contextlib.contextmanager
def cancel_not_compared() -> Iterator[None]:
    """A report that was decided before a cancel undoes it."""
    changed = {name: re.sub(r"and cancelled = (\?\d*)", r"and \1 in (0, 1)", text) for name, text in SQL.items()}
    sqlite_bulk.form.cache_clear()
    with mock.patch.object(sqlite_apply, "SQL", changed), mock.patch.object(sqlite_bulk, "SQL", changed):
        yield
    sqlite_bulk.form.cache_clear()


def term_by_node_clock() -> contextlib.AbstractContextManager[object]:
    """Whether a term has run out is judged by the asking node's clock."""
    real = SqliteStore.hold

    async def hold(self: Any, *args: Any, **kwargs: Any) -> Any:
        caller = CALLER.get()
        real_clock, self._clock = self._clock, caller or self._clock
        self._offset += self._clock.wall() - self._clock.monotonic() - self._offset
        try:
            return await real(self, *args, **kwargs)
        finally:
            self._clock = real_clock
            self._offset = real_clock.wall() - real_clock.monotonic()

    return mock.patch.object(SqliteStore, "hold", hold)


@contextlib.contextmanager
def worker_lease_cut_short() -> Iterator[None]:
    """Workers are taken for lost three seconds before their leases end."""
    real = SqliteStore._leased_now
    expired = SqliteStore.expired

    async def early(self: Any, *args: Any) -> Any:
        async def later(self: Any) -> int:
            return int(await real(self)) + 3_000_000

        with mock.patch.object(SqliteStore, "_leased_now", later):
            return await expired(self, *args)

    with mock.patch.object(SqliteStore, "expired", early):
        yield


def overlap_ignored() -> contextlib.AbstractContextManager[object]:
    """Runs of a job overlap, whatever it says."""
    real = Agenda.add

    def add(self: Any, pairs: Any, now: int) -> int:
        return real(self, [(run, replace(job, overlap="allow")) for run, job in pairs], now)

    return mock.patch.object(Agenda, "add", add)


def doubles_taken() -> contextlib.AbstractContextManager[object]:
    """A worker takes an Assign that comes twice for a new one."""
    return mock.patch.object(Shard, "is_double", return_value=False)


def offset_ahead() -> contextlib.AbstractContextManager[object]:
    """Workers think that it is later than it is."""
    real = Offset.add

    def add(self: Any, sent: int, received: int, now: int) -> None:
        real(self, sent, received, now)
        self.value += self.width + 50_000

    return mock.patch.object(Offset, "add", add)


def handed_out_early() -> contextlib.AbstractContextManager[object]:
    """Runs are dispatched as soon as they are known."""
    real = Agenda._advance
    return mock.patch.object(Agenda, "_advance", lambda self, horizon: real(self, horizon + 4_000_000))


def lease_not_watched() -> contextlib.AbstractContextManager[object]:
    """A worker that is not answered goes on with what it has."""
    return mock.patch.object(Worker, "_watch", _nothing)


def report_answered_unread() -> contextlib.AbstractContextManager[object]:
    """A servicer says ok to a report that it could not commit."""
    real = ReportDesk._commit

    async def commit(self: Any, changes: Any, shard: str) -> Any:
        with contextlib.suppress(DulyError):
            return await real(self, changes, shard)
        return set()

    return mock.patch.object(ReportDesk, "_commit", commit)


def retries_without_end() -> contextlib.AbstractContextManager[object]:
    """A failed run is tried again for ever."""
    return mock.patch.object(policy, "may_try_again", return_value=True)


def pause_forgotten() -> contextlib.AbstractContextManager[object]:
    """Pausing a job leaves its waiting runs where they are."""
    real = JobDesk._reopened

    async def reopened(self: Any, before: Any, job: Any, *rest: Any) -> Any:
        after, opened = await real(self, before, replace(job, state="active"), *rest)
        return replace(after, state=job.state), opened

    def step(run: Any, job: Any, event: Any, now: int, dice: float = 0.0) -> Any:
        return real_step(run, replace(job, state="active") if job.state == "paused" else job, event, now, dice)

    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(JobDesk, "_reopened", reopened))
    for module in (scheduler, dispatcher, recovery):
        stack.enter_context(_step_in(module, step))
    return stack


MUTANTS: Final[dict[str, Mutant]] = {
    mutant.__name__: mutant
    for mutant in (
        unfenced_writes,
        fence_not_raised,
        stale_map_accepted,
        spent_forgotten,
        completion_ignores_attempt,
        completion_by_worker_name,
        attempt_not_raised,
        next_run_outside_the_transaction,
        no_redelivery,
        lost_workers_kept,
        at_most_once_retried,
        misfire_fires_all,
        cancel_overridden,
        cancel_not_compared,
        term_by_node_clock,
        worker_lease_cut_short,
        overlap_ignored,
        doubles_taken,
        offset_ahead,
        handed_out_early,
        lease_not_watched,
        report_answered_unread,
        retries_without_end,
        pause_forgotten,
    )
}


class Catch(msgspec.Struct):
    """How a mutant was caught: after how many seeds, in a world of which shape, by which invariant."""

    mutant: str
    meaning: str
    seeds: int
    shape: str
    caught: tuple[int, str, str] | None


def hunt(name: str, seeds: int = 50) -> Catch:
    """Run worlds without that safeguard, seed after seed from 0, until one is judged broken."""
    mutant = MUTANTS[name]
    meaning = (mutant.__doc__ or "").strip()
    for seed in range(seeds):
        with mutant():
            outcome = simulate(seed)
        if outcome.violation is not None:
            return Catch(name, meaning, seed + 1, outcome.shape, outcome.violation)
    return Catch(name, meaning, seeds, "", None)
