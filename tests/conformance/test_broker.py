"""The Broker port, clause by clause, over every broker; and what only the one within a process promises."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from conformance.brokers import BROKERS, BrokerHarness
from duly.adapters.local_broker import LocalBroker
from duly.core.errors import TimedOut, Unavailable
from duly.core.messages import AnyMessage, Hint, Notice
from duly.testing import ManualClock, settle
from nats_server import nats_servers

SECOND = 1_000_000


@pytest.fixture(scope="module")
def urls() -> Iterator[list[str]]:
    """A server for the whole suite."""
    with nats_servers() as servers:
        yield servers.urls


@pytest.fixture(params=BROKERS)
async def broker(request: pytest.FixtureRequest, tmp_path: Path, urls: list[str]) -> AsyncIterator[BrokerHarness]:
    """Each broker in turn, with room for three messages a subscriber."""
    async with BROKERS[request.param](tmp_path, urls) as opened:
        yield opened


class Listener:
    """A handler that remembers what it was given, and can be held up."""

    def __init__(self, answer: AnyMessage | None = None) -> None:
        self.heard: list[AnyMessage] = []
        self.answer = answer
        self.free = asyncio.Event()
        self.free.set()

    async def __call__(self, message: AnyMessage) -> AnyMessage | None:
        self.heard.append(message)
        await self.free.wait()
        return self.answer


def hint(i: int) -> Hint:
    """One of several messages."""
    return Hint(shard=f"s{i}")


async def test_publish_reaches_every_subscriber_of_the_subject(broker: BrokerHarness) -> None:
    """And nobody else."""
    first, second, other = Listener(), Listener(), Listener()
    await broker.here.subscribe("x", first)
    await broker.here.subscribe("x", second)
    await broker.here.subscribe("y", other)
    await broker.there.publish("x", hint(1))
    await broker.settle()
    assert first.heard == second.heard == [hint(1)]
    assert other.heard == []


async def test_publish_to_nobody_is_lost(broker: BrokerHarness) -> None:
    """Not kept for later."""
    await broker.there.publish("x", hint(1))
    await broker.settle()
    listener = Listener()
    await broker.here.subscribe("x", listener)
    await broker.settle()
    assert listener.heard == []


async def test_publish_reaches_one_of_each_group(broker: BrokerHarness) -> None:
    """Those without a group get all."""
    members = [Listener(), Listener()]
    rival, single = Listener(), Listener()
    for member in members:
        await broker.here.subscribe("x", member, group="g")
    await broker.here.subscribe("x", rival, group="h")
    await broker.here.subscribe("x", single)
    for i in range(4):
        await broker.there.publish("x", hint(i))
        await broker.settle()
    assert sorted([*members[0].heard, *members[1].heard], key=str) == [hint(i) for i in range(4)]
    assert rival.heard == single.heard == [hint(i) for i in range(4)]


async def test_publish_never_waits_for_handlers_and_counts_what_a_full_subscriber_loses(broker: BrokerHarness) -> None:
    """The oldest are kept."""
    slow, quick = Listener(), Listener()
    slow.free.clear()
    await broker.here.subscribe("x", slow)
    await broker.here.subscribe("x", quick)
    for i in range(6):
        await broker.there.publish("x", hint(i))
        await broker.settle()
    assert broker.counters["dropped"] == 2  # one is being handled, three wait
    slow.free.set()
    await broker.settle()
    assert slow.heard == [hint(i) for i in range(4)]
    assert quick.heard == [hint(i) for i in range(6)]


async def test_messages_are_handled_one_at_a_time_and_in_order(broker: BrokerHarness) -> None:
    """The next one waits for the last."""
    listener = Listener()
    listener.free.clear()
    await broker.here.subscribe("x", listener)
    await broker.there.publish("x", hint(1))
    await broker.there.publish("x", hint(2))
    await broker.settle()
    assert listener.heard == [hint(1)]
    listener.free.set()
    await broker.settle()
    assert listener.heard == [hint(1), hint(2)]


async def test_an_exception_in_a_handler_is_logged_and_counted(
    broker: BrokerHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """The next message is handled."""
    heard: list[AnyMessage] = []

    async def handler(message: AnyMessage) -> None:
        heard.append(message)
        if message == hint(1):
            raise RuntimeError("oh dear")

    await broker.here.subscribe("x", handler)
    with caplog.at_level(logging.ERROR):
        await broker.there.publish("x", hint(1))
        await broker.there.publish("x", hint(2))
        await broker.settle()
    assert heard == [hint(1), hint(2)]
    assert broker.counters["handler_errors"] == 1
    assert "oh dear" in caplog.text


async def test_request_gets_what_a_handler_returns(broker: BrokerHarness) -> None:
    """One answer of those who give any, whoever says nothing."""
    await broker.here.subscribe("x", Listener(None))
    await broker.here.subscribe("x", Listener(Notice(kind="first")))
    await broker.here.subscribe("x", Listener(Notice(kind="second")))
    answers = (Notice(kind="first"), Notice(kind="second"))
    assert await broker.there.request("x", hint(1), timeout=SECOND) in answers


async def test_request_times_out(broker: BrokerHarness) -> None:
    """When nobody answers in time; an answer that comes later is lost."""
    slow = Listener(Notice(kind="late"))
    slow.free.clear()
    await broker.here.subscribe("x", slow)
    asked = asyncio.ensure_future(broker.there.request("x", hint(1), timeout=SECOND))
    await broker.clock.advance(SECOND - 1)
    assert not asked.done()
    await broker.clock.advance(1)
    with pytest.raises(TimedOut):
        await asked
    slow.free.set()
    await broker.settle()


async def test_request_to_nobody_is_unavailable_at_once(broker: BrokerHarness) -> None:
    """No waiting."""
    with pytest.raises(Unavailable):
        await broker.there.request("x", hint(1), timeout=SECOND)
    stopped = await broker.here.subscribe("x", Listener())
    await stopped.stop()
    await broker.settle()
    with pytest.raises(Unavailable):
        await broker.there.request("x", hint(1), timeout=SECOND)


async def test_no_message_is_handled_after_stop_returns(broker: BrokerHarness) -> None:
    """The one that is being handled is finished first, those that wait are lost."""
    listener = Listener()
    listener.free.clear()
    subscription = await broker.here.subscribe("x", listener, group="g")
    for i in range(3):
        await broker.there.publish("x", hint(i))
    await broker.settle()
    stopping = asyncio.ensure_future(subscription.stop())
    await broker.settle()
    assert not stopping.done()
    listener.free.set()
    await stopping
    await broker.there.publish("x", hint(9))
    await broker.settle()
    assert listener.heard == [hint(0)]
    await subscription.stop()


async def test_a_handler_may_stop_its_own_subscription(broker: BrokerHarness) -> None:
    """Without waiting for itself."""
    heard: list[AnyMessage] = []

    async def once(message: AnyMessage) -> None:
        heard.append(message)
        await subscription.stop()

    subscription = await broker.here.subscribe("x", once)
    await broker.there.publish("x", hint(1))
    await broker.there.publish("x", hint(2))
    await broker.settle()
    assert heard == [hint(1)]


async def test_close_stops_every_subscription(broker: BrokerHarness) -> None:
    """Later calls are Unavailable."""
    listener = Listener()
    await broker.here.subscribe("x", listener)
    await broker.here.subscribe("y", listener, group="g")
    await broker.here.close()
    for call in (
        broker.here.publish("x", hint(1)),
        broker.here.request("y", hint(1), timeout=1),
    ):
        with pytest.raises(Unavailable):
            await call
    with pytest.raises(Unavailable):
        await broker.here.subscribe("x", listener)
    await broker.settle()
    assert listener.heard == []


# -- what a broker within a process promises besides ----------------------------------------------------------


@pytest.fixture
async def near() -> AsyncIterator[LocalBroker]:
    """With room for three messages a subscriber."""
    opened = LocalBroker(ManualClock(), queue_size=3)
    yield opened
    await opened.close()


async def test_a_message_within_a_process_is_the_same_object(near: LocalBroker) -> None:
    """Nothing is encoded."""
    listener = Listener()
    await near.subscribe("x", listener)
    message = hint(1)
    await near.publish("x", message)
    await settle()
    assert listener.heard[0] is message


async def test_members_of_a_group_within_a_process_take_turns(near: LocalBroker) -> None:
    """Whoever has waited longest is next."""
    members = [Listener(), Listener()]
    for member in members:
        await near.subscribe("x", member, group="g")
    for i in range(4):
        await near.publish("x", hint(i))
    await settle()
    assert [len(member.heard) for member in members] == [2, 2]


async def test_publish_to_a_group_passes_over_a_full_member(near: LocalBroker) -> None:
    """As long as another has room."""
    slow, quick = Listener(), Listener()
    slow.free.clear()
    await near.subscribe("x", slow, group="g")
    await near.subscribe("x", quick, group="g")
    for i in range(12):
        await near.publish("x", hint(i))
        await settle()
    assert near.counters["dropped"] == 0
    assert len(quick.heard) == 8
    slow.free.set()
