"""The worker: takes attempts ahead of their time, has them started at their instants, reports what became of them.

    Assign ─▶ Held ─▶ runner of its kind ─▶ outcome ─▶ Reporter ─▶ servicer
    Beat ───▶ scheduler of each shard: lease, clock offset, stale attempts

**Clock.** A run's `due_at` is the shard's; it is turned into CLOCK_MONOTONIC once, when the run arrives.
**Lease.** Judged by the shard; by its own clock the worker only stops sooner: not answered for lease − margin, it
kills what it runs for that shard and says nothing, because another worker may have it already. A worker that
the shard calls lost comes back under a new id there.
**Slots.** The process lane has `slots` (sync functions and commands), the async lane `async_slots`. A staged run
takes its slot at its instant. What is told as capacity is how many attempts of a lane the worker would hold for that
shard in all: its slots, and behind the free ones what they would finish in 50 ms (`Tempo`), less what it
holds for other shards; so the scheduler subtracts what it has out, and no answer is needed in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from typing import Final, Literal

import msgspec

from duly.core.errors import DulyError
from duly.core.instants import SECOND
from duly.core.messages import (
    NOTICES,
    AnyMessage,
    Assign,
    Beat,
    BeatAnswer,
    Cancel,
    Notice,
    ReadLog,
    Rest,
    beats,
    inbox,
    logs,
)
from duly.core.model import Failure, Lane, RunKey, WorkerId
from duly.core.model import Worker as WorkerRow
from duly.ports import Blobs, Broker, Clock, Subscription
from duly.roles.attempts import Attempts, Shard, runner_of
from duly.roles.logs import LogReader
from duly.roles.loop import Loop
from duly.roles.offset import Offset, OwnClock
from duly.roles.reporter import Reporter
from duly.roles.scratch import Scratch
from duly.tasks.attempt import Runner, Stage, Tempo
from duly.tasks.command import CommandRunner
from duly.tasks.function import FunctionRunner
from duly.tasks.http import HttpRunner
from duly.tasks.registry import FunctionRegistry, import_app

log = logging.getLogger("duly.worker")

PATIENCE: Final = 100_000  # µs between two tries to be heard by a scheduler at all
SHARPER: Final = 5  # further beats, close together, while the clock offset is known badly
SHARP: Final = 300  # µs of uncertainty that are good enough
TIDYING: Final = 5 * SECOND  # for removing what commands left, at the end; the rest is for the next worker here
LOG_READERS: Final = 4  # readers of logs that are answered at the same time


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in µs, sizes in bytes. `apps`: MODULE:NAME of the Duly objects whose functions are registered.

    `shares_clock`: the shards' clock is this worker's own, as in one process.
    `scratch`: where attempts have their files; "" is the system's temporary directory.
    """

    slots: int = 4
    async_slots: int = 1_000
    labels: dict[str, str] = {}
    functions_in: Literal["processes", "threads"] = "processes"
    apps: tuple[str, ...] = ()
    scratch: str = ""
    grace: int = 10 * SECOND
    beat_every: int = SECOND
    lease_margin: int = SECOND
    spin: int = 300
    max_output: int = 1024**3
    allow_private_addresses: bool = False
    shares_clock: bool = False


class Worker(Loop):
    """One worker. `functions` also decides, by its policy, whether anything importable may run."""

    def __init__(
        self,
        *,
        id: WorkerId,  # noqa: A002 - the name that the store and its clients use
        broker: Broker,
        blobs: Blobs,
        clock: Clock,
        shards: Sequence[str],
        functions: FunctionRegistry | None = None,
        settings: WorkerSettings | None = None,
        runners: dict[str, Runner] | None = None,
    ) -> None:
        """`runners`, by kind of task, replace the real ones: for tests on a clock of their own."""
        super().__init__(f"worker {id}")
        self.id = id
        self.attempts = Attempts(clock, self._notify)
        self._settings = settings or WorkerSettings()
        self._broker = broker
        self._blobs = blobs
        self._clock = clock
        self._functions = functions if functions is not None else FunctionRegistry()
        self._shard_names = tuple(shards)
        self._tempos: dict[Lane, Tempo] = {"process": Tempo(), "async": Tempo()}
        self._runners: dict[str, Runner] = runners or {}
        self._own_runners = runners is None
        self._leaving = threading.Event()
        self._scratch = Scratch(self._settings.scratch or tempfile.gettempdir())
        self._logs = LogReader(clock)
        self._subscriptions: list[Subscription] = []
        self._births = 0
        self._resting = False

    # -- life -----------------------------------------------------------------------------------------------

    async def _up(self) -> None:
        for app in self._settings.apps:
            self._functions.update(import_app(app))
        if self._own_runners:
            folder = await asyncio.to_thread(self._scratch.open)
            self.spawn(asyncio.to_thread(self._scratch.clear_left, self._leaving.is_set), "scratch of others")
            self._make_runners(folder)
        for runner in self._runners.values():
            await runner.start()
        for name in self._shard_names:
            offset = OwnClock(self._clock) if self._settings.shares_clock else Offset()
            self.attempts.shards[name] = Shard(name, self.id, self._reporter(name), offset)
        await self._listen(self.id)
        for shard in self.attempts.shards.values():
            self.spawn(self._beat(shard), f"beats to {shard.name}")
        self.spawn(self._watch(), "lease watch")

    async def _listen(self, worker: WorkerId) -> None:
        self._subscriptions.append(await self._broker.subscribe(inbox(worker), self._received))
        for _ in range(LOG_READERS):
            self._subscriptions.append(await self._broker.subscribe(logs(worker), self._asked, group="readers"))

    def _make_runners(self, folder: str) -> None:
        settings = self._settings
        stage = Stage(
            scratch=folder,
            slots=settings.slots,
            grace=settings.grace,
            spin=settings.spin,
            shares_clock=settings.shares_clock,
            max_output=settings.max_output,
            allow_private_addresses=settings.allow_private_addresses,
        )
        functions = FunctionRunner(
            self.attempts,
            self._blobs,
            stage,
            functions=self._functions,
            apps=settings.apps,
            functions_in=settings.functions_in,
            async_slots=settings.async_slots,
            tempos=(self._tempos["process"], self._tempos["async"]),
        )
        commands = CommandRunner(self.attempts, self._blobs, stage, slots=functions.sync, tempo=self._tempos["process"])
        requests = HttpRunner(
            self.attempts, self._blobs, stage, slots=settings.async_slots, tempo=self._tempos["async"]
        )
        self._runners = {"function": functions, "command": commands, "http": requests}

    def _reporter(self, name: str) -> Reporter:
        return Reporter(
            name,
            broker=self._broker,
            clock=self._clock,
            worker=lambda: self.attempts.shards[name].id,
            capacity=lambda: self.capacity(name),
            still_running=self.attempts.has,
            spawn=self.spawn,
        )

    async def _drain(self) -> None:
        """Give back what has not begun, let the rest finish within the grace, give back what has not."""
        grace = self._settings.grace
        self._hand_back()
        await self.attempts.emptied(grace)
        for held in self.attempts:
            held.ending = held.ending or "drain"
            runner_of(held).stop(held)
        await self.attempts.emptied(grace)
        for shard in self.attempts.shards.values():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(shard.reporter.settled(), grace / SECOND)
        await asyncio.gather(*(self._beat_once(shard) for shard in self.attempts.shards.values()))

    def _hand_back(self) -> None:
        for held in self.attempts:
            if held.ending is None and not held.started:
                held.ending = "drain"
                runner_of(held).stop(held, unless_started=True)

    async def _down(self) -> None:
        self._leaving.set()
        for subscription in self._subscriptions:
            await subscription.stop()
        self.attempts.close()
        for shard in self.attempts.shards.values():
            shard.reporter.close()
        await asyncio.gather(*(runner.close() for runner in self._runners.values()))
        if self._own_runners:
            out_of_time = threading.Event()
            timer = asyncio.get_running_loop().call_later(TIDYING / SECOND, out_of_time.set)
            await asyncio.to_thread(self._scratch.close, out_of_time.is_set)
            timer.cancel()

    def _notify(self, notice: Notice) -> None:
        self.spawn(self._broker.publish(NOTICES, notice), "notice")

    # -- capacity -------------------------------------------------------------------------------------------

    def capacity(self, shard: str) -> dict[Lane, int]:
        """How many attempts of each lane this worker would hold for that shard in all."""
        state = self.attempts.shards[shard]
        if self.state != "started" or self._resting or state.reporter.backed_up or state.trusted_until is None:
            return {"process": 0, "async": 0}
        settings = self._settings
        occupied = sum(runner.occupied() for runner in self._runners.values())
        running_async = self._shards_held("async")
        free: dict[Lane, int] = {
            "process": max(0, settings.slots - occupied),
            "async": max(0, settings.async_slots - running_async),
        }
        slots: dict[Lane, int] = {"process": settings.slots, "async": settings.async_slots}
        told: dict[Lane, int] = {}
        for name, tempo in self._tempos.items():
            elsewhere = self._shards_held(name) - state.held[name]
            told[name] = max(0, slots[name] + tempo.allowance(free[name]) - elsewhere)
        return told

    def _shards_held(self, name: Lane) -> int:
        return sum(shard.held[name] for shard in self.attempts.shards.values())

    def unheard(self) -> list[str]:
        """The shards whose scheduler has not answered within a lease, in words; empty when all have."""
        now = self._clock.monotonic()
        return [
            f"shard {shard.name} does not answer"
            for shard in self.attempts.shards.values()
            if shard.trusted_until is None or shard.trusted_until < now
        ]

    # -- beats ----------------------------------------------------------------------------------------------

    async def _beat(self, shard: Shard) -> None:
        sharper = SHARPER
        while True:
            leased = shard.trusted_until is not None
            answered = await self._beat_once(shard)
            if answered and not leased:
                continue  # only now does it offer room: without a lease it could not tell when to stop
            if not answered and shard.trusted_until is None:
                await self._clock.sleep(PATIENCE)
            elif answered and shard.offset.width > SHARP and sharper:
                sharper -= 1
                await self._clock.sleep(PATIENCE // 4)
            else:
                await self._clock.sleep(self._settings.beat_every)

    async def _beat_once(self, shard: Shard) -> bool:
        settings = self._settings
        functions = None if self._functions.policy == "any" else tuple(self._functions)
        capacity = self.capacity(shard.name)
        row = WorkerRow(
            id=shard.id,
            slots=settings.slots,
            free=capacity["process"],
            labels=settings.labels,
            functions=functions,
            clock_offset=self._ahead(shard),
            state="ready" if self.state == "started" and not self._resting else "draining",
            capacity=capacity,
        )
        ended: set[tuple[RunKey, int]] = set()  # while this beat is under way
        shard.watching.append(ended)
        held = (*((held.key, held.attempt) for held in self.attempts.of(shard)), *shard.reporter.untold())
        sent = self._clock.monotonic()
        beat = Beat(worker=row, capacity=capacity, held=held, seen={shard.name: shard.seen}, sent=sent)
        try:
            patience = PATIENCE if shard.trusted_until is None else settings.beat_every
            answer = await self._broker.request(beats(shard.name), beat, timeout=patience)
        except DulyError as error:
            log.debug("shard %s did not answer a beat: %s", shard.name, error)
            return False
        finally:
            shard.watching = [each for each in shard.watching if each is not ended]
        received = self._clock.monotonic()
        if not isinstance(answer, BeatAnswer):
            return False
        if answer.lease_until <= answer.now:
            await self._reborn(shard)
            return False
        shard.offset.add(sent, received, answer.now)
        shard.trusted_until = sent + (answer.lease_until - answer.now) - settings.lease_margin
        for key, attempt in answer.stale:
            found = self.attempts.get(key, attempt)
            if found is not None:
                self.attempts.end_quietly(found)
        if answer.out:
            self._listed(shard, answer, ended)
        for key, attempt, reason in answer.cancelled:
            self._cancelled(Cancel(key=key, attempt=attempt, reason=reason))
        return True

    def _listed(self, shard: Shard, answer: BeatAnswer, ended: set[tuple[RunKey, int]]) -> None:
        """No broker has told of these attempts; they count as an Assign of a scheduler whose fence is not known."""
        fresh = self.attempts.listed(shard, answer.out, ended)
        if fresh:
            shard.listings += 1
            message = Assign(shard=shard.name, fence=0, number=shard.listings, batch=fresh, now=answer.now)
            self._assigned(message)
            self.attempts.remember_listed(shard, fresh)

    def _ahead(self, shard: Shard) -> int:
        """How far the shard's clock is ahead of this node's own, µs; 0 while it is not known."""
        if shard.offset.value is None:
            return 0
        return shard.offset.value + self._clock.monotonic() - self._clock.wall()

    async def _reborn(self, shard: Shard) -> None:
        """The shard calls this worker lost: what it runs there is another's now, and its id is spent."""
        self._births += 1
        log.warning("shard %s: worker %s was taken for lost; coming back under a new id", shard.name, shard.id)
        self._end_all_quietly(shard)
        fresh = WorkerId(f"{self.id}.{self._births}")
        await self._listen(fresh)
        shard.id = fresh
        shard.seen = 0
        shard.recent.clear()  # schedulers count from one again for an id that is new to them
        shard.dropped.clear()
        shard.begun_listed.clear()
        shard.trusted_until = None  # the next beat comes soon, not at once: the shard may go on saying so

    async def _watch(self) -> None:
        """Stop sooner: what runs for a shard that no longer answers is killed before its lease can end."""
        while True:
            await self._clock.sleep(self._settings.lease_margin // 4)
            now = self._clock.monotonic()
            for shard in self.attempts.shards.values():
                if shard.trusted_until is not None and now > shard.trusted_until and any(shard.held.values()):
                    log.warning("shard %s has not answered for a lease: killing what runs for it", shard.name)
                    self._end_all_quietly(shard)

    def _end_all_quietly(self, shard: Shard) -> None:
        for held in self.attempts.of(shard):
            self.attempts.end_quietly(held)

    # -- the inbox ------------------------------------------------------------------------------------------

    async def _received(self, message: AnyMessage) -> AnyMessage | None:
        if isinstance(message, Assign):
            self._assigned(message)
        elif isinstance(message, Cancel):
            self._cancelled(message)
        elif isinstance(message, Rest) and message.on != self._resting:
            log.info("worker %s %s", self.id, "takes nothing new" if message.on else "takes work again")
            self._resting = message.on
            if message.on:
                self._hand_back()
            await asyncio.gather(*(self._beat_once(shard) for shard in self.attempts.shards.values()))
        return None

    async def _asked(self, message: AnyMessage) -> AnyMessage | None:
        if not isinstance(message, ReadLog):
            return None
        held = self.attempts.get(message.key, message.attempt)
        path = None if held is None else partial(runner_of(held).log_path, held, message.stream)
        return await self._logs.read(message, path)

    def _assigned(self, message: Assign) -> None:
        shard = self.attempts.shards.get(message.shard)
        if shard is None:
            return
        if shard.is_double(message):
            self.attempts.counts["doubled"] += len(message.batch)
            return
        for kind, batch in self.attempts.take(shard, message).items():
            runner = self._runners.get(kind)
            if runner is None:
                for held in batch:
                    error = Failure(kind="input", message=f"this worker does not run {kind} tasks")
                    self.attempts.failed(held, self._clock.monotonic(), error, retryable=False)
                continue
            for held in batch:
                held.runner = runner
            if self.state == "started" and not self._resting:
                runner.stage(batch)
            else:
                for held in batch:
                    self.attempts.given_back(held, "drained")

    def _cancelled(self, message: Cancel) -> None:
        held = self.attempts.get(message.key, message.attempt)
        if held is None or held.ending is not None or (message.unless_started and held.started):
            return
        held.ending = "changed" if message.unless_started else "cancel"
        runner_of(held).stop(held, unless_started=message.unless_started)
