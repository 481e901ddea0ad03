"""One seed, one world: real servicers, schedulers, workers and keepers, on a network and a clock that are made up.

    0 ── grow ── STORMS: faults drawn by the seed ──────── heal ── CALM: no fault; everything must end ── judge

The seed alone decides which faults this world has and how often (a random subset, random rates), who is killed,
frozen or cut off and when, what clients ask for, how tasks end, and in which order ready callbacks run. A killed
process is dropped where it stands: no cleanup code runs. `simulate` makes a world, lets it run, and forgets it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine
from random import Random  # noqa: TID251 - all from the seed
from typing import Any, Final

import msgspec

from duly.adapters.sqlite_store import SqliteStore
from duly.core.contract import JobSpec
from duly.core.definition import decode
from duly.core.errors import DulyError
from duly.core.model import JobId, RunKey, RunState, WorkerId, run_id
from duly.ports import JobQuery
from duly.roles.keeper import Keeper
from duly.roles.loop import Loop
from duly.roles.scheduler import Scheduler
from duly.roles.servicer import Servicer
from duly.roles.worker import Worker, WorkerSettings
from duly.tasks.registry import FunctionRegistry
from duly.telemetry import Telemetry
from simulation.loop import SECOND, Life, NodeClock, VirtualLoop
from simulation.ports import Network, SimBlobs, SimBroker, SimStore, Weather, at_once
from simulation.referee import Referee, Violation
from simulation.script import Script, Tempers

GROW: Final = 5 * SECOND
CALM: Final = 90 * SECOND
PATIENCE: Final = 45 * SECOND  # what was due so long before the end has ended
STEP: Final = 3600 * SECOND

FAULTS: Final = (
    "kill", "freeze", "cut", "store down", "node clock", "store clock", "blackout",
    "lose", "double", "straggle", "refuse", "unknown", "slow store",
    "fail", "hang", "crash child", "kill worker", "slow", "no slot",
)  # fmt: skip

SCHEDULES: Final = ("every 10s", "every 15s", "every 1m", "after 8s", "after 20s", "in 10s", "in 1m", "now")


class Outcome(msgspec.Struct):
    """What became of one seed."""

    seed: int
    trace: str
    micros: int
    turns: int
    counts: dict[str, int]
    faults: dict[str, int]
    violation: tuple[int, str, str] | None = None


class Host:
    """A machine: what runs on it, now and after it was started again."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.births = 0
        self.life: Life | None = None
        self.role: Any = None
        self.clock: NodeClock | None = None

    @property
    def up(self) -> bool:
        """It runs (or is frozen)."""
        return self.life is not None and self.life.up


class World:
    """Everything in one seed's world."""

    def __init__(self, seed: int, storms: int) -> None:
        self.seed = f"duly/{seed}"
        self.dice = self.random("world")
        self.loop = VirtualLoop(self.random("interleaving"))
        self.referee = Referee(self.loop.stop)
        self.store_clock = NodeClock(self.loop)
        self.store = SqliteStore(":memory:", clock=self.store_clock)
        self.network = Network(self.loop, self.store, self.store_clock, self.referee, self.seed)
        self.blobs = SimBlobs(self.store_clock)
        self.telemetry = Telemetry()
        self.tempers = Tempers()
        self.faults: Counter[str] = self.network.counts
        self.heal_at = GROW + storms
        self.end_at = self.heal_at + CALM
        self.calm = False
        self.graves: list[Any] = []
        self.hosts = [Host(f"scheduler{n}", "scheduler") for n in range(self.dice.randint(2, 3))]
        self.hosts += [Host(f"worker{n}", "worker") for n in range(self.dice.randint(2, 4))]
        self.hosts += [Host(f"servicer{n}", "servicer") for n in range(self.dice.randint(1, 2))]
        if self.dice.random() < 0.5:
            self.hosts.append(Host("keeper0", "keeper"))
        self.drawn = [fault for fault in FAULTS if self.dice.random() < 0.5]
        self.mean_gap = self.dice.choice((2, 4, 8, 15)) * SECOND
        self.client_gap = self.dice.choice((1, 3, 10)) * SECOND

    def random(self, part: str) -> Random:
        """Dice of a subsystem's own: a new draw in one leaves the others as they were."""
        return Random(f"{self.seed}/{part}")

    # -- life and death -------------------------------------------------------------------------------------

    def start(self, host: Host) -> None:
        """A new process on this host."""
        if host.up:
            return
        host.births += 1
        boot = self.dice.randrange(10**9, 10**12)
        life = host.life = Life(host.name, host.births, boot)
        clock = NodeClock(self.loop, boot)
        clock.skew = 0 if host.clock is None else host.clock.skew
        host.clock = clock
        host.role = None
        self.loop.start(life, self._live(host, life, clock))

    async def _live(self, host: Host, life: Life, clock: NodeClock) -> None:
        host.role = role = self._role(host, life, clock)
        try:
            await role.start()
        except DulyError:
            self.faults["starts that failed"] += 1
            self.loop.later(1, self.kill, life, False)

    def _role(self, host: Host, life: Life, clock: NodeClock) -> Any:
        store: Any = SimStore(self.network, life, clock)
        broker = SimBroker(self.network, life, clock)
        dice = self.random(f"dice/{life}")
        blobs: Any = self.blobs
        match host.kind:
            case "scheduler":
                return Scheduler(
                    shard="s0",
                    owner=str(life),
                    store=store,
                    broker=broker,
                    clock=clock,
                    telemetry=self.telemetry,
                    dice=dice.random,
                )
            case "servicer":
                return Servicer(
                    name=str(life),
                    store=store,
                    broker=broker,
                    blobs=blobs,
                    clock=clock,
                    entropy=dice.randbytes,
                    dice=dice.random,
                    telemetry=self.telemetry,
                )
            case "keeper":
                return Keeper(store=store, blobs=blobs, clock=clock, interval=20 * SECOND)
        script = Script(
            life=life,
            loop=self.loop,
            clock=clock,
            store_clock=self.store_clock,
            referee=self.referee,
            tempers=lambda: self.tempers,
            kill=self._worker_killed,
            seed=self.seed,
        )
        worker = Worker(
            id=WorkerId(str(life)),
            broker=broker,
            blobs=blobs,
            clock=clock,
            shards=("s0",),
            functions=FunctionRegistry("any"),
            settings=WorkerSettings(slots=4, grace=2 * SECOND),
            runners={"function": script},  # type: ignore[dict-item]
        )
        script.sink = worker.attempts
        script.doubt = lambda: worker.attempts.shards["s0"].offset.width
        return worker

    def kill(self, life: Life, again: bool = True) -> None:
        """kill -9: the memory is gone, and nothing runs any more, not even `finally`."""
        if not life.up:
            return
        life.up = False
        self.network.unplug(life)
        self.referee.died(life)
        host = next(host for host in self.hosts if host.life is life)
        self.graves.append((host.role, life.tasks, life.stash))
        self.loop.later(self.dice.randrange(1, (20 if again else 2) * SECOND), self._restart, host)

    def _restart(self, host: Host) -> None:
        self.start(host)

    def _worker_killed(self, life: Life) -> None:
        self.faults["workers killed by tasks"] += 1
        self.loop.later(0, self.kill, life)

    # -- the storm ------------------------------------------------------------------------------------------

    def _storm(self) -> None:
        """Draw how bad it is, and begin to draw single faults."""
        rate, drawn = self.dice.random, set(self.drawn)
        self.network.weather = Weather(
            lost=0.15 * rate() if "lose" in drawn else 0.0,
            doubled=0.15 * rate() if "double" in drawn else 0.0,
            straggling=0.1 * rate() if "straggle" in drawn else 0.0,
            straggle=self.dice.choice((1, 5, 12)) * SECOND,
            latency=self.dice.choice((200, 2_000, 20_000)),
            store_unavailable=0.1 * rate() if "refuse" in drawn else 0.0,
            store_unknown=0.1 * rate() if "unknown" in drawn else 0.0,
            store_straggling=0.03 * rate() if "slow store" in drawn else 0.0,
            store_straggle=self.dice.choice((1, 4, 8)) * SECOND,
            store_latency=self.dice.choice((200, 2_000, 20_000)),
        )
        self.tempers = Tempers(
            fail=0.3 * rate() if "fail" in drawn else 0.0,
            hang=0.1 * rate() if "hang" in drawn else 0.0,
            crash=0.2 * rate() if "crash child" in drawn else 0.0,
            kill=0.1 * rate() if "kill worker" in drawn else 0.0,
            slow=0.5 * rate() if "slow" in drawn else 0.0,
            refuse=0.2 * rate() if "no slot" in drawn else 0.0,
        )
        self._next_fault()

    def _next_fault(self) -> None:
        self.loop.later(1 + int(self.dice.expovariate(1 / self.mean_gap)), self._fault)

    def _fault(self) -> None:
        if self.calm:
            return
        self._next_fault()
        kinds = [kind for kind in self.drawn if kind in FAULTS[:7]]
        if not kinds:
            return
        host = self.dice.choice(self.hosts)
        match self.dice.choice(kinds):
            case "kill" if host.up and host.life is not None:
                self.faults["kills"] += 1
                self.kill(host.life)
            case "freeze" if host.up and host.life is not None and not host.life.frozen:
                self.faults["freezes"] += 1
                host.life.frozen = True
                self.referee.froze(host.life, self.loop.micros)
                self.loop.later(self.dice.randrange(SECOND // 10, 15 * SECOND), self._thaw, host.life)
            case "cut":
                self.faults["partitions"] += 1
                if self.dice.random() < 0.5:
                    self.network.cut.add(host.name)
                if self.dice.random() < 0.7:
                    self.network.deaf.add(host.name)
                self.loop.later(self.dice.randrange(12 * SECOND), self._join, host.name)
            case "store down":
                self.faults["store outages"] += 1
                self.network.store_down = True
                self.loop.later(self.dice.randrange(6 * SECOND), self._store_up)
            case "node clock" if host.clock is not None:
                self.faults["clock steps of nodes"] += 1
                host.clock.skew = self.dice.randrange(-STEP, STEP)
            case "store clock":
                self.faults["clock steps of the store"] += 1
                size = self.dice.choice((-300, -3, -1, 2, 10, 60, 600))
                step = int(size * SECOND * self.dice.random())
                self.store_clock.skew += step
                self.referee.clock_stepped(self.loop.micros)
            case "blackout":
                kind = self.dice.choice(("scheduler", "worker", "servicer"))
                self.faults[f"all {kind}s killed at once"] += 1
                for each in self.hosts:
                    if each.kind == kind and each.life is not None:
                        self.kill(each.life)

    def _thaw(self, life: Life) -> None:
        if life.up and life.frozen:
            self.referee.froze(life, self.loop.micros)
            self.loop.thaw(life)

    def _join(self, name: str) -> None:
        self.network.cut.discard(name)
        self.network.deaf.discard(name)

    def _store_up(self) -> None:
        self.network.store_down = False

    def _heal(self) -> None:
        self.calm = True
        self.network.weather = Weather()
        self.tempers = Tempers()
        self.network.cut.clear()
        self.network.deaf.clear()
        self._store_up()
        for host in self.hosts:
            if host.life is not None:
                self._thaw(host.life)
            self.start(host)

    # -- clients --------------------------------------------------------------------------------------------

    async def _client(self, name: str) -> None:
        """Asks for this and that, one thing after the other, until it is calm."""
        dice = self.random(f"client/{name}")
        for _ in range(dice.randint(3, 6)):
            await self._create(dice)
        while not self.calm:
            await self.store_clock.sleep(1 + int(dice.expovariate(1 / self.client_gap)))
            if not self.calm:
                await self._act(dice)

    async def _ask(self, dice: Random, work: Callable[[Servicer], Coroutine[Any, Any, Any]]) -> Any:
        """Have a servicer do something; None if it refused, or if no answer came."""
        up = [host for host in self.hosts if host.kind == "servicer" and host.up and host.role is not None]
        if not up:
            await self.store_clock.sleep(SECOND)
            return None
        host = dice.choice(up)
        assert host.life is not None
        answer: asyncio.Future[Any] = self.loop.create_future()
        self.loop.start(host.life, self._serve(work(host.role), answer))
        try:
            async with asyncio.timeout(10):
                return await answer
        except (DulyError, TimeoutError) as error:
            self.faults[f"clients told {type(error).__name__}"] += 1
            return None

    async def _serve(self, work: Coroutine[Any, Any, Any], answer: asyncio.Future[Any]) -> None:
        try:
            result = await work
        except DulyError as error:
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(result)

    async def _create(self, dice: Random) -> None:
        body: dict[str, Any] = {
            "task": {"kind": "function", "name": "m:f"},
            "schedule": dice.choice(SCHEDULES),
            "timeout": f"{dice.choice((3, 12))}s",
            "overlap": dice.choice(("skip", "queue", "allow", "cancel_running")),
            "misfire": dice.choice(("run_latest", "run_all", "skip")),
            "delivery": dice.choice(("at_least_once", "at_least_once", "at_most_once")),
            "max_lateness": f"{dice.choice((1, 3))}s",
            "priority": dice.randrange(10),
            "retry": {"max_attempts": dice.randint(1, 3), "base": "1s", "cap": "4s"},
            "catchup_window": dice.choice(("10s", "1m", "1h")),
        }
        if body["delivery"] == "at_most_once":
            del body["retry"]
        if dice.random() < 0.2:
            body["jitter"] = "2s"
        spec = decode(msgspec.json.encode(body), JobSpec)
        key = f"key-{dice.getrandbits(64):x}" if dice.random() < 0.5 else None
        for _ in range(3 if key else 1):
            made = await self._ask(dice, lambda servicer: servicer.create_job(spec, key=key))
            if made is not None:
                self.referee.acknowledged.add(JobId(made[0].id))
                return

    async def _act(self, dice: Random) -> None:
        jobs = [job_id for job_id, job in self.referee.jobs.items() if job.state != "deleted"]
        what = dice.choices(
            ("create", "patch", "reschedule", "pause", "resume", "delete", "trigger", "cancel", "retry"),
            (3, 2, 2, 2, 4, 1, 3, 5, 1),
        )[0]
        if what == "create" or not jobs:
            await self._create(dice)
            return
        job_id = dice.choice(jobs)
        self.referee.counts[f"asked to {what}"] += 1
        match what:
            case "patch":
                patch = {"priority": dice.randrange(10)}
                await self._ask(dice, lambda servicer: servicer.update_job(job_id, patch))
            case "reschedule":
                again = {"schedule": dice.choice(SCHEDULES[:3])}
                await self._ask(dice, lambda servicer: servicer.update_job(job_id, again))
            case "pause":
                await self._ask(dice, lambda servicer: servicer.pause_job(job_id))
            case "resume":
                paused = [each for each in jobs if self.referee.jobs[each].state == "paused"]
                resumed = dice.choice(paused) if paused else job_id
                await self._ask(dice, lambda servicer: servicer.resume_job(resumed))
            case "delete":
                await self._ask(dice, lambda servicer: servicer.delete_job(job_id))
            case "trigger":
                await self._ask(dice, lambda servicer: servicer.trigger_job(job_id))
            case "cancel":
                await self._cancel(dice)
            case "retry":
                ended = [key for key in self.referee.runs if key[0] == job_id and key not in self.referee.hot]
                if ended:
                    name = run_id(*dice.choice(ended))
                    await self._ask(dice, lambda servicer: servicer.retry_run(name))

    async def _cancel(self, dice: Random) -> None:
        hot = self.referee.hot
        active = [key for key, known in hot.items() if known.run.state != RunState.WAITING]
        choice: list[RunKey] = active if active and dice.random() < 0.8 else list(hot)
        if choice:
            key = dice.choice(choice)
            answer = await self._ask(dice, lambda servicer: servicer.cancel_run(run_id(*key)))
            if answer is not None:
                self.referee.cancel_acknowledged(key)

    # -- the whole ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From beginning to end. Raises Violation."""
        await self.store.migrate()
        for host in self.hosts:
            self.start(host)
        clients = [self.loop.start(None, self._client(name)) for name in ("a", "b")]
        await self.store_clock.sleep(GROW)
        self._storm()
        await self.store_clock.sleep(self.heal_at - self.loop.micros)
        self._heal()
        await self.store_clock.sleep(self.end_at - self.loop.micros)
        self._judge_processes()
        for client in clients:
            if client.done():
                client.result()
        stored: set[JobId] = set()
        cursor: str | None = None
        while True:
            page = at_once(self.store.page_jobs(JobQuery(cursor=cursor, limit=500)))
            stored.update(row.job.id for row in page.items)
            cursor = page.next
            if cursor is None:
                break
        self.referee.settle(self.store_clock.wall(), PATIENCE, stored)

    def _judge_processes(self) -> None:
        for host in self.hosts:
            role = host.role
            if isinstance(role, Loop) and role.failed is not None and not isinstance(role.failed, DulyError):
                self.referee.require(False, 36, "no process dies of its own code", f"{host.name}: {role.failed!r}")

    def trouble(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that nobody took."""
        error = context.get("exception")
        if error is not None and not isinstance(error, DulyError | Violation) and self.referee.broken is None:
            self.referee.broken = Violation(36, "no process dies of its own code", repr(error))
            self.loop.stop()


def simulate(seed: int, *, storms: int = 120 * SECOND) -> Outcome:
    """The world of a seed, from beginning to end; what went wrong is in the outcome."""
    logging.disable(logging.CRITICAL)
    hook, collects = sys.unraisablehook, gc.isenabled()
    gc.disable()
    world = World(seed, storms)
    loop, referee = world.loop, world.referee
    loop.set_exception_handler(world.trouble)
    try:
        asyncio.set_event_loop(None)
        try:
            loop.run_until_complete(world.run())
        except (Violation, RuntimeError):
            if referee.broken is None:
                raise
        violation = referee.broken
        told = None if violation is None else (violation.number, violation.name, str(violation))
        return Outcome(seed, referee.trace, loop.micros, loop.turns, dict(referee.counts), dict(world.faults), told)
    finally:
        # What is pending runs its `finally` blocks while it is forgotten, in a world that is over: nobody listens.
        sys.unraisablehook = lambda _: None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loop.end()
            at_once(world.store.close())
            loop.set_exception_handler(lambda *_: None)
            violation = referee.broken = None  # their tracebacks hold the world
            del world, loop, referee
            gc.collect()
        sys.unraisablehook = hook
        if collects:
            gc.enable()
        logging.disable(logging.NOTSET)
