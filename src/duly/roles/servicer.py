"""The servicer: every use-case that a client has, stateless, any number side by side.

    versions.py definitions that jobs have had: list, read, restore
    jobs.py     create, change, pause, delete, trigger, bulk        reports.py   what workers tell
    runs.py     read, wait, cancel, retry, explain, logs, outputs   events.py    what those who watch see
    fleet.py    previews, counts, workers, shards                   news.py      what others have written
    desk.py     what all of them share
    worker_desk.py  workers that no broker reaches
    overview.py what a dashboard shows: punctuality, lateness, failures, timeline, forecast

Faces call these methods and nothing else. Ids and namespaces are checked here; a job of another namespace does
not exist for the caller.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from duly.core.contract import WebhookView
from duly.core.errors import Overloaded, Unavailable
from duly.core.instants import SECOND
from duly.core.messages import NOTICES, AnyMessage, News, Notice
from duly.ports import Blobs, Broker, Clock, Store, Subscription
from duly.roles.fleet import FleetDesk
from duly.roles.herald import ASKING, WATCHING
from duly.roles.outputs import OutputReader
from duly.roles.overview import OverviewDesk
from duly.roles.reports import ReportDesk
from duly.roles.versions import VersionDesk
from duly.roles.webhooks import Webhooks
from duly.roles.worker_desk import WorkerDesk
from duly.telemetry import Telemetry


class Servicer(VersionDesk, OverviewDesk, FleetDesk):
    """The use-cases of the API over a store, a broker and blobs."""

    def __init__(
        self,
        *,
        name: str,
        store: Store,
        broker: Broker,
        blobs: Blobs,
        clock: Clock,
        entropy: Callable[[int], bytes],
        dice: Callable[[], float],
        telemetry: Telemetry,
        max_blob_bytes: int = 1 << 30,
        lease: int = 5 * SECOND,
        alone: bool = True,
    ) -> None:
        """`lease`: how long a beat over HTTP keeps a worker alive, as long as the schedulers' own does."""
        super().__init__(store=store, broker=broker, blobs=blobs, clock=clock, entropy=entropy, telemetry=telemetry)
        self.name = name
        self.webhooks: Webhooks | None = None
        self.alone = alone  # no other servicer can serve in this one's place, so it is not ready before all is there
        self.max_blob_bytes = max_blob_bytes
        self.outputs = OutputReader(broker=broker, blobs=blobs, clock=clock)
        self.reports = ReportDesk(store=store, broker=broker, events=self.event_log, telemetry=telemetry, dice=dice)
        self.worker_calls = WorkerDesk(store=store, clock=clock, reports=self.reports, lease=lease)
        self._prepare_overview()
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Take reports and notices."""
        await self._begin_overview()
        await self.news.start()
        await self.reports.start()
        self._subscriptions.append(await self._broker.subscribe(NOTICES, self._notice))

    async def drain(self) -> None:
        """End the streams, so that a server can finish its other requests."""
        self.event_log.close()

    async def stop(self) -> None:
        """Take no more reports and notices."""
        await self.drain()
        await self._end_overview()
        await self.reports.stop()
        await self.news.stop()
        for subscription in self._subscriptions:
            await subscription.stop()
        self._subscriptions.clear()

    def wall(self) -> int:
        """Now, µs UTC, by this node: for showing, never for deciding what is due."""
        return self._clock.wall()

    def monotonic(self) -> int:
        """µs of a clock that never steps."""
        return self._clock.monotonic()

    async def pause(self, duration: int) -> None:
        """Wait so many µs."""
        await self._clock.sleep(duration)

    def send_webhooks(self, webhooks: Webhooks | None) -> None:
        """Let these tell of what this servicer commits; they live longer than it does."""
        self.webhooks = webhooks
        if webhooks is not None:
            self.event_log.committed = webhooks.committed

    def webhook_views(self) -> list[WebhookView]:
        """The webhooks of this servicer's process, and how they are."""
        return [] if self.webhooks is None else self.webhooks.views()

    async def ready(self) -> list[str]:
        """What is missing for a client to be sent here; empty when it may be.

        One of several servicers is ready while one shard answers: what another shard, the schedulers or the workers
        lack, the others lack too, and jobs can still be created and read.
        """
        if self.alone:
            return await self.missing()
        shards = await self._store.stats()
        return [] if any(shard.state == "up" for shard in shards) else ["no shard answers"]

    async def missing(self) -> list[str]:
        """What is missing for every job to run, in words; empty when all is well."""
        missing: list[str] = []
        for shard in await self._store.stats():
            if shard.state != "up":
                missing.append(f"shard {shard.shard} does not answer")
                continue
            try:
                now = await self._store.now(shard.shard)
            except (Unavailable, Overloaded):  # it has gone since
                missing.append(f"shard {shard.shard} does not answer")
                continue
            if shard.term is None or shard.term.expires_at <= now:
                missing.append(f"shard {shard.shard} has no scheduler")
            if not any(worker.lease_until > now and worker.state != "lost" for worker in shard.workers):
                missing.append(f"shard {shard.shard} has no worker")
        return missing

    async def _notice(self, message: AnyMessage) -> None:
        if isinstance(message, News):
            await self.news.heard(message)
        elif isinstance(message, Notice) and message.kind in (WATCHING, ASKING):
            await self.news.hear(message)
        elif isinstance(message, Notice) and message.kind == "run.progress" and message.key is not None:
            found = (await self._store.load([message.key]))[0]
            if found is None or found[0].state.terminal:
                return
            share = msgspec.json.decode(message.data.get("fraction", b"0"), type=float)
            text = msgspec.json.decode(message.data.get("message", b'""'), type=str)
            self.event_log.progressed(found[0], found[1], share, text, await self._store.now())
