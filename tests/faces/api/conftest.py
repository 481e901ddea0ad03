"""The API over real parts: an SQLite store, a local broker, blobs in a directory; with a worker where one is needed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from duly.adapters.local_broker import LocalBroker
from duly.adapters.obstore_blobs import ObstoreBlobs
from duly.adapters.sqlite_store import SqliteStore
from duly.adapters.system_clock import SystemClock
from duly.boot import assemble
from duly.core.instants import SECOND
from duly.roles.servicer import Servicer
from duly.settings import Settings
from duly.tasks.registry import FunctionRegistry
from duly.telemetry import Telemetry
from faces.api.harness import Api


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """An API without scheduler and worker: runs wait."""
    clock = SystemClock()
    store = SqliteStore(tmp_path / "shard.db", shard="s0", clock=clock)
    await store.migrate()
    broker = LocalBroker(clock)
    blobs = ObstoreBlobs(tmp_path / "blobs", clock=clock)
    servicer = Servicer(
        name="v1",
        store=store,
        broker=broker,
        blobs=blobs,
        clock=clock,
        entropy=os.urandom,
        dice=lambda: 0.5,
        telemetry=Telemetry(),
    )
    await servicer.start()
    yield Api(servicer, store, blobs, clock, tmp_path)
    await servicer.stop()
    await broker.close()
    await store.close()


@pytest.fixture
async def client(api: Api) -> AsyncIterator[httpx2.AsyncClient]:
    """A client on this machine."""
    async with api.client() as made:
        yield made


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Api]:
    """An API with scheduler and worker: runs run."""
    node = assemble(Settings(dir=str(tmp_path / "duly"), slots=2, grace=SECOND), FunctionRegistry())
    await node.start()
    yield Api(node.servicer, node.store, node.blobs, node.clock, tmp_path)
    await node.stop()
