"""The Broker port over core NATS: what is published while nobody listens, or while the server is away, is gone.

    publish ─▶ seal ─▶ link ─▶ server ─▶ inlet ─▶ bounded queue ─▶ open ─▶ handler
                 └─ too large: body to the blob store,               └─ not believed: counted, dropped
                    its name travels

`counters`: published, received, unsent, dropped (a subscriber was full), handler_errors, by_blob, disconnects, and
`refused.<reason>` for each reason of the wire. Nothing is logged more than once in ten seconds for one reason.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from duly.adapters.nats_link import Inlet, NatsLink, NatsOptions
from duly.adapters.nats_wire import LARGEST, BlobBody, Reason, Sealed, Window, Wire
from duly.core.errors import DulyError, TimedOut, Unavailable
from duly.core.instants import SECOND
from duly.core.messages import AnyMessage
from duly.ports import Blobs, Clock, Handler

QUEUE_BYTES: Final = 64 * 1024**2  # of messages that wait for one subscriber
STALE_AFTER: Final = 10 * SECOND  # a message that waited so long here has lost its meaning
ANSWERS: Final = 16  # answers to one request that are looked at; the first that is believed counts

_SAFE: Final = re.compile(r"[A-Za-z0-9_-]")
_NO_RESPONDERS: Final = "503"

log = logging.getLogger("duly.broker")


class _Reply:
    """Where the answers to a request go."""

    __slots__ = ("answers", "arrived", "problem")

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.answers: deque[Msg] = deque(maxlen=ANSWERS)
        self.problem = ""

    def fail(self, problem: str) -> None:
        """There will be no answer."""
        self.problem = problem
        self.arrived.set()

    def give(self, answer: Msg) -> None:
        """One of the answers; an empty one with a status says that nobody listens."""
        if not answer.data and answer.headers and answer.headers.get("Status") == _NO_RESPONDERS:
            self.problem = "nobody listens"
        else:
            self.answers.append(answer)
        self.arrived.set()


class NatsSubscription:
    """A subscription, whatever connection carries it, with the task that calls its handler."""

    def __init__(self, broker: NatsBroker, topic: str, handler: Handler, group: str | None, window: Window) -> None:
        self.topic = topic
        self.group = group
        self._broker = broker
        self._handler = handler
        self._window = window
        self._queue: deque[tuple[Msg, int]] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._stopped = False
        self._carrier: tuple[Client, Subscription] | None = None
        self._task = asyncio.create_task(self._consume(), name=f"broker:{topic}")

    async def attach(self, client: Client) -> None:
        """Be carried by this connection."""
        if self._stopped or (self._carrier is not None and self._carrier[0] is client):
            return
        carried = await self._broker.link.attach(client, self.topic, self.group or "", Inlet(self._offer))
        self._carrier = None if carried is None else (client, carried)

    def _offer(self, message: Msg) -> None:
        if self._stopped:
            return
        broker = self._broker
        broker.counters["received"] += 1
        if len(self._queue) >= broker.options.queue or self._bytes + len(message.data) > QUEUE_BYTES:
            broker.counters["dropped"] += 1
            broker.link.tell("dropped", "%s: its subscriber is full; a message was dropped", self.topic)
            return
        self._queue.append((message, broker.clock.monotonic()))
        self._bytes += len(message.data)
        self._wake.set()

    async def stop(self) -> None:
        """Let the handler finish the message that it is at; those queued are lost."""
        if not self._stopped:
            self._stopped = True
            self._queue.clear()
            self._wake.set()
            self._broker.forget(self)
            if self._carrier is not None:
                await self._broker.link.detach(*self._carrier)
        if asyncio.current_task() is not self._task:  # a handler may stop its own subscription
            await asyncio.wait([self._task])

    async def _consume(self) -> None:
        broker = self._broker
        while not self._stopped:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            message, arrived = self._queue.popleft()
            self._bytes -= len(message.data)
            if broker.clock.monotonic() - arrived > STALE_AFTER:
                broker.refuse("stale", self.topic)
                continue
            content = await broker.open(message, self._window)
            if content is None or self._stopped:
                continue
            try:
                answer = await self._handler(content)
            except Exception:
                broker.counters["handler_errors"] += 1
                log.exception("handler of %s failed on %s", self.topic, type(content).__name__)
                continue
            if answer is not None and message.reply:
                await broker.answer(message.reply, answer)


class NatsBroker:
    """The Broker port over NATS servers. `start` before use; `up` is set while there is a connection."""

    def __init__(
        self,
        servers: Sequence[str],
        *,
        clock: Clock,
        blobs: Blobs,
        name: str,
        dice: Callable[[], float],
        entropy: Callable[[int], bytes],
        options: NatsOptions | None = None,
    ) -> None:
        """`servers`: nats://HOST:PORT or tls://HOST:PORT. `name` is what a server shows of this connection.

        Raises InvalidInput for an address that is none, and for credentials or certificates that cannot be read.
        """
        self.clock = clock
        self.options = options or NatsOptions()
        self.counters: Counter[str] = Counter(published=0, received=0, unsent=0, dropped=0, handler_errors=0)
        self.link = NatsLink(
            servers, self.options, name=name, clock=clock, dice=dice, carry=self._carry, dropped=self._lost
        )
        self.up = self.link.up
        self._blobs = blobs
        self._inbox = f"_INBOX.{entropy(11).hex()}"
        self._wire = Wire(entropy(8), self.options.keys)
        self._closed = False
        self._subscriptions: dict[NatsSubscription, None] = {}
        self._windows: dict[tuple[str, str | None], Window] = {}
        self._requests = 0
        self._replies: dict[str, _Reply] = {}
        self._answer_window = Window()

    @property
    def connected(self) -> bool:
        return self.up.is_set()

    # -- life -----------------------------------------------------------------------------------------------

    async def start(self, *, within: int) -> bool:
        """Connect, for at most `within` µs; True once connected. Trying goes on in the background for ever."""
        if self._closed:
            raise Unavailable("the broker is closed")
        return await self.link.start(within)

    async def close(self) -> None:
        """Stop every subscription, write out what was published, and let go, whether or not a server is there."""
        if self._closed:
            return
        self._closed = True
        for subscription in list(self._subscriptions):
            await subscription.stop()
        await self.link.close()

    async def _carry(self, client: Client) -> None:
        """A new connection: replay what is subscribed."""
        await self.link.attach(client, f"{self._inbox}.*", "", Inlet(self._answered))
        for subscription in list(self._subscriptions):
            await subscription.attach(client)

    def _lost(self) -> None:
        for reply in self._replies.values():
            reply.fail("the connection to the broker was lost")
        if not self._closed:
            self.counters["disconnects"] += 1

    # -- sending --------------------------------------------------------------------------------------------

    async def publish(self, subject: str, message: AnyMessage) -> None:
        if self._closed:
            raise Unavailable("the broker is closed")
        self.counters["published"] += 1
        await self._send(_topic(self.options.prefix, subject), message, "")

    async def answer(self, reply: str, message: AnyMessage) -> None:
        """Send what a handler returned to the one who asked: to an inbox, whatever else a request may name."""
        if reply.startswith("_INBOX.") and "*" not in reply and ">" not in reply:
            await self._send(reply, message, "")
        else:
            self.refuse("garbage", reply)

    async def request(self, subject: str, message: AnyMessage, *, timeout: int) -> AnyMessage:
        if self._closed:
            raise Unavailable("the broker is closed")
        until = self.clock.monotonic() + timeout
        self._requests += 1
        token = f"{self._inbox}.{self._requests}"
        reply = self._replies[token] = _Reply()
        try:
            self.counters["published"] += 1
            if not await self._send(_topic(self.options.prefix, subject), message, token):
                raise Unavailable("the broker is not reached")
            while True:
                while reply.answers:
                    content = await self.open(reply.answers.popleft(), self._answer_window)
                    if content is not None:
                        return content
                if reply.problem:
                    raise Unavailable(f"{subject}: {reply.problem}")
                reply.arrived.clear()
                left = until - self.clock.monotonic()
                if left <= 0 or not await self.clock.wait(reply.arrived, left):
                    raise TimedOut(f"no answer from {subject} within {timeout} µs")
        finally:
            del self._replies[token]

    async def _send(self, topic: str, message: AnyMessage, reply: str) -> bool:
        """False if it went nowhere, which is counted."""
        client = self.link.client
        sent = False
        if client is not None:
            encoded = self._wire.body(message)
            body: bytes | BlobBody | None = encoded
            if len(encoded) > min(self.options.inline, client.max_payload // 2):
                body = await self._to_blob(encoded, topic)
            if body is not None and client is self.link.client:
                sent = await self.link.send(client, topic, self._wire.seal(topic, reply, body), reply)
        if not sent:
            self.counters["unsent"] += 1
        return sent

    async def _to_blob(self, body: bytes, topic: str) -> BlobBody | None:
        """Put a body in the blob store. Nothing refers to it there, so that the keeper removes it after an hour."""
        try:
            digest, size = await self._blobs.put(body, limit=LARGEST)
        except DulyError as error:
            self.link.tell("blob", "a large message for %s was dropped: %s", topic, error)
            return None
        self.counters["by_blob"] += 1
        return BlobBody(digest, size)

    # -- hearing --------------------------------------------------------------------------------------------

    async def subscribe(self, subject: str, handler: Handler, *, group: str | None = None) -> NatsSubscription:
        """As the port says; returns once the server knows, or at once while there is none."""
        if self._closed:
            raise Unavailable("the broker is closed")
        topic = _topic(self.options.prefix, subject)
        # Members of a group in this process share what they have heard: a double may reach another of them.
        window = self._windows.setdefault((topic, group), Window()) if group else Window()
        subscription = NatsSubscription(self, topic, handler, group, window)
        self._subscriptions[subscription] = None
        client = self.link.client
        if client is not None:
            await subscription.attach(client)
            await self.link.synced(client)
        return subscription

    def forget(self, subscription: NatsSubscription) -> None:
        """Do not replay it any more; it calls this when it is stopped."""
        self._subscriptions.pop(subscription, None)
        mark = (subscription.topic, subscription.group)
        if not any((other.topic, other.group) == mark for other in self._subscriptions):
            self._windows.pop(mark, None)

    async def open(self, message: Msg, window: Window) -> AnyMessage | None:
        """What a message says, None if it is not believed, which is counted."""
        found: AnyMessage | Reason | Sealed = self._wire.open(message.subject, message.reply, message.data)
        if isinstance(found, Sealed):
            doubt = window.refuses(found.sender, found.number)
            if doubt is not None:
                found = doubt
            elif isinstance(found.content, BlobBody):
                found = await self._from_blob(found.content, message.subject)
            else:
                return found.content
        if not isinstance(found, str):
            return found
        self.refuse(found, message.subject)
        return None

    async def _from_blob(self, body: BlobBody, topic: str) -> AnyMessage | Reason:
        try:
            if await self._blobs.size(body.digest) != body.size:
                return "blob"
            return self._wire.read(b"".join([chunk async for chunk in self._blobs.get(body.digest)]))
        except DulyError as error:
            self.link.tell("blob", "the body of a message on %s is not to be had: %s", topic, error)
            return "blob"

    def refuse(self, reason: Reason, topic: str) -> None:
        """A message changes nothing, for this reason."""
        self.counters[f"refused.{reason}"] += 1
        self.link.tell(f"refused.{reason}", "a message on %s was refused: %s", topic, reason)

    def _answered(self, message: Msg) -> None:
        reply = self._replies.get(message.subject)
        if reply is not None:
            reply.give(message)


@lru_cache(maxsize=4_096)
def _topic(prefix: str, subject: str) -> str:
    """A subject of NATS: what would be a wildcard, a separator or a space in it is written as its code.

    Dots stay where they part words.
    """
    safe = "".join(char if char == "." or _SAFE.fullmatch(char) else f"={ord(char):x}=" for char in subject)
    return ".".join([prefix, *(word or "=" for word in safe.split("."))])
