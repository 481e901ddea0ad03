"""The brokers that the suite goes through: within a process, and over a real NATS between two connections."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from duly.adapters.local_broker import LocalBroker
from duly.core.messages import AnyMessage, Hint
from duly.ports import Broker
from duly.testing import ManualClock, settle
from nats_server import nats_broker

ROOM = 3  # messages that wait for one subscriber
_prefixes = itertools.count()


class BrokerHarness:
    """Subscribe with `here`, publish with `there`; the clock stands still until `advance`."""

    def __init__(
        self,
        here: Broker,
        there: Broker,
        counters: Counter[str],
        clock: ManualClock,
        arrived: Callable[[], Awaitable[None]],
    ) -> None:
        self.here = here
        self.there = there
        self.counters = counters  # of the side that hears
        self.clock = clock
        self._arrived = arrived

    async def settle(self) -> None:
        """Returns when what was published has arrived, and handlers that were free have handled it."""
        await self._arrived()
        await settle()


@contextlib.asynccontextmanager
async def local(folder: Path, urls: list[str]) -> AsyncIterator[BrokerHarness]:
    """A LocalBroker: both sides are one."""
    clock = ManualClock()
    broker = LocalBroker(clock, queue_size=ROOM)
    yield BrokerHarness(broker, broker, broker.counters, clock, settle)
    await broker.close()


@contextlib.asynccontextmanager
async def nats(folder: Path, urls: list[str]) -> AsyncIterator[BrokerHarness]:
    """Two NatsBrokers, each with its own connection to a real server."""
    clock, prefix = ManualClock(), f"suite{next(_prefixes)}"
    async with (
        nats_broker(urls, folder, clock=clock, prefix=prefix, queue=ROOM, name="here") as here,
        nats_broker(urls, folder, clock=clock, prefix=prefix, name="there") as there,
    ):
        marked = asyncio.Event()

        async def mark(message: AnyMessage) -> None:
            marked.set()

        await here.subscribe("mark", mark)

        async def arrived() -> None:
            marked.clear()
            for broker in (here, there):
                if broker.link.client is not None:
                    await broker.link.synced(broker.link.client)
            if here.link.client is not None:
                await there.publish("mark", Hint(shard="mark"))  # what was published before comes before it
                await marked.wait()

        yield BrokerHarness(here, there, here.counters, clock, arrived)


BROKERS = {"local": local, "nats": nats}
