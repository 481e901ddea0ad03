"""A real nats-server for tests."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from duly.adapters.nats_broker import NatsBroker
from duly.adapters.nats_link import NatsOptions
from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.adapters.system_clock import SystemClock
from duly.cluster.nats_server import NatsServers
from duly.ports import Clock

PASSWORD = "pss-w0rd"
WITHIN = 30_000_000


@contextlib.contextmanager
def nats_servers(count: int = 1) -> Iterator[NatsServers]:
    """One server or a cluster, up; stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="duly-nats-", ignore_cleanup_errors=True) as folder:
        servers = NatsServers(Path(folder), count, clock=SystemClock(), password=PASSWORD)
        asyncio.run(servers.start())
        try:
            yield servers
        finally:
            for member in servers.members:
                member.kill()


@contextlib.asynccontextmanager
async def nats_broker(
    urls: Sequence[str],
    folder: Path,
    *,
    prefix: str,
    name: str = "test",
    clock: Clock | None = None,
    within: int = WITHIN,
    **options: Any,
) -> AsyncIterator[NatsBroker]:
    """A broker that is connected."""
    clock = clock or SystemClock()
    given = NatsOptions(prefix=prefix, **options)
    broker = NatsBroker(
        urls,
        clock=clock,
        blobs=ObstoreBlobs(folder / "blobs", clock=clock),
        name=name,
        dice=lambda: 0.0,
        entropy=secrets.token_bytes,
        options=given,
    )
    try:
        assert await broker.start(within=within)
        yield broker
    finally:
        await broker.close()


async def eventually(holds: Callable[[], object], within: int = WITHIN) -> None:
    """Returns once the condition holds; looks a hundred times a second."""
    clock = SystemClock()
    end = clock.monotonic() + within
    while not holds():
        assert clock.monotonic() < end, "it never came to that"
        await clock.sleep(10_000)
