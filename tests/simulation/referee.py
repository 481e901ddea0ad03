"""The referee: sees every effect on the store and every task that really runs, remembers, and judges.

It never asks the store for what it can remember itself, so a store that breaks its word is caught too. Invariants
are numbered as in the design notes; those above 30 were added because a mutant survived without them.

     1 at most one firing of (job, instant)       2 fences never fall, one holder each
     3 scheduler writes only by the holder        4 nothing is handed out or started before its time
     5 one terminal transition, final             6 a completion is that of the current attempt, by its worker
     7 every owed instant has a row               8 once healed, everything ends and schedules go on
     9 attempts rise by one and are bounded      11 an at-most-once run is started once, ever
    12 overlap holds, in the store's view        15 nothing succeeds after an acknowledged cancel
    16 what is quarantined or final is not handed out again     18 what was acknowledged is there
    21 no term and no worker's lease is taken while one that was granted runs
    31 an attempt is started once               32 a misfire becomes what its policy says
    33 paused and deleted jobs start nothing     34 a compare-and-set compares
    35 a worker stops before its lease ends      36 no process dies of its own code
    37 no job lies on two shards                38 a create without a key succeeds while one shard lives
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from duly.core.machine import Transition
from duly.core.model import QUARANTINE_AFTER, Failure, Job, JobId, Run, RunKey, RunState, Term, Worker
from simulation.remembered import (
    LEAD,
    MENDED,
    SECOND,
    STEPPED,
    TIGHT,
    UNMOVED,
    Grid,
    Known,
    Record,
    period_of,
)


class Referee(Record):
    """Judges each effect by what it saw before."""

    # -- effects on the store -------------------------------------------------------------------------------

    def saw(
        self,
        shard: str,
        who: str,
        verb: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        result: Any,
        wall: int,
        true: int,
    ) -> None:
        """A shard carried out a verb for a process; `wall` is the shard's clock, `true` one that is never set."""
        self.on = self.shards[shard]
        self.on.now, self.true = wall, true
        match verb:
            case "apply":
                self._applied(who, args[0], kwargs.get("fence"), set(result))
            case "create":
                for (job, runs), existing in zip(args[0], result, strict=True):
                    if existing is None:
                        self._created(job, runs)
            case "change":
                if isinstance(result, Job):
                    self._changed(result, args[2], keep_waiting=kwargs.get("keep_waiting", False))
            case "hold":
                self._held(args[1], args[2], result, release=kwargs.get("release", False))
            case "beat":
                self._beaten(args[1], args[2], result)
            case "expired":
                self._expired(result)

    def _created(self, job: Job, runs: Sequence[Run]) -> None:
        home = self.homes.setdefault(job.id, self.on.name)
        self.require(home == self.on.name, 37, "no job lies on two shards", f"{job.id} on {home} and on {self.on.name}")
        self.note("created", job.id, job.schedule, self.on.now)
        self.counts["jobs"] += 1
        self.jobs[job.id] = job
        decided = job.created_at if self.unclear else 0  # maybe by the clock as it was before it was set back
        self.grids[job.id] = Grid(job, max(self.on.now, decided))
        self._open(runs)

    def _changed(self, job: Job, opened: Sequence[Run], *, keep_waiting: bool) -> None:
        self.note("changed", job.id, job.version, job.state, [run.scheduled_at for run in opened], self.on.now)
        self.counts["changes"] += 1
        if job.state == "deleted" or not keep_waiting:
            waiting = [
                key
                for key, known in self.hot.items()
                if key[0] == job.id
                and known.run.state == RunState.WAITING
                and (job.state == "deleted" or not (known.run.attempt or known.run.manual))
            ]
            unstarted = [key[1] for key in waiting if not self.runs[key].run.attempt and not self.runs[key].run.manual]
            was = self.jobs[job.id]
            goes_on = (was.state, was.schedule) == (job.state, job.schedule)
            if not goes_on:
                self._settle_grid(job.id, min([self.on.now, *unstarted]))
            for key in waiting:
                del self.runs[key], self.hot[key]
            if not goes_on:
                been = [
                    key[1]
                    for key, known in self.runs.items()
                    if key[0] == job.id and (known.run.attempt or known.run.state.terminal)
                ]
                reached = min(job.reached, max(been, default=0))  # the clock was set back since
                self.grids[job.id] = Grid(job, max(self.on.now, reached, *self._skipped(job.id, opened)))
        self.jobs[job.id] = job
        self._open(opened)

    def _skipped(self, job_id: JobId, opened: Sequence[Run]) -> list[int]:
        """Instants up to which a changed schedule owes nothing: those of runs that are out, or were at the decision."""
        out = [key[1] for key, known in self.hot.items() if key[0] == job_id and not known.run.manual]
        newest, when = self.left.get(job_id, (0, -STEPPED))
        if self.true - when < 2 * STEPPED:
            out.append(newest)
        if self.unclear:  # the decision may come from before the step
            out += [run.scheduled_at - 1 for run in opened]
        return [0, *out]

    def _open(self, runs: Sequence[Run]) -> None:
        for run in runs:
            if run.key in self.runs:
                continue  # it stays as it is
            known = self.runs[run.key] = Known(run)
            if run.state.terminal:
                self.counts[run.state.word] += 1
                if run.covers_until is not None:
                    self.spans.append((run.job_id, run.scheduled_at, run.covers_until))
            else:
                self.hot[run.key] = known

    def _applied(self, who: str, transitions: Sequence[Transition], fence: int | None, losers: set[int]) -> None:
        if fence is not None:
            self.counts["fenced writes"] += 1
            assert self.on.term is not None
            self.require(
                fence == self.on.term.fence and self.on.holders.get(fence) == who,
                3,
                "scheduler writes only by the holder",
                f"{who} wrote with fence {fence}, the term is {self.on.term}",
            )
        for index, transition in enumerate(transitions):
            if index in losers:
                self.counts["lost races"] += 1
                continue
            self._moved(who, transition, fence)

    def _moved(self, who: str, transition: Transition, fence: int | None) -> None:
        after = transition.run
        known = self.runs.get(after.key)
        if known is None:
            self.require(False, 34, "a compare-and-set compares", f"{who} changed a run that is not there: {after}")
            raise AssertionError
        before = known.run
        where = f"{after.id}: {before.state.name} {before.attempt} by {before.worker!r} → {after.state.name}"
        where += f" {after.attempt} by {after.worker!r}, told by {who}"
        self.note(before.state, after.state, after.key, after.attempt, after.worker, self.on.now)
        self.require(not before.state.terminal, 5, "one terminal transition, final", where)
        was = (transition.was_state, transition.was_attempt, transition.was_worker)
        self.require(was == (before.state, before.attempt, before.worker), 34, "a compare-and-set compares", where)
        job = self.jobs[after.job_id]
        if after.state == RunState.DISPATCHED and before.state == RunState.WAITING:
            self._dispatched(known, after, job, fence, where)
        elif after.state == RunState.DISPATCHED:
            self.require(after.attempt == before.attempt, 9, "attempts rise by one and are bounded", where)
        elif after.state == RunState.WAITING:
            self._returned(known, after, job, where)
        elif after.state.terminal:
            self._ended(known, after, where)
        known.run = after
        if after.state.terminal:
            self.counts[after.state.word] += 1
            del self.hot[after.key]
            if before.state.active and not after.manual:
                newest, when = self.left.get(after.job_id, (0, -STEPPED))
                lately = newest if self.true - when < 2 * STEPPED else 0
                self.left[after.job_id] = (max(lately, after.scheduled_at), self.true)
        self._open(transition.opened)

    def _dispatched(self, known: Known, after: Run, job: Job, fence: int | None, where: str) -> None:
        before = known.run
        self.counts["dispatches"] += 1
        self.require(fence is not None, 3, "scheduler writes only by the holder", f"no fence: {where}")
        expected = before.attempt + 1
        self.require(after.attempt == expected, 9, "attempts rise by one and are bounded", where)
        most = before.failures + before.crashes + known.releases + 1
        self.require(after.attempt <= most, 9, "attempts rise by one and are bounded", f"at most {most}: {where}")
        decided = after.dispatched_at or 0
        self.require(
            decided <= self.on.now or self.unclear, 4, "nothing is handed out or started before its time", where
        )
        early = after.due_at - decided
        self.require(early <= LEAD, 4, "nothing is handed out or started before its time", f"{early} µs: {where}")
        if after.attempt == 1:
            self.require(after.key not in self.fired, 1, "at most one firing of (job, instant)", where)
            self.fired.add(after.key)
            self.counts["firings"] += 1
            self._judge_misfire(after, job, decided)
        else:
            self.counts["redispatches"] += 1
        fresh = after.attempt == 1 and not after.manual
        allowed = job.state == "active" or (job.state == "paused" and not fresh)
        self.require(allowed, 33, "paused and deleted jobs start nothing", f"{job.state}: {where}")
        if job.overlap != "allow":
            others = [key for key, each in self.hot.items() if key[0] == job.id and each.run.state.active]
            self.require(not others, 12, "overlap holds, in the store's view", f"{others} while {where}")

    def _judge_misfire(self, run: Run, job: Job, decided: int) -> None:
        if run.manual or decided <= run.due_at + job.max_lateness:
            return
        self.counts["misfires started"] += 1
        name = "a misfire becomes what its policy says"
        self.require(
            job.misfire != "skip", 32, name, f"{run.id} started {decided - run.due_at} µs late in spite of skip"
        )
        period = period_of(job)
        if period is not None and job.misfire == "run_latest":
            behind = (decided - run.scheduled_at) // period
            self.require(behind == 0, 32, name, f"{run.id} started with {behind} later occurrences due")

    def _returned(self, known: Known, after: Run, job: Job, where: str) -> None:
        before = known.run
        name = "attempts rise by one and are bounded"
        self.require(after.attempt == before.attempt, 9, name, where)
        if after.crashes > before.crashes:
            self.counts["crashed attempts"] += 1
            self._judge_failure(before, after.error, where)
            self._judge_loss(before, after.error, where)
            self.require(after.crashes < QUARANTINE_AFTER, 16, "what is quarantined or final is not handed out", where)
        elif after.failures > before.failures:
            self.counts["retries"] += 1
            self._judge_failure(before, after.error, where)
            self.require(after.failures < job.retry.max_attempts, 9, name, where)
            self.require(job.delivery == "at_least_once", 11, "an at-most-once run is started once, ever", where)
        else:
            known.releases += 1
            self.counts["handed back"] += 1

    def _judge_failure(self, before: Run, error: Failure | None, where: str) -> None:
        """What is recorded as the failure of an attempt is that of this attempt: its code is over."""
        if error is not None and error.kind != "worker_lost":
            over = (before.key, before.attempt, before.worker) in self.over
            self.require(over, 6, "a completion is that of the current attempt, by its worker", f"not over: {where}")

    def _judge_loss(self, before: Run, error: Failure | None, where: str) -> None:
        """An attempt was taken from its worker: its lease must be over, and its code must have stopped."""
        if error is None or error.kind != "worker_lost":
            return
        self.counts["attempts of lost workers"] += 1
        runs_in = self.going.get((before.key, before.attempt))
        if "lease" not in error.message:
            self.counts["attempts that were not there"] += 1
            self.require(runs_in is None, 21, "no lease is taken while it runs", f"its worker has it: {where}")
            return
        left = self.on.leases.get(before.worker, 0) - self.true
        self.require(left <= UNMOVED, 21, "no lease is taken while it runs", f"{left} µs left: {where}")
        awake = (
            runs_in is not None and not runs_in.frozen and self.true - self.thawed_at.get(runs_in, -STEPPED) > SECOND
        )
        self.require(not awake, 35, "a worker stops before its lease ends", f"it still runs: {where}")

    def _ended(self, known: Known, after: Run, where: str) -> None:
        before = known.run
        if after.state == RunState.SUCCEEDED:
            token = self.done.get((after.key, before.attempt, before.worker))
            self.require(token is not None, 6, "a completion is that of the current attempt, by its worker", where)
            same = bytes(after.result) == token and after.attempt == before.attempt
            self.require(
                same, 6, "a completion is that of the current attempt, by its worker", f"{after.result!r}: {where}"
            )
            self.require(not known.cancelled, 15, "nothing succeeds after an acknowledged cancel", where)
        elif after.state in (RunState.FAILED, RunState.QUARANTINED):
            self._judge_failure(before, after.error, where)
        elif after.state == RunState.LOST:
            self._judge_loss(before, after.error, where)

    def _held(self, owner: str, ttl: int, term: Term, *, release: bool) -> None:
        was = self.on.term
        if term.owner != owner:
            self.counts["terms refused"] += 1
            return
        if was is not None:
            self.require(term.fence >= was.fence, 2, "fences never fall, one holder each", f"{was} → {term}")
        holder = self.on.holders.setdefault(term.fence, owner)
        self.require(holder == owner, 2, "fences never fall, one holder each", f"{term} was {holder}'s")
        if was is None or was.owner != owner or was.fence != term.fence:
            left = 0 if was is None else was.expires_at - self.true
            self.require(
                left <= UNMOVED,
                21,
                "no term is taken while one that was granted runs",
                f"{left} µs left: {was} → {term}",
            )
            self.counts["terms"] += 1
            self.note("term", owner, term.fence, self.on.now)
        self.on.term = Term(owner=owner, fence=term.fence, expires_at=self.true + (0 if release else ttl))

    def _beaten(self, worker: Worker, ttl: int, written: Worker) -> None:
        if written.state != "lost":
            self.on.leases[worker.id] = self.true + ttl

    def _expired(self, found: Sequence[tuple[Run, Job, Worker | None]]) -> None:
        for run, _, worker in found:
            left = self.on.leases.get(run.worker, 0) - self.true
            self.require(left <= UNMOVED, 21, "no lease is taken while it runs", f"{run.worker} has {left} µs left")
            if worker is not None:
                self.counts["workers lost"] += 1

    # -- what really happens on the workers --------------------------------------------------------------------

    def began(
        self, shard: str, who: str, run: Run, job: Job, wall: int, monotonic: int, staged: int, doubt: int
    ) -> None:
        """A task's code begins. `wall` is the shard's clock, `monotonic` true time, `staged` when it was taken in;
        `doubt` is what its worker said then that it might be wrong by about the store's clock.
        """
        key, attempt = run.key, run.attempt
        self.note("began", key, attempt, str(who))
        self.counts["starts"] += 1
        where = f"attempt {attempt} of {run.id} by {who}"
        begun = self.starts.setdefault(key, {})
        self.require(attempt not in begun, 31, "an attempt is started once", f"{where}, before by {begun.get(attempt)}")
        others = len(begun)
        begun[attempt] = who
        if job.delivery == "at_most_once":
            self.require(others == 0, 11, "an at-most-once run is started once, ever", where)
        if others:
            self.counts["starts again"] += 1
        if staged - self.shards[shard].stepped_at > MENDED:
            early = run.due_at - wall
            self.require(
                early <= TIGHT + doubt, 4, "nothing is handed out or started before its time", f"{early} µs: {where}"
            )

    def finished(self, run: Run, token: bytes | None) -> None:
        """A task's code is over; with a token, it has succeeded."""
        self.going.pop((run.key, run.attempt), None)
        self.over.add((run.key, run.attempt, run.worker))
        if token is not None:
            self.done[run.key, run.attempt, run.worker] = token

    def cancel_acknowledged(self, key: RunKey) -> None:
        """A client was told that a cancel is under way or done."""
        known = self.runs.get(key)
        if known is not None:
            known.cancelled = True
            self.counts["cancels acknowledged"] += 1
            done = known.run.state == RunState.SUCCEEDED
            self.require(not done, 15, "nothing succeeds after an acknowledged cancel", key)

    def refused_a_creation(self, servicer: Any, spared: Sequence[str], since: int) -> None:
        """A client was told that no shard takes its job, by a servicer to which some have refused nothing."""
        well = servicer.up and not servicer.frozen and self.thawed_at.get(servicer, -1) < since
        self.counts["creations refused"] += 1
        name = "a create without a key succeeds while one shard lives"
        self.require(not (well and spared), 38, name, f"{servicer} did not find {spared}")

    # -- what is owed ---------------------------------------------------------------------------------------

    def _settle_grid(self, job_id: JobId, until: int) -> None:
        """Every instant between the definition and `until` must have a row."""
        grid = self.grids.get(job_id)
        if grid is None or grid.job.state != "active":
            return
        period = period_of(grid.job)
        if period is None:
            return
        at = (grid.since // period + 1) * period
        while at < until:
            self.counts["owed"] += 1
            if (job_id, at) not in self.runs:
                covered = any(job == job_id and low <= at <= high for job, low, high in self.spans)
                self.require(covered, 7, "every owed instant has a row", f"{grid.job.schedule} of {job_id} at {at}")
            at += period

    def settle(
        self,
        now: Mapping[str, int],
        patience: int,
        stored: Mapping[str, set[JobId]],
        shard_of: Callable[[JobId], str],
    ) -> None:
        """The end: all that was due `patience` ago has ended, schedules go on, nothing acknowledged is missing.

        `now` is each shard's clock, `stored` the jobs that each has, `shard_of` what the slot map in force says.
        """
        name = "once healed, everything ends and schedules go on"
        for known in self.hot.values():
            run = known.run
            over = now[self.homes[run.job_id]] - run.due_at
            self.require(
                over <= patience, 8, name, f"{run.id} is {run.state.name} ({run.held_by}) {over} µs after its time"
            )
        for job_id, job in self.jobs.items():
            self._settle_grid(job_id, now[self.homes[job_id]] - patience)
            if job.state != "active":
                continue
            coming = [key for key, known in self.hot.items() if key[0] == job_id and not known.run.manual]
            if job.schedule.startswith(("every", "after")):
                self.require(bool(coming), 8, name, f"{job.schedule} of {job_id} has no run to come")
            if job.schedule.startswith("after"):
                self.require(len(coming) == 1, 8, name, f"{job.schedule} of {job_id} has {coming}")
        for job_id in sorted(self.acknowledged):
            # One that is over, deleted or completed, goes with the last that is kept of it.
            over = self.jobs[job_id].state == "active" and not any(key[0] == job_id for key in self.hot)
            kept = self.jobs[job_id].state != "deleted" and not over
            there = job_id in stored[self.homes[job_id]]
            self.require(there or not kept, 18, "what was acknowledged is there", job_id)
        for shard, jobs in stored.items():
            astray = [job_id for job_id in jobs if not self.homes[job_id] == shard == shard_of(job_id)]
            self.require(not astray, 37, "no job lies on two shards", f"on {shard}: {astray}")
