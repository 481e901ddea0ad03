"""One seed, one world: real servicers, schedulers, workers and keepers, on a network and a clock that are made up.

    0 ── grow ── STORMS: faults drawn by the seed ──────── heal ── CALM: no fault; everything must end ── judge

The seed alone decides what this world is made of (`shapes`), which faults it has and how often (a random subset,
random rates), who is killed, frozen or cut off and when (`storm`), what clients ask for, how tasks end, and in which
order ready callbacks run. A killed process is dropped where it stands: no cleanup code runs. `simulate` makes a world,
lets it run, and forgets it.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import sys
import warnings
from collections import Counter
from random import Random  # noqa: TID251 - all from the seed
from typing import Any, Final

import msgspec

from duly.adapters.guarded_store import GuardedStore
from duly.adapters.sharded_store import ShardedStore
from duly.adapters.sqlite_store import SqliteStore
from duly.core.errors import DulyError
from duly.core.model import JobId, WorkerId
from duly.core.ring import SlotMap, map_slots
from duly.ports import JobQuery, Store
from duly.roles.keeper import Keeper
from duly.roles.loop import Loop
from duly.roles.scheduler import Scheduler
from duly.roles.servicer import Servicer
from duly.roles.shard_balance import ShardBalance
from duly.roles.worker import Worker, WorkerSettings
from duly.tasks.registry import FunctionRegistry
from duly.telemetry import Telemetry
from simulation.clients import Client, Spoiler
from simulation.loop import SECOND, Life, NodeClock, VirtualLoop
from simulation.network import Network, at_once
from simulation.ports import SimBlobs, SimBroker, SimStore
from simulation.referee import Referee
from simulation.remembered import Violation
from simulation.script import Script, Tempers
from simulation.shapes import SHAPES, shape_of
from simulation.storm import Storm

GROW: Final = 5 * SECOND
CALM: Final = 90 * SECOND
PATIENCE: Final = 45 * SECOND  # what was due so long before the end has ended


class Outcome(msgspec.Struct):
    """What became of one seed."""

    seed: int
    shape: str
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
        self.roles: tuple[Any, ...] = ()  # of one process
        self.clock: NodeClock | None = None

    @property
    def up(self) -> bool:
        """It runs (or is frozen)."""
        return self.life is not None and self.life.up


class World:
    """Everything in one seed's world."""

    def __init__(self, seed: int, shape: str) -> None:
        self.seed = f"duly/{seed}"
        self.shape = SHAPES[shape]
        self.dice = self.random("world")
        self.loop = VirtualLoop(self.random("interleaving"))
        self.clock = NodeClock(self.loop)  # true time
        self.shards = tuple(f"s{number}" for number in range(self.shape.shards))
        self.clocks = {shard: NodeClock(self.loop) for shard in self.shards}
        self.stores = {shard: SqliteStore(":memory:", clock=clock, shard=shard) for shard, clock in self.clocks.items()}
        self.referee = Referee(self.loop.stop, self.shards)
        self.network = Network(self.loop, self.stores, self.clocks, self.referee, self.seed)
        self.blobs = SimBlobs(self.clock)
        self.telemetry = Telemetry()
        self.tempers = Tempers()
        self.faults: Counter[str] = self.network.counts
        self.slots = _first_map(self.shards)
        self.calm = False
        self.graves: list[Any] = []
        kinds = (
            ("scheduler", self.shape.schedulers),
            ("worker", self.shape.workers),
            ("servicer", self.shape.servicers),
        )
        self.hosts = [Host(f"{kind}{n}", kind) for kind, some in kinds for n in range(self.dice.randint(*some))]
        if self.dice.random() < 0.5:
            self.hosts.append(Host("keeper0", "keeper"))
        self.storm = Storm(self)
        self.spoiler = Spoiler(self, "spoiler", SECOND)
        self.client_gap = self.dice.choice(self.shape.client_gap) * SECOND

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
        host.roles = ()
        self.loop.start(life, self._live(host, life, clock))

    async def _live(self, host: Host, life: Life, clock: NodeClock) -> None:
        host.roles = self._roles(host, life, clock)
        try:
            for role in host.roles:
                await role.start()
        except DulyError:
            self.faults["starts that failed"] += 1
            self.loop.later(1, self.kill, life, False)

    def _store(self, life: Life, clock: NodeClock) -> Store:
        """The shards as a process sees them."""
        stores: dict[str, Any] = {shard: SimStore(shard, self.network, life, clock) for shard in self.shards}
        if len(stores) == 1:
            return stores[self.shards[0]]
        guarded = {shard: GuardedStore(store, clock=clock) for shard, store in stores.items()}
        return ShardedStore(guarded, self.slots, clock=clock)

    def _roles(self, host: Host, life: Life, clock: NodeClock) -> tuple[Any, ...]:
        store = self._store(life, clock)
        broker = SimBroker(self.network, life, clock)
        dice = self.random(f"dice/{life}")
        blobs: Any = self.blobs
        match host.kind:
            case "scheduler":
                schedulers = tuple(
                    Scheduler(
                        shard=shard,
                        owner=str(life),
                        store=store,
                        broker=broker,
                        clock=clock,
                        telemetry=self.telemetry,
                        dice=dice.random,
                    )
                    for shard in self.shards
                )
                if len(schedulers) == 1:
                    return schedulers
                balance = ShardBalance(name=str(life), schedulers=schedulers, broker=broker, clock=clock)
                return (*schedulers, balance)
            case "servicer":
                servicer = Servicer(
                    name=str(life),
                    store=store,
                    broker=broker,
                    blobs=blobs,
                    clock=clock,
                    entropy=dice.randbytes,
                    dice=dice.random,
                    telemetry=self.telemetry,
                )
                return (servicer,)
            case "keeper":
                return (Keeper(store=store, blobs=blobs, clock=clock, interval=20 * SECOND),)
        script = Script(
            life=life,
            loop=self.loop,
            clock=clock,
            shard_clock=self.clocks.__getitem__,
            referee=self.referee,
            tempers=lambda: self.tempers,
            kill=self._worker_killed,
            over=self.spoiler.over,
            seed=self.seed,
        )
        worker = Worker(
            id=WorkerId(str(life)),
            broker=broker,
            blobs=blobs,
            clock=clock,
            shards=self.shards,
            functions=FunctionRegistry("any"),
            settings=WorkerSettings(slots=4, grace=2 * SECOND),
            runners={"function": script},  # type: ignore[dict-item]  # a runner that runs nothing
        )
        script.sink = worker.attempts
        script.doubt = lambda shard: worker.attempts.shards[shard].offset.width
        return (worker,)

    def kill(self, life: Life, again: bool = True) -> None:
        """kill -9: the memory is gone, and nothing runs any more, not even `finally`."""
        if not life.up:
            return
        life.up = False
        self.network.unplug(life)
        self.referee.died(life)
        host = next(host for host in self.hosts if host.life is life)
        self.graves.append((host.roles, life.tasks, life.stash))
        self.loop.later(self.dice.randrange(1, (20 if again else 2) * SECOND), self.start, host)

    def _worker_killed(self, life: Life) -> None:
        self.faults["workers killed by tasks"] += 1
        self.loop.later(0, self.kill, life)

    # -- the whole ------------------------------------------------------------------------------------------

    def slot_map(self) -> SlotMap:
        """The one in force."""
        kept = [at_once(store.slots(shard)) for shard, store in self.stores.items()]
        return max((each for each in kept if each is not None), key=lambda each: each.epoch)

    async def run(self) -> None:
        """From beginning to end. Raises Violation."""
        for shard, store in self.stores.items():
            await store.migrate()
            await store.slots(shard, self.slots)
        for host in self.hosts:
            self.start(host)
        names = "abcdefgh"[: self.shape.clients]
        clients = [self.loop.start(None, Client(self, name, self.client_gap).run()) for name in names]
        await self.clock.sleep(GROW)
        self.storm.begin()
        await self.clock.sleep(self.shape.storm)
        self.calm = True
        self.storm.end()
        await self.clock.sleep(CALM)
        self._judge_processes()
        for client in clients:
            if client.done():
                client.result()
        stored = {shard: _jobs_in(store) for shard, store in self.stores.items()}
        now = {shard: clock.wall() for shard, clock in self.clocks.items()}
        self.referee.settle(now, PATIENCE, stored, self.slot_map().shard_of)

    def _judge_processes(self) -> None:
        for host in self.hosts:
            for role in host.roles:
                if isinstance(role, Loop) and role.failed is not None and not isinstance(role.failed, DulyError):
                    self.referee.require(False, 36, "no process dies of its own code", f"{host.name}: {role.failed!r}")

    def trouble(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that nobody took."""
        error = context.get("exception")
        if error is not None and not isinstance(error, DulyError | Violation) and self.referee.broken is None:
            self.referee.broken = Violation(36, "no process dies of its own code", repr(error))
            self.loop.stop()


@functools.cache
def _first_map(shards: tuple[str, ...]) -> SlotMap:
    return map_slots(dict.fromkeys(shards, 1.0))


def _jobs_in(store: SqliteStore) -> set[JobId]:
    stored: set[JobId] = set()
    cursor: str | None = None
    while True:
        page = at_once(store.page_jobs(JobQuery(cursor=cursor, limit=500)))
        stored.update(row.job.id for row in page.items)
        cursor = page.next
        if cursor is None:
            return stored


def simulate(seed: int, *, shape: str | None = None) -> Outcome:
    """The world of a seed, from beginning to end; what went wrong is in the outcome. `shape` as if it were drawn."""
    logging.disable(logging.CRITICAL)
    hook, collects = sys.unraisablehook, gc.isenabled()
    gc.disable()
    gc.freeze()  # what was there before need not be looked at to forget this world
    shape = shape or shape_of(seed)
    world = World(seed, shape)
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
        counts, faults = dict(referee.counts), dict(world.faults)
        return Outcome(seed, shape, referee.trace, loop.micros, loop.turns, counts, faults, told)
    finally:
        # What is pending runs its `finally` blocks while it is forgotten, in a world that is over: nobody listens.
        sys.unraisablehook = lambda _: None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loop.end()
            for store in world.stores.values():
                at_once(store.close())
            loop.set_exception_handler(lambda *_: None)
            violation = referee.broken = None  # their tracebacks hold the world
            del world, loop, referee, store
            gc.collect()
        gc.unfreeze()
        sys.unraisablehook = hook
        if collects:
            gc.enable()
        logging.disable(logging.NOTSET)
