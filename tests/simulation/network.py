"""What connects all processes, and breaks: messages between them, and their calls of the shards' stores.

A call of a store is a request that takes time to arrive and an answer that takes time to come back. It takes effect
whether its caller lives to see it or not, and between the two a process may be frozen, killed, or told that the
outcome is unknown. Every effect is shown to the referee at the moment it is accepted.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping
from random import Random  # noqa: TID251 - all from the seed
from typing import TYPE_CHECKING, Any, Final

import msgspec

from duly.adapters.sqlite_store import SqliteStore
from duly.core.errors import DulyError, OutcomeUnknown, Unavailable
from duly.core.messages import AnyMessage
from simulation.loop import Life, NodeClock, VirtualLoop
from simulation.referee import Referee

if TYPE_CHECKING:
    from simulation.ports import Subscription

WRITES: Final = frozenset({"create", "change", "apply", "beat", "expired", "hold", "prune"})
CALLER: contextvars.ContextVar[NodeClock | None] = contextvars.ContextVar("CALLER", default=None)  # for a mutant


class Weather(msgspec.Struct, kw_only=True):
    """How bad things are: probabilities of each message or call, and mean µs. All zero when it is calm."""

    lost: float = 0.0
    doubled: float = 0.0
    straggling: float = 0.0  # share of messages that are late by up to `straggle`
    straggle: int = 0
    latency: int = 500
    store_unavailable: float = 0.0
    store_unknown: float = 0.0  # half of them take effect
    store_straggling: float = 0.0
    store_straggle: int = 0
    store_latency: int = 300


class Network:
    """The wires. `cut` and `deaf`: names of hosts that cannot send, or receive. `down`: shards that do not answer."""

    def __init__(
        self,
        loop: VirtualLoop,
        stores: Mapping[str, SqliteStore],
        clocks: Mapping[str, NodeClock],
        referee: Referee,
        seed: str,
    ) -> None:
        self.loop = loop
        self.stores = stores
        self.clocks = clocks
        self.referee = referee
        self.weather = Weather()
        self.counts: Counter[str] = Counter()
        self.cut: set[str] = set()
        self.deaf: set[str] = set()
        self.down: set[str] = set()
        self.silent = False  # the broker is gone
        self.held_up: dict[tuple[str, str], tuple[int, Callable[[], None]]] = {}
        self.refused_at: dict[tuple[str, str], int] = {}  # when a call from a host to a shard was refused last
        self.severed: set[tuple[str, str]] = set()  # (host, shard): no connection between the two
        self._dice = Random(f"{seed}/network")
        self._store_dice = Random(f"{seed}/store")
        self._groups: dict[str, dict[Any, deque[Subscription]]] = {}

    # -- messages -------------------------------------------------------------------------------------------

    def subscribe(self, subscription: Subscription) -> None:
        """Deliver to it from now on."""
        key = subscription.group or subscription
        self._groups.setdefault(subscription.subject, {}).setdefault(key, deque()).append(subscription)

    def forget(self, subscription: Subscription) -> None:
        """Deliver nothing more to it."""
        key = subscription.group or subscription
        members = self._groups[subscription.subject][key]
        members.remove(subscription)
        if not members:
            del self._groups[subscription.subject][key]

    def unplug(self, life: Life) -> None:
        """A process has died: its connections are closed."""
        for groups in self._groups.values():
            for key in list(groups):
                groups[key] = deque(each for each in groups[key] if each.life is not life)
                if not groups[key]:
                    del groups[key]

    def send(
        self, sender: Life, subject: str, message: AnyMessage, reply: tuple[Life, asyncio.Future[Any]] | None
    ) -> bool:
        """Once for each group, if nothing happens to it; False if nobody listens."""
        groups = self._groups.get(subject)
        if not groups:
            return False
        for members in groups.values():
            member = members[0]
            members.rotate(-1)
            self._carry(sender.name, member.life.name, member.offer, message, reply)
        return True

    def answer(self, sender: Life, receiver: Life, reply: asyncio.Future[Any], message: AnyMessage) -> None:
        """What a request is answered with, on its way back."""
        self._carry(sender.name, receiver.name, _give, reply, message)

    def _carry(self, sender: str, receiver: str, deliver: Callable[..., None], *args: Any) -> None:
        weather, dice = self.weather, self._dice
        copies = 1
        if self.silent:
            self.counts["messages lost with the broker"] += 1
            return
        if sender in self.cut or receiver in self.deaf:
            self.counts["messages cut off"] += 1
            return
        if weather.lost and dice.random() < weather.lost:
            self.counts["messages lost"] += 1
            return
        if weather.doubled and dice.random() < weather.doubled:
            self.counts["messages doubled"] += 1
            copies = 2
        for _ in range(copies):
            delay = 1 + int(dice.expovariate(1 / weather.latency))
            if weather.straggling and dice.random() < weather.straggling:
                self.counts["messages late"] += 1
                delay += dice.randrange(weather.straggle)
            self.loop.later(delay, deliver, *args)

    # -- store ----------------------------------------------------------------------------------------------

    def reaches(self, host: str, shard: str) -> bool:
        """Calls from that host arrive at that shard."""
        return not (shard in self.down or host in self.cut or (host, shard) in self.severed)

    def spared(self, caller: Life, since: int) -> list[str]:
        """Shards that have refused nothing to that host since then, while all calls arrive in time."""
        if self.weather.store_unavailable or self.weather.store_straggling:
            return []
        return [shard for shard in self.stores if self.refused_at.get((caller.name, shard), -1) < since]

    def call(
        self, shard: str, caller: Life, clock: NodeClock, verb: str, args: Any, kwargs: Any
    ) -> asyncio.Future[Any]:
        """One call of a shard's store by a process."""
        weather, dice = self.weather, self._store_dice
        there = 1 + int(dice.expovariate(1 / weather.store_latency))
        back = 1 + int(dice.expovariate(1 / weather.store_latency))
        if weather.store_straggling and dice.random() < weather.store_straggling:
            self.counts["store calls late"] += 1
            if dice.random() < 0.5:
                there += dice.randrange(weather.store_straggle)
            else:
                back += dice.randrange(weather.store_straggle)
        if self.held_up and kwargs.get("fence") is not None and (shard, str(caller)) in self.held_up:
            late, tell = self.held_up.pop((shard, str(caller)))
            there += late
            tell()
        failure: DulyError | None = None
        effect = True
        if not self.reaches(caller.name, shard):
            self.refused_at[caller.name, shard] = self.loop.micros
            self.counts["store calls refused"] += 1
            failure, effect = Unavailable("simulated: no connection"), False
        elif weather.store_unavailable and dice.random() < weather.store_unavailable:
            self.counts["store calls refused"] += 1
            failure, effect = Unavailable("simulated"), False
        elif verb in WRITES and weather.store_unknown and dice.random() < weather.store_unknown:
            effect = dice.random() < 0.5
            self.counts["store outcomes unknown, " + ("done" if effect else "not done")] += 1
            failure = OutcomeUnknown("simulated")
        answer: asyncio.Future[Any] = self.loop.create_future()
        if effect:
            self.loop.later(there, self._arrive, shard, caller, clock, verb, args, kwargs, failure, back, answer)
        else:
            self.loop.later(there + back, _resolve, answer, None, failure)
        return answer

    def _arrive(
        self,
        shard: str,
        caller: Life,
        clock: NodeClock,
        verb: str,
        args: Any,
        kwargs: Any,
        failure: DulyError | None,
        back: int,
        answer: asyncio.Future[Any],
    ) -> None:
        def done(result: Any, refusal: DulyError | None) -> None:
            if refusal is None:
                wall, true = self.clocks[shard].wall(), self.loop.micros
                self.referee.saw(shard, str(caller), verb, args, kwargs, result, wall, true)
            else:
                self.counts[f"refused: {refusal.code}"] += 1
            self.loop.later(back, _resolve, answer, result, failure or refusal)

        CALLER.set(clock)
        _drive(getattr(self.stores[shard], verb)(*args, **kwargs), done)


def _drive(work: Coroutine[Any, Any, Any], done: Callable[[Any, DulyError | None], None]) -> None:
    """Run a store's verb to its end without a task of its own: it hardly ever has to wait for anything."""
    try:
        waits_for = work.send(None)
    except StopIteration as end:
        done(end.value, None)
    except DulyError as refusal:
        done(None, refusal)
    else:
        waits_for._asyncio_future_blocking = False
        waits_for.add_done_callback(lambda _: _drive(work, done))


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that never waits, as those of a store in memory."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a store in memory does not wait")


def _resolve(answer: asyncio.Future[Any], result: Any, failure: DulyError | None) -> None:
    if answer.done():
        return
    if failure is None:
        answer.set_result(result)
    else:
        answer.set_exception(failure)


def _give(reply: asyncio.Future[Any], message: AnyMessage) -> None:
    if not reply.done():
        reply.set_result(message)
