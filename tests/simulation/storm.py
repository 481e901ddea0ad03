"""The storm: how bad a world is, and who is killed, frozen, cut off or misled when. All of it from the seed's dice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from simulation.loop import SECOND, Life
from simulation.network import Weather
from simulation.script import Tempers
from simulation.shapes import SINGLE
from simulation.slot_operator import Operator

if TYPE_CHECKING:
    from simulation.world import Host, World

STEP: Final = 3600 * SECOND  # of a node's clock
OF_ONE_HOST: Final = frozenset({"kill", "freeze", "cut", "node clock", "sever"})
MOST: Final = {
    "lose": 0.15, "double": 0.15, "straggle": 0.1, "refuse": 0.1, "unknown": 0.1, "slow store": 0.03,
    "fail": 0.3, "hang": 0.1, "crash child": 0.2, "kill worker": 0.1, "slow": 0.5, "no slot": 0.2,
}  # fmt: skip


class Storm:
    """What goes wrong in a world, from `begin` until `end`."""

    def __init__(self, world: World) -> None:
        self.over = False
        self.drawn = [fault for fault in world.shape.drawn if world.dice.random() < 0.5 or fault in world.shape.always]
        self._gap = world.dice.choice((2, 4, 8, 15)) * SECOND
        self._kinds = [fault for fault in self.drawn if fault in SINGLE]
        self._world = world
        self._dice = world.dice
        self._loop = world.loop
        self._network = world.network
        self._operator = Operator(world, self._loop)

    def begin(self) -> None:
        """Draw how bad it is, and begin to draw single faults."""
        choice, rate, shape = self._dice.choice, self._rate, self._world.shape
        self._network.weather = Weather(
            lost=rate("lose"),
            doubled=rate("double"),
            straggling=rate("straggle"),
            straggle=choice(shape.straggle) * SECOND,
            latency=choice((200, 2_000, 20_000)),
            store_unavailable=rate("refuse"),
            store_unknown=rate("unknown"),
            store_straggling=rate("slow store"),
            store_straggle=choice((1, 4, 8)) * SECOND,
            store_latency=choice(shape.store_latency),
        )
        self._world.tempers = Tempers(
            fail=rate("fail"),
            hang=rate("hang"),
            crash=rate("crash child"),
            kill=rate("kill worker"),
            slow=rate("slow"),
            refuse=rate("no slot"),
        )
        self._next()

    def end(self) -> None:
        """Nothing goes wrong any more; what was broken is mended."""
        self.over = True
        world, network = self._world, self._network
        network.weather = Weather()
        world.tempers = Tempers()
        network.cut.clear()
        network.deaf.clear()
        network.down.clear()
        network.severed.clear()
        network.silent = False
        network.held_up.clear()
        for host in world.hosts:
            if host.life is not None:
                self._thaw(host.life)
            world.start(host)

    def _rate(self, fault: str) -> float:
        if fault not in self.drawn:
            return 0.0
        shape = self._world.shape
        return shape.rates.get(fault, MOST[fault]) * (shape.least + (1 - shape.least) * self._dice.random())

    def _for(self, most: int, *, least: int = 0) -> int:
        """So long something lasts."""
        return self._dice.randrange(least, most)

    def _one_of(self, shards: tuple[str, ...]) -> str:
        return shards[0] if len(shards) == 1 else self._dice.choice(shards)

    def _next(self) -> None:
        self._loop.later(1 + int(self._dice.expovariate(1 / self._gap)), self._fault)

    def _fault(self) -> None:
        if self.over:
            return
        self._next()
        if not self._kinds:
            return
        host = self._dice.choice(self._world.hosts)
        kind = self._dice.choice(self._kinds)
        if kind in OF_ONE_HOST:
            self._strike_host(kind, host)
        else:
            self._strike(kind)

    def _strike_host(self, kind: str, host: Host) -> None:
        world, dice, life = self._world, self._dice, host.life
        match kind:
            case "kill" if life is not None and life.up:
                world.faults["kills"] += 1
                world.kill(life)
            case "freeze" if life is not None and life.up and not life.frozen:
                world.faults["freezes"] += 1
                self._freeze(life)
                self._loop.later(self._for(15 * SECOND, least=SECOND // 10), self._thaw, life)
            case "cut":
                self._cut(host)
            case "node clock" if host.clock is not None:
                world.faults["clock steps of nodes"] += 1
                host.clock.skew = dice.randrange(-STEP, STEP)
            case "sever":
                world.faults["hosts cut off from one shard"] += 1
                pair = (host.name, self._one_of(world.shards))
                self._network.severed.add(pair)
                self._loop.later(self._for(20 * SECOND), self._network.severed.discard, pair)

    def _strike(self, kind: str) -> None:
        world, network, dice = self._world, self._network, self._dice
        match kind:
            case "store down":
                world.faults["store outages"] += 1
                self._shut(self._one_of(world.shards), self._for(6 * SECOND))
            case "shard down":
                world.faults["shards down for long"] += 1
                self._shut(self._one_of(world.shards), self._for(60 * SECOND, least=10 * SECOND))
            case "store clock":
                world.faults["clock steps of the store"] += 1
                shard = self._one_of(world.shards)
                size = dice.choice((-300, -3, -1, 2, 10, 60, 600))
                world.clocks[shard].skew += int(size * SECOND * dice.random())
                world.referee.clock_stepped(shard, self._loop.micros)
            case "blackout":
                of = dice.choice(("scheduler", "worker", "servicer"))
                world.faults[f"all {of}s killed at once"] += 1
                for host in world.hosts:
                    if host.kind == of and host.life is not None:
                        world.kill(host.life)
            case "broker down" if not network.silent:
                world.faults["broker outages"] += 1
                network.silent = True
                self._loop.later(self._for(120 * SECOND, least=20 * SECOND), self._broker_up)
            case "hold up a leader":
                self._hold_up(self._one_of(world.shards))
            case "move slots":
                self._operator.begin()

    def _cut(self, host: Host) -> None:
        self._world.faults["partitions"] += 1
        if self._dice.random() < 0.5:
            self._network.cut.add(host.name)
        if self._dice.random() < 0.7:
            self._network.deaf.add(host.name)
        self._loop.later(self._for(12 * SECOND), self._join, host.name)

    def _join(self, name: str) -> None:
        self._network.cut.discard(name)
        self._network.deaf.discard(name)

    def _shut(self, shard: str, duration: int) -> None:
        self._network.down.add(shard)
        self._loop.later(duration, self._network.down.discard, shard)

    def _broker_up(self) -> None:
        self._network.silent = False

    def _freeze(self, life: Life) -> None:
        life.frozen = True
        self._world.referee.froze(life, self._loop.micros)

    def _thaw(self, life: Life) -> None:
        if life.up and life.frozen:
            self._world.referee.froze(life, self._loop.micros)
            self._loop.thaw(life)

    def _hold_up(self, shard: str) -> None:
        """The leader's next write is on its way until after its term; so long its process is frozen, or not."""
        term = self._world.referee.shards[shard].term
        leader = next((host.life for host in self._world.hosts if term and str(host.life) == term.owner), None)
        if leader is None or not leader.up or leader.frozen:
            return
        self._world.faults["leaders held up in mid-write"] += 1
        frozen = self._dice.random() < 0.5
        duration = self._for(10 * SECOND, least=3 * SECOND)

        def held_up() -> None:
            if frozen and leader.up and not leader.frozen and not self.over:
                self._freeze(leader)
                self._loop.later(duration, self._thaw, leader)

        self._network.held_up[shard, str(leader)] = (duration, held_up)
