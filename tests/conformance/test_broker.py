"""The Broker port, clause by clause, and the counters of the local one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from duly.adapters.local_broker import LocalBroker
from duly.core.errors import TimedOut, Unavailable
from duly.core.messages import AnyMessage, Hint, Notice
from duly.testing import ManualClock, settle

SECOND = 1_000_000


@pytest.fixture
def clock() -> ManualClock:
    """It stands still."""
    return ManualClock()


@pytest.fixture
async def broker(clock: ManualClock) -> AsyncIterator[LocalBroker]:
    """With room for three messages a subscriber."""
    opened = LocalBroker(clock, queue_size=3)
    yield opened
    await opened.close()


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


async def test_publish_reaches_every_subscriber_of_the_subject(broker: LocalBroker) -> None:
    """And nobody else. The message is the same object."""
    first, second, other = Listener(), Listener(), Listener()
    await broker.subscribe("x", first)
    await broker.subscribe("x", second)
    await broker.subscribe("y", other)
    message = hint(1)
    await broker.publish("x", message)
    await settle()
    assert first.heard[0] is message
    assert second.heard[0] is message
    assert other.heard == []


async def test_publish_to_nobody_is_lost(broker: LocalBroker) -> None:
    """Not kept for later."""
    await broker.publish("x", hint(1))
    listener = Listener()
    await broker.subscribe("x", listener)
    await settle()
    assert listener.heard == []


async def test_publish_reaches_one_of_each_group(broker: LocalBroker) -> None:
    """In turn; those without a group get all."""
    members = [Listener(), Listener()]
    rival, single = Listener(), Listener()
    for member in members:
        await broker.subscribe("x", member, group="g")
    await broker.subscribe("x", rival, group="h")
    await broker.subscribe("x", single)
    for i in range(4):
        await broker.publish("x", hint(i))
        await settle()
    assert [len(member.heard) for member in members] == [2, 2]
    assert rival.heard == single.heard == [hint(i) for i in range(4)]


async def test_publish_never_waits_for_handlers_and_counts_what_a_full_subscriber_loses(broker: LocalBroker) -> None:
    """The oldest are kept."""
    slow, quick = Listener(), Listener()
    slow.free.clear()
    await broker.subscribe("x", slow)
    await broker.subscribe("x", quick)
    for i in range(6):
        await broker.publish("x", hint(i))
        await settle()
    assert broker.counters["dropped"] == 2  # one is being handled, three wait
    slow.free.set()
    await settle()
    assert slow.heard == [hint(i) for i in range(4)]
    assert quick.heard == [hint(i) for i in range(6)]


async def test_publish_to_a_group_passes_over_a_full_member(broker: LocalBroker) -> None:
    """As long as another has room."""
    slow, quick = Listener(), Listener()
    slow.free.clear()
    await broker.subscribe("x", slow, group="g")
    await broker.subscribe("x", quick, group="g")
    for i in range(12):
        await broker.publish("x", hint(i))
        await settle()
    assert broker.counters["dropped"] == 0
    assert len(quick.heard) == 8
    slow.free.set()


async def test_messages_are_handled_one_at_a_time_and_in_order(broker: LocalBroker) -> None:
    """The next one waits for the last."""
    listener = Listener()
    listener.free.clear()
    await broker.subscribe("x", listener)
    await broker.publish("x", hint(1))
    await broker.publish("x", hint(2))
    await settle()
    assert listener.heard == [hint(1)]
    listener.free.set()
    await settle()
    assert listener.heard == [hint(1), hint(2)]


async def test_an_exception_in_a_handler_is_logged_and_counted(
    broker: LocalBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """The next message is handled."""
    heard: list[AnyMessage] = []

    async def handler(message: AnyMessage) -> None:
        heard.append(message)
        if message == hint(1):
            raise RuntimeError("oh dear")

    await broker.subscribe("x", handler)
    with caplog.at_level(logging.ERROR):
        await broker.publish("x", hint(1))
        await broker.publish("x", hint(2))
        await settle()
    assert heard == [hint(1), hint(2)]
    assert broker.counters["handler_errors"] == 1
    assert "oh dear" in caplog.text


async def test_request_gets_what_a_handler_returns(broker: LocalBroker) -> None:
    """The first answer, whoever says nothing."""
    await broker.subscribe("x", Listener(None))
    await broker.subscribe("x", Listener(Notice(kind="first")))
    await broker.subscribe("x", Listener(Notice(kind="second")))
    assert await broker.request("x", hint(1), timeout=SECOND) == Notice(kind="first")


async def test_request_times_out(broker: LocalBroker, clock: ManualClock) -> None:
    """When nobody answers in time; an answer that comes later is lost."""
    slow = Listener(Notice(kind="late"))
    slow.free.clear()
    await broker.subscribe("x", slow)
    asked = asyncio.ensure_future(broker.request("x", hint(1), timeout=SECOND))
    await clock.advance(SECOND - 1)
    assert not asked.done()
    await clock.advance(1)
    with pytest.raises(TimedOut):
        await asked
    slow.free.set()
    await settle()


async def test_request_to_nobody_is_unavailable_at_once(broker: LocalBroker) -> None:
    """No waiting."""
    with pytest.raises(Unavailable):
        await broker.request("x", hint(1), timeout=SECOND)
    stopped = await broker.subscribe("x", Listener())
    await stopped.stop()
    with pytest.raises(Unavailable):
        await broker.request("x", hint(1), timeout=SECOND)


async def test_no_message_is_handled_after_stop_returns(broker: LocalBroker) -> None:
    """The one that is being handled is finished first, those that wait are lost."""
    listener = Listener()
    listener.free.clear()
    subscription = await broker.subscribe("x", listener, group="g")
    for i in range(3):
        await broker.publish("x", hint(i))
    await settle()
    stopping = asyncio.ensure_future(subscription.stop())
    await settle()
    assert not stopping.done()
    listener.free.set()
    await stopping
    await broker.publish("x", hint(9))
    await settle()
    assert listener.heard == [hint(0)]
    await subscription.stop()


async def test_a_handler_may_stop_its_own_subscription(broker: LocalBroker) -> None:
    """Without waiting for itself."""
    heard: list[AnyMessage] = []

    async def once(message: AnyMessage) -> None:
        heard.append(message)
        await subscription.stop()

    subscription = await broker.subscribe("x", once)
    await broker.publish("x", hint(1))
    await broker.publish("x", hint(2))
    await settle()
    assert heard == [hint(1)]


async def test_close_stops_every_subscription(broker: LocalBroker) -> None:
    """Later calls are Unavailable."""
    listener = Listener()
    await broker.subscribe("x", listener)
    await broker.subscribe("y", listener, group="g")
    await broker.close()
    for call in (
        broker.publish("x", hint(1)),
        broker.request("y", hint(1), timeout=1),
    ):
        with pytest.raises(Unavailable):
            await call
    with pytest.raises(Unavailable):
        await broker.subscribe("x", listener)
    await settle()
    assert listener.heard == []
