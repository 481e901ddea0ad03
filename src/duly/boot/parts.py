"""The adapters of a cluster, from settings: stores, broker, blobs. Libraries are imported when they are wanted."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from duly.adapters.cached_blobs import CachedBlobs
from duly.adapters.guarded_store import GuardedStore
from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.adapters.sharded_store import ShardedStore
from duly.core.errors import InvalidInput
from duly.core.instants import SECOND
from duly.core.ring import map_slots
from duly.ports import Blobs, Broker, Clock, Store
from duly.settings import Settings
from duly.telemetry import Telemetry

if TYPE_CHECKING:
    from duly.boot.broker import WorkerBroker

log = logging.getLogger("duly.boot")

BROKER_WITHIN: Final = 5 * SECOND


async def open_stores(stack: contextlib.AsyncExitStack, settings: Settings, clock: Clock) -> Store:
    """The shards' PostgreSQL behind one face; closed with the stack. Raises InvalidInput if none is named."""
    try:
        from duly.adapters.postgres_store import PostgresStore
    except ModuleNotFoundError as missing:
        raise InvalidInput.at("/stores", f"PostgreSQL needs {missing.name}: pip install duly[cluster]") from missing
    if not settings.stores:
        raise InvalidInput.at("/stores", 'no shard is named; write stores = { s0 = "postgresql://…" } in duly.toml')
    strangers = set(settings.weights) - set(settings.stores)
    if strangers:
        raise InvalidInput.at("/weights", f"these are not shards: {', '.join(sorted(strangers))}")
    stores: dict[str, Store] = {}
    for name, url in settings.stores.items():
        stores[name] = store = GuardedStore(PostgresStore(url, shard=name, clock=clock), clock=clock)
        stack.push_async_callback(store.close)
    first = map_slots({name: settings.weights.get(name, 1.0) for name in stores})
    return ShardedStore(stores, first, clock=clock)


async def open_broker(
    stack: contextlib.AsyncExitStack, settings: Settings, clock: Clock, blobs: Blobs, name: str, telemetry: Telemetry
) -> Broker:
    """The NATS servers; closed with the stack. Raises InvalidInput if none is named."""
    from duly.boot.broker import make_broker

    broker = make_broker(settings, clock=clock, blobs=blobs, name=name)
    stack.push_async_callback(broker.close)
    if not await broker.start(within=BROKER_WITHIN):
        log.warning("no NATS server answers yet; going on without")
    telemetry.watch_broker(broker.counters)
    return broker


async def open_worker_broker(
    stack: contextlib.AsyncExitStack, settings: Settings, clock: Clock, blobs: Blobs, name: str, telemetry: Telemetry
) -> WorkerBroker:
    """The NATS servers, and the servicers for when these are away; closed with the stack. Raises InvalidInput."""
    from duly.boot.broker import WorkerBroker

    broker = WorkerBroker(settings, clock=clock, blobs=blobs, name=name)
    stack.push_async_callback(broker.close)
    if not await broker.nats.start(within=BROKER_WITHIN):
        log.warning("no NATS server answers yet; going on by the servicers")
    telemetry.watch_broker(broker.counters)
    return broker


def open_blobs(settings: Settings, clock: Clock, cache: Path | None = None) -> Blobs:
    """A directory, or a bucket, of which a worker keeps what it fetches in a `cache`. Raises InvalidInput."""
    where = settings.blobs
    if not where.startswith("s3://"):
        if "://" in where:
            raise InvalidInput.at("/blobs", f"{where!r} is neither a directory nor s3://BUCKET/PREFIX")
        return ObstoreBlobs(where or Path(settings.dir).absolute() / "blobs", clock=clock)
    from duly.adapters.s3_blobs import S3Blobs, S3Options

    bucket, _, prefix = where.removeprefix("s3://").partition("/")
    if not bucket:
        raise InvalidInput.at("/blobs", f"{where!r} names no bucket; write s3://BUCKET/PREFIX")
    options = S3Options(
        bucket=bucket,
        prefix=prefix,
        endpoint=settings.s3_endpoint,
        region=settings.s3_region,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
    )
    blobs = S3Blobs(options, clock=clock)
    return CachedBlobs(blobs, cache, limit=settings.blob_cache) if cache and settings.blob_cache else blobs
