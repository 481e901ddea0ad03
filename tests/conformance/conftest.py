"""The adapters that the suites go through."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from conformance.blob_harness import Kept, in_bucket, in_directory, s3_server
from conformance.harness import STORES, Harness
from conformance.samples import T0
from duly.adapters.cached_blobs import CachedBlobs
from duly.ports import Blobs
from duly.testing import ManualClock


@pytest.fixture(params=STORES)
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    """Each store in turn, empty, at T0."""
    async with STORES[request.param](tmp_path) as opened:
        yield opened


@pytest.fixture
def clock() -> ManualClock:
    """It stands at T0."""
    return ManualClock(T0)


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """The S3 server of this session."""
    yield from s3_server()


@pytest.fixture(params=["directory", "s3", "cached"])
def blob_store(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> tuple[Blobs, Kept]:
    """Each blob store in turn, empty, at T0."""
    if request.param == "directory":
        return in_directory(tmp_path, clock)
    blobs, kept = in_bucket(request.getfixturevalue("s3_address"), f"blobs-{uuid.uuid4().hex}", clock)
    if request.param == "cached":
        return CachedBlobs(blobs, tmp_path / "cache", limit=16 * 1024 * 1024), kept
    return blobs, kept


@pytest.fixture
def blobs(blob_store: tuple[Blobs, Kept]) -> Blobs:
    """The store."""
    return blob_store[0]


@pytest.fixture
def kept(blob_store: tuple[Blobs, Kept]) -> Kept:
    """What lies in it."""
    return blob_store[1]
