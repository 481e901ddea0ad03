"""Ports that fail on purpose. Behind the store's is the real SqliteStore, in memory; messages and blobs are simulated.

A call of the store is a request that takes time to arrive and an answer that takes time to come back. It takes effect
whether its caller lives to see it or not, and between the two a process may be frozen, killed, or told that the
outcome is unknown. Every effect is shown to the referee at the moment it is accepted.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from random import Random  # noqa: TID251 - all from the seed
from typing import Any, Final

import msgspec

from duly.adapters.sqlite_store import SqliteStore
from duly.core.errors import DulyError, NotFound, OutcomeUnknown, TimedOut, Unavailable
from duly.core.messages import AnyMessage
from duly.core.model import JobId
from duly.ports import Handler
from simulation.loop import NOBODY, SECOND, Life, NodeClock, VirtualLoop
from simulation.referee import Referee

QUEUE: Final = 10_000
WRITES: Final = frozenset({"create", "change", "apply", "beat", "expired", "hold", "prune", "slots"})
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
    """What connects all processes, and breaks. `cut` and `deaf`: names of hosts that cannot send, or receive."""

    def __init__(self, loop: VirtualLoop, store: SqliteStore, clock: NodeClock, referee: Referee, seed: str) -> None:
        self.loop = loop
        self.store = store
        self.clock = clock  # the store's
        self.referee = referee
        self.weather = Weather()
        self.counts: Counter[str] = Counter()
        self.cut: set[str] = set()
        self.deaf: set[str] = set()
        self.store_down = False
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

    def send(self, sender: Life, subject: str, message: AnyMessage, reply: asyncio.Future[Any] | None) -> bool:
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

    async def call(self, caller: Life, clock: NodeClock, verb: str, args: Any, kwargs: Any) -> Any:
        """One call of the store by a process."""
        weather, dice = self.weather, self._store_dice
        there = 1 + int(dice.expovariate(1 / weather.store_latency))
        back = 1 + int(dice.expovariate(1 / weather.store_latency))
        if weather.store_straggling and dice.random() < weather.store_straggling:
            self.counts["store calls late"] += 1
            if dice.random() < 0.5:
                there += dice.randrange(weather.store_straggle)
            else:
                back += dice.randrange(weather.store_straggle)
        failure: DulyError | None = None
        effect = True
        if self.store_down or caller.name in self.cut:
            self.counts["store calls refused"] += 1
            failure, effect = Unavailable("simulated: no connection"), False
        elif weather.store_unavailable and dice.random() < weather.store_unavailable:
            self.counts["store calls refused"] += 1
            failure, effect = Unavailable("simulated"), False
        elif verb in WRITES and weather.store_unknown and dice.random() < weather.store_unknown:
            effect = dice.random() < 0.5
            self.counts["store outcomes unknown, " + ("done" if effect else "not done")] += 1
            failure = OutcomeUnknown("simulated")
        answer = self.loop.create_future()
        request = (caller, clock, verb, args, kwargs, effect, failure, back, answer)
        self.loop.later(there, lambda: self.loop.start(None, self._arrive(*request)))
        return await answer

    async def _arrive(
        self,
        caller: Life,
        clock: NodeClock,
        verb: str,
        args: Any,
        kwargs: Any,
        effect: bool,
        failure: DulyError | None,
        back: int,
        answer: asyncio.Future[Any],
    ) -> None:
        result: Any = None
        if effect:
            try:
                CALLER.set(clock)
                result = await getattr(self.store, verb)(*args, **kwargs)
            except DulyError as refusal:
                self.counts[f"refused: {refusal.code}"] += 1
                failure = failure or refusal
            else:
                self.referee.saw(str(caller), verb, args, kwargs, result, self.clock.wall(), self.loop.micros)
        self.loop.later(back, _resolve, answer, result, failure)


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


class Subscription:
    """A process' ear: messages queue up while it is busy or frozen."""

    def __init__(self, network: Network, life: Life, subject: str, handler: Handler, group: str | None) -> None:
        self.subject = subject
        self.group = group
        self.life = life
        self._network = network
        self._handler = handler
        self._queue: deque[tuple[AnyMessage, tuple[Life, asyncio.Future[Any]] | None]] = deque()
        self._wake = asyncio.Event()
        self._stopped = False
        self._task = network.loop.start(life, self._consume())

    def offer(self, message: AnyMessage, reply: tuple[Life, asyncio.Future[Any]] | None) -> None:
        """A message has arrived."""
        if self._stopped or not self.life.up or len(self._queue) >= QUEUE:
            self._network.counts["messages to the dead"] += 1
            return
        self._queue.append((message, reply))
        self._wake.set()

    async def stop(self) -> None:
        """No message is handled after this."""
        self._stopped = True
        self._queue.clear()
        self._wake.set()
        self._network.forget(self)
        if asyncio.current_task() is not self._task:
            await asyncio.wait([self._task])

    async def _consume(self) -> None:
        while not self._stopped:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            message, reply = self._queue.popleft()
            try:
                answer = await self._handler(message)
            except DulyError:
                self._network.counts["handler errors"] += 1
                continue
            if reply is not None and answer is not None:
                self._network.answer(self.life, reply[0], reply[1], answer)


class SimBroker:
    """The Broker port of one process."""

    def __init__(self, network: Network, life: Life, clock: NodeClock) -> None:
        self._network = network
        self._life = life
        self._clock = clock

    async def publish(self, subject: str, message: AnyMessage) -> None:
        self._network.send(self._life, subject, message, None)

    async def subscribe(self, subject: str, handler: Handler, *, group: str | None = None) -> Subscription:
        subscription = Subscription(self._network, self._life, subject, handler, group)
        self._network.subscribe(subscription)
        return subscription

    async def request(self, subject: str, message: AnyMessage, *, timeout: int) -> AnyMessage:
        reply: asyncio.Future[AnyMessage] = self._network.loop.create_future()
        if not self._network.send(self._life, subject, message, (self._life, reply)):  # type: ignore[arg-type]
            raise Unavailable(f"nobody listens to {subject}")
        try:
            async with asyncio.timeout(timeout / SECOND):
                return await reply
        except TimeoutError:
            raise TimedOut(f"no answer from {subject}") from None

    async def close(self) -> None:
        """Nothing to do."""


class SimStore:
    """The Store port of one process: every verb is a call over the network."""

    shards: tuple[str, ...] = ("s0",)

    def __init__(self, network: Network, life: Life, clock: NodeClock) -> None:
        self._network = network
        self._life = life
        self._clock = clock

    def shard_of(self, job_id: JobId) -> str:
        return self.shards[0]

    def __getattr__(self, verb: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if verb.startswith("_"):
            raise AttributeError(verb)

        async def called(*args: Any, **kwargs: Any) -> Any:
            return await self._network.call(self._life, self._clock, verb, args, kwargs)

        return called


class SimBlobs:
    """The Blobs port: a dictionary that all processes share."""

    def __init__(self, clock: NodeClock) -> None:
        self._clock = clock
        self._blobs: dict[str, tuple[bytes, int]] = {}

    async def put(self, data: Any, *, limit: int, expected: str | None = None) -> tuple[str, int]:
        content = data if isinstance(data, bytes) else b"".join([chunk async for chunk in data])
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self._blobs[digest] = (content, self._clock.monotonic())
        return digest, len(content)

    async def get(self, digest: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        if digest not in self._blobs:
            raise NotFound(digest)
        yield self._blobs[digest][0][start:end]

    async def size(self, digest: str) -> int | None:
        return len(self._blobs[digest][0]) if digest in self._blobs else None

    async def delete(self, digests: Sequence[str], *, unused_for: int) -> int:
        gone = [each for each in digests if each in self._blobs and self._idle(each) >= unused_for]
        for digest in gone:
            del self._blobs[digest]
        return len(gone)

    async def page(self, after: str | None, limit: int, *, unused_for: int) -> list[str]:
        idle = [each for each in sorted(self._blobs) if each > (after or "") and self._idle(each) >= unused_for]
        return idle[:limit]

    async def fetch(self, digest: str, path: str, *, executable: bool = False) -> None:
        raise NotImplementedError("scripted tasks have no files")

    def _idle(self, digest: str) -> int:
        return self._clock.monotonic() - self._blobs[digest][1]


__all__ = ["NOBODY", "Network", "SimBlobs", "SimBroker", "SimStore", "Weather", "at_once"]
